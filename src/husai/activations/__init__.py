"""Rows of activations: from a model by hook name, from files, from stores on disk; statistics."""

from husai.activations.extraction import OWN_HOOK, ExtractionConfig, extract_activations
from husai.activations.files import RowsFile, read_rows
from husai.activations.labels import prepare_labels
from husai.activations.rows import (
    Activations,
    activation_key,
    check_activations,
    load_activations,
    load_all,
)
from husai.activations.statistics import activation_statistics, statistics_table
from husai.activations.store import ActivationStore

__all__ = [
    "OWN_HOOK",
    "ActivationStore",
    "Activations",
    "ExtractionConfig",
    "RowsFile",
    "activation_key",
    "activation_statistics",
    "check_activations",
    "extract_activations",
    "load_activations",
    "load_all",
    "prepare_labels",
    "read_rows",
    "statistics_table",
]
