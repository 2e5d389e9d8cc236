"""Read SAEs of OpenAI's sparse_autoencoder: a state dict with ``pre_bias`` and ``latent_bias``.

Their TopK SAEs centre each row and divide it by its standard deviation first; the others do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from husai.boundary import Settings, read_pt
from husai.sae.formats.declared import take
from husai.sae.formats.reading import (
    Contract,
    Hints,
    Reading,
    Weights,
    decoder_only,
    layer_of,
    whole_sae,
)

_TENSORS = {
    "encoder.weight": "Fd",
    "latent_bias": "F",
    "decoder.weight": "dF",
    "pre_bias": "d",
}


def holds(content: dict[str, Any]) -> bool:
    """Whether a state dict is of this kind."""
    return "pre_bias" in content and "latent_bias" in content


def read(path: Path, hints: Hints) -> Reading:
    """Read the file ``path``.

    Raises
    ------
    InputError
        When it is broken.
    """
    content = read_pt(path)
    settings = Settings(path, content)
    name = settings.text("activation") or "ReLU"
    state = settings.group("activation_state_dict")
    if "decoder.weight" not in content and isinstance(content.get("encoder.weight"), torch.Tensor):
        # a tied decoder is the encoder's transpose
        content["decoder.weight"] = content["encoder.weight"].T
    found = take(path, content, _TENSORS)
    weights = Weights(
        found["encoder.weight"].T,
        found["latent_bias"],
        found["decoder.weight"].T,
        found["pre_bias"],
    )
    contract = Contract(layer=layer_of(path.parent.name, path.stem), scale="none")
    if name == "ReLU":
        relu: dict[str, Any] = {"architecture": "relu", "l1_coefficient": 0.0}
        return whole_sae(path, "openai", weights, relu, contract, architecture=name)
    contract = Contract(layer=contract.layer, scale="layer_norm")
    after = state.text("postact_fn") or "ReLU"
    if name != "TopK" or after != "ReLU":
        reason = f"activation {name} with {after}: codes of this kind are not read"
        return decoder_only(path, "openai", weights.W_dec, reason, contract, name)
    stated = state.whole("k")
    topk = {"architecture": "topk", "k": hints.k if stated is None else stated}
    return whole_sae(
        path, "openai", weights, topk, contract, architecture=name, input_norm="layer_norm"
    )
