"""SAEs on disk in the formats of other projects: a reader for each, and a writer for some.

All files are opened through :mod:`~husai.boundary`; :mod:`~husai.sae.formats.declared` checks
their tensors, and :mod:`~husai.sae.formats.reading` has the type of the result.
"""

from husai.sae.format_names import Format, WrittenFormat
from husai.sae.formats.conversion import convert
from husai.sae.formats.detect import detect_format, find_saes
from husai.sae.formats.hub import is_address
from husai.sae.formats.inspection import inspect_sae, inspection_text
from husai.sae.formats.loading import (
    export_sae,
    load_dictionary,
    load_sae,
    read,
    read_all,
    resolved,
)
from husai.sae.formats.reading import Contract, ForeignSAE, Hints, Reading

__all__ = [
    "Contract",
    "ForeignSAE",
    "Format",
    "Hints",
    "Reading",
    "WrittenFormat",
    "convert",
    "detect_format",
    "export_sae",
    "find_saes",
    "inspect_sae",
    "inspection_text",
    "is_address",
    "load_dictionary",
    "load_sae",
    "read",
    "read_all",
    "resolved",
]
