"""Read Goodfire's ReLU SAEs: one state dict of two linear layers; no bias is subtracted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from husai.boundary import read_pt
from husai.sae.formats.declared import take
from husai.sae.formats.reading import Contract, Hints, Reading, Weights, whole_sae

_FILE = re.compile(r"(.+)-SAE-l(\d+)")
_TENSORS = {
    "encoder_linear.weight": "Fd",
    "encoder_linear.bias": "F",
    "decoder_linear.weight": "dF",
    "decoder_linear.bias": "d",
}


def holds(content: dict[str, Any]) -> bool:
    """Whether a state dict is of this kind."""
    return "encoder_linear.weight" in content and "decoder_linear.weight" in content


def read(path: Path, hints: Hints) -> Reading:
    """Read the file ``path``.

    Raises
    ------
    InputError
        When it is broken.
    """
    found = take(path, read_pt(path), _TENSORS)
    weights = Weights(
        found["encoder_linear.weight"].T,
        found["encoder_linear.bias"],
        found["decoder_linear.weight"].T,
        found["decoder_linear.bias"],
    )
    name = _FILE.fullmatch(path.stem)
    layer = int(name.group(2)) if name else None
    contract = Contract(
        model=name.group(1) if name else None,
        hook=None if layer is None else f"blocks.{layer}.hook_resid_post",
        layer=layer,
        scale="none",
    )
    settings: dict[str, Any] = {"architecture": "relu", "l1_coefficient": 0.0}
    weights = weights.reading_raw_rows()
    return whole_sae(path, "goodfire", weights, settings, contract, architecture="relu")
