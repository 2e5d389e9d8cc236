"""Convert an SAE from one project's format to another's, and check the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from husai.errors import InputError
from husai.sae.format_names import Format, WrittenFormat
from husai.sae.formats.loading import export_sae, read
from husai.sae.formats.reading import ForeignSAE, Hints
from husai.sae.trained import TrainedSAE

_ROWS, _SEED = 64, 0
_TOLERANCE = 1e-4


def convert(
    source: str | Path,
    target: Path,
    to: WrittenFormat,
    format: Format | None = None,
    hints: Hints | None = None,
) -> float:
    """Write the SAE at ``source`` in another project's format, and read it back.

    Parameters
    ----------
    source, format, hints
        See :func:`husai.sae.formats.read`.
    target
        A folder, or for ``husai`` a file; it must not exist.
    to
        The format to write.

    Returns
    -------
    float
        Largest difference between the codes of both SAEs on random rows, as a share of the largest
        code.

    Raises
    ------
    InputError
        When the source is not a complete SAE, the target exists, or the format cannot express it.
    """
    if target.exists():
        raise InputError(f"{target}: exists already; give a new path")
    if to == "husai" and target.suffix != ".safetensors":
        raise InputError(f"{target}: a husai SAE is one file; give it the suffix .safetensors")
    found = read(source, format, hints)
    provenance = {**found.whole().provenance, "contract": found.contract.as_dict()}
    sae = replace(found.whole(), provenance=provenance)
    export_sae(sae, target, to)
    difference = _difference(sae, read(target, to).whole())
    if difference > _TOLERANCE:
        raise InputError(
            f"{target}: its codes differ from those of {source} by {difference:.2g} of the largest "
            "code; it was not converted correctly"
        )
    return difference


def _difference(sae: TrainedSAE, again: TrainedSAE) -> float:
    generator = torch.Generator().manual_seed(_SEED)
    rows = torch.randn(_ROWS, sae.d_in, generator=generator)
    if not (isinstance(sae, ForeignSAE) and sae.input_norm != "none"):
        # around the bias that is subtracted, so that some latents are active
        rows = rows * rows.new_tensor(1 + float(sae.b_dec.abs().mean())) + sae.b_dec
    f, g = sae.encode(rows), again.encode(rows)
    largest = float(f.abs().max())
    return float((f - g).abs().max()) / largest if largest else float(g.abs().max())
