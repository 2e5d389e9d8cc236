"""Read Gemma Scope's JumpReLU SAEs: ``params.npz``, or ``params.safetensors`` (Gemma Scope 2).

Neither subtracts its decoder bias from the input. Gemma Scope has no configuration: the names of
its folders say model, hook and layer.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from husai.boundary import Settings, read_npz, read_safetensors, real_tensor
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

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"

_TENSORS = {"W_enc": "dF", "b_enc": "F", "W_dec": "Fd", "b_dec": "d", "threshold": "F"}
_TRANSCODER = {"b_enc": "F", "threshold": "F", "W_dec": "Fo", "b_dec": "o"}
_CROSS_LAYER = {"b_enc": "F", "threshold": "F", "W_dec": "FLo"}
_MODEL = re.compile(r"gemma-scope-(2-)?(\d+[bm](?:-(?:pt|it))?)")
_SITES = {
    "resid_post": "hook_resid_post",
    "-res": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "-att": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
    "-mlp": "hook_mlp_out",
}


def found_in(folder: Path) -> bool:
    """Whether the folder holds an SAE of this kind."""
    return (folder / FIRST).is_file() or (folder / SECOND).is_file()


def read(path: Path, hints: Hints) -> Reading:
    """Read the folder ``path``.

    Raises
    ------
    InputError
        When it is broken.
    """
    origin = path / (FIRST if (path / FIRST).is_file() else SECOND)
    if origin.name == FIRST:
        raw: dict[str, Any] = {n: real_tensor(origin, n, a) for n, a in read_npz(origin).items()}
    else:
        raw, _ = read_safetensors(origin)
    tensors = {f"W_{n[2:]}" if n.startswith("w_") else n: tensor for n, tensor in raw.items()}
    cfg = Settings.of(path / CONFIG) if (path / CONFIG).is_file() else Settings(path, {})
    kind = cfg.text("architecture") or "jump_relu"
    contract = _contract(path, cfg)
    decoder = tensors.get("W_dec")
    if isinstance(decoder, torch.Tensor) and decoder.dim() == 3:
        found = take(origin, tensors, _CROSS_LAYER, optional=("b_enc", "threshold"))
        why = "a cross-layer transcoder: it writes to several layers"
        W_dec = found["W_dec"].flatten(1)
        return _only(path, W_dec, why, replace(contract, space="layers"))
    if contract.space == "output" or "affine_skip_connection" in tensors:
        found = take(origin, tensors, _TRANSCODER, optional=("b_enc", "threshold"))
        cfg.agrees("width", len(found["W_dec"]))
        why = "a transcoder: it writes other activations than it reads"
        return _only(path, found["W_dec"], why, replace(contract, space="output"))
    found = take(origin, tensors, _TENSORS)
    cfg.agrees("width", len(found["W_dec"]))
    weights = Weights.named(found)
    if "embedding" in _published_name(path):
        # SAEs of the embedding were trained on rows multiplied by √d
        weights = replace(
            weights,
            W_enc=weights.W_enc / math.sqrt(len(weights.b_dec)),
            W_dec=weights.W_dec * math.sqrt(len(weights.b_dec)),
        )
    if kind != "jump_relu":
        return _only(path, weights.W_dec, f"{kind}: codes of this kind are not read", contract)
    settings = {"architecture": "jumprelu", "l0_coefficient": 0.0}
    weights = weights.reading_raw_rows()
    return whole_sae(path, "gemma_scope", weights, settings, contract, architecture="jumprelu")


def _only(path: Path, W_dec: torch.Tensor, why: str, contract: Contract) -> Reading:
    return decoder_only(path, "gemma_scope", W_dec, why, contract, "transcoder")


def _published_name(path: Path) -> str:
    """Return the folders from the suite's repository on, or the last three."""
    parts = path.absolute().parts
    start = next((i for i, part in enumerate(parts) if "gemma-scope" in part), len(parts) - 3)
    return "/".join(parts[max(start, 0) :])


def _contract(path: Path, cfg: Settings) -> Contract:
    """Read the contract from the configuration, or from the names of the folders above."""
    name = _published_name(path)
    parts = name.replace("--", "/").split("/")
    layer = layer_of(*reversed(parts))
    found = _MODEL.search(name)
    model = cfg.text("model_name")
    if model is None and found:
        model = f"gemma-{'3' if found.group(1) else '2'}-{found.group(2)}"
    reads, writes = cfg.text("hf_hook_point_in"), cfg.text("hf_hook_point_out")
    transcodes = writes is not None and writes != reads
    transcodes = transcodes or "transcoder" in name or re.search(r"(^|[/_-])clt", name) is not None
    site = next((hook for word, hook in _SITES.items() if word in name), None)
    hook = f"blocks.{layer}.{site}" if site is not None and layer is not None else reads
    if transcodes:
        hook = reads or (None if layer is None else f"blocks.{layer}.hook_mlp_in")
    return Contract(
        model=model,
        hook=hook,
        hook_out=writes if transcodes else None,
        layer=layer_of(reads) if layer is None else layer,
        scale="none",
        space="output" if transcodes else "input",
    )
