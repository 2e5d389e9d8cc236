"""Read Llama Scope and later SAEs of the same library: a configuration and a safetensors file.

The first ones have ``hyperparams.json`` and ``checkpoints/final.safetensors``; later ones
``config.json`` and ``sae_weights.safetensors``, with other names for the same tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from husai.boundary import Settings, read_safetensors
from husai.errors import InputError
from husai.sae.formats.declared import take
from husai.sae.formats.reading import (
    Contract,
    Hints,
    InputNorm,
    Reading,
    Weights,
    decoder_only,
    layer_of,
    whole_sae,
)

LAYOUTS = (
    ("hyperparams.json", "checkpoints/final.safetensors"),
    ("config.json", "sae_weights.safetensors"),
)

_SHORT = {
    "W_E": "encoder.weight",
    "b_E": "encoder.bias",
    "W_D": "decoder.weight",
    "b_D": "decoder.bias",
    "activation_function.log_jumprelu_threshold": "log_jumprelu_threshold",
}
_TENSORS = {"encoder.weight": "Fd", "encoder.bias": "F", "decoder.weight": "dF"}
_SHORT_MATRICES = {"encoder.weight": "dF", "encoder.bias": "F", "decoder.weight": "Fd"}


def found_in(folder: Path) -> bool:
    """Whether the folder holds an SAE of this kind."""
    return _layout(folder) is not None


def _layout(folder: Path) -> tuple[Path, Path] | None:
    for config, weights in LAYOUTS:
        if (folder / config).is_file() and (folder / weights).is_file():
            return folder / config, folder / weights
    return None


def read(path: Path, hints: Hints) -> Reading:
    """Read the folder ``path``.

    Raises
    ------
    InputError
        When it is broken, or scaled by a norm that its files do not state.
    """
    place = _layout(path)
    if place is None:
        raise InputError(f"{path}: no {LAYOUTS[0][0]} with {LAYOUTS[0][1]} here")
    cfg, origin = Settings.of(place[0]), place[1]
    raw, _ = read_safetensors(origin)
    short = "W_D" in raw
    tensors = {_SHORT.get(name, name): tensor for name, tensor in raw.items()}
    reads, writes = cfg.text("hook_point_in"), cfg.text("hook_point_out")
    transcodes = writes is not None and writes != reads
    contract = Contract(
        model=cfg.text("model_name"),
        hook=reads,
        hook_out=writes if transcodes else None,
        layer=layer_of(reads),
        space="output" if transcodes else "input",
    )
    declared = _SHORT_MATRICES if short else _TENSORS
    extra = {"decoder.bias": "d", "log_jumprelu_threshold": "F"}
    if transcodes:
        letters = "Fo" if short else "oF"
        declared = {"encoder.bias": "F", "decoder.weight": letters}
        extra = {"decoder.bias": "o"}
    found = take(origin, tensors, {**declared, **extra}, optional=tuple(extra))
    W_dec = found["decoder.weight"] if short else found["decoder.weight"].T
    cfg.agrees("d_sae", W_dec.shape[0])
    cfg.agrees("d_model", W_dec.shape[1])
    if transcodes:
        why = "a transcoder: it writes other activations than it reads"
        return decoder_only(path, "llama_scope", W_dec, why, contract, "transcoder")
    W_enc = found["encoder.weight"] if short else found["encoder.weight"].T
    b_dec = found.get("decoder.bias", torch.zeros(W_dec.shape[1]))
    weights = Weights(W_enc, found["encoder.bias"], W_dec, b_dec)
    return _folded(path, cfg, weights, found, contract, hints)


def _folded(
    path: Path,
    cfg: Settings,
    weights: Weights,
    found: Mapping[str, torch.Tensor],
    contract: Contract,
    hints: Hints,
) -> Reading:
    """Fold the norms of decoder and data into the weights."""
    name = (cfg.text("act_fn") or "relu").lower()
    norm, factor = _input(cfg, len(weights.b_dec), contract, hints)
    if norm == "unknown":
        reason = "the norm of its data is not in its files; give the scale (--input-scale)"
        contract = replace(contract, scale="unknown")
        return decoder_only(path, "llama_scope", weights.W_dec, reason, contract, name)
    contract = replace(contract, scale=norm if factor is None else f"{factor:.6g}")
    # latents are selected by the pre-activation times the decoder's norm
    if cfg.flag("sparsity_include_decoder_norm", True):
        weights = weights.unit_rows()
    settings: dict[str, Any] = {"architecture": "relu", "l1_coefficient": 0.0}
    reason = "its encoder is gated (use_glu_encoder)" if cfg.flag("use_glu_encoder", False) else ""
    if name == "jumprelu":
        settings = {"architecture": "jumprelu", "l0_coefficient": 0.0}
        weights = _with_threshold(cfg, weights, found)
    elif name == "topk":
        stated = cfg.whole("top_k")
        settings = {"architecture": "topk", "k": hints.k if stated is None else stated}
    elif name != "relu":
        reason = f"act_fn {name}: codes of this kind are not read"
    if not cfg.flag("apply_decoder_bias_to_pre_encoder", False):
        weights = weights.reading_raw_rows()
    if factor is not None:
        weights = weights.scaled(factor)
    if reason:
        return decoder_only(path, "llama_scope", weights.W_dec, reason, contract, name)
    rows: InputNorm = "unit_norm" if norm == "unit_norm" else "none"
    return whole_sae(
        path, "llama_scope", weights, settings, contract, architecture=name, input_norm=rows
    )


def _with_threshold(cfg: Settings, weights: Weights, found: Mapping[str, torch.Tensor]) -> Weights:
    if "log_jumprelu_threshold" in found:
        return replace(weights, threshold=found["log_jumprelu_threshold"].exp())
    value = cfg.number("jump_relu_threshold")
    if value is None:
        raise InputError(f"{cfg.path}: act_fn jumprelu, and no jump_relu_threshold")
    return weights.thresholds(value)


def _input(cfg: Settings, d: int, contract: Contract, hints: Hints) -> tuple[str, float | None]:
    """Return how rows are scaled before the encoder, and the factor."""
    kind = cfg.text("norm_activation")
    norms = cfg.group("dataset_average_activation_norm")
    if kind in ("none", "inference"):
        return "none", None
    if kind == "token-wise":
        return "unit_norm", None
    if kind not in (None, "dataset-wise"):
        raise cfg.bad("norm_activation", "dataset-wise, token-wise, inference or none")
    names = ("in", contract.hook or "in")
    norm = next((norms.number(name) for name in names if name in norms), None)
    if norm is not None:
        if norm <= 0:
            raise cfg.bad("dataset_average_activation_norm", "numbers above 0")
        return "none", math.sqrt(d) / norm
    if hints.input_scale is not None:
        return "none", hints.input_scale
    return ("none", None) if kind is None else ("unknown", None)
