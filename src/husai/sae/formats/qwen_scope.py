"""Read Qwen Scope's TopK SAEs: ``layerN.sae.pt``; only the name of the repository says k.

Their matrices are transposed compared with other projects, and the decoder bias is not subtracted.
"""

from __future__ import annotations

import re
from pathlib import Path

from husai.boundary import read_pt
from husai.sae.formats.declared import take
from husai.sae.formats.reading import Contract, Hints, Reading, Weights, whole_sae

_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_REPOSITORY = re.compile(r"SAE-Res-(.+?)-W(\d+)K-L0_(\d+)")
_TENSORS = {"W_enc": "Fd", "b_enc": "F", "W_dec": "dF", "b_dec": "d"}


def named(path: Path) -> bool:
    """Whether the file has a name of this kind."""
    return _FILE.fullmatch(path.name) is not None


def read(path: Path, hints: Hints) -> Reading:
    """Read the file ``path``.

    Raises
    ------
    InputError
        When it is broken, or neither its folders nor the user give its k.
    """
    found = take(path, read_pt(path), _TENSORS)
    weights = Weights(found["W_enc"].T, found["b_enc"], found["W_dec"].T, found["b_dec"])
    file, repository = _FILE.fullmatch(path.name), _REPOSITORY.search(str(path.absolute()))
    layer = int(file.group(1)) if file else None
    contract = Contract(
        model=f"Qwen/{repository.group(1)}" if repository else None,
        hook=None if layer is None else f"blocks.{layer}.hook_resid_post",
        layer=layer,
        scale="none",
    )
    k = int(repository.group(3)) if repository else hints.k
    settings = {"architecture": "topk", "k": k}
    weights = weights.reading_raw_rows()
    return whole_sae(path, "qwen_scope", weights, settings, contract, architecture="topk")
