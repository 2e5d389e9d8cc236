"""Read and write SAEs of SAELens since v3: ``cfg.json`` and ``sae_weights.safetensors``.

Before version 6 the architecture was always ``standard``, whatever the activation function; the
normalisation of inputs was a boolean, and hooks were called hook points. In training checkpoints
the scales are not yet multiplied into the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from husai.boundary import Settings, read_safetensors
from husai.errors import InputError
from husai.sae.architectures import architecture
from husai.sae.formats.declared import take
from husai.sae.formats.reading import (
    Choice,
    Contract,
    ForeignSAE,
    Hints,
    InputNorm,
    Reading,
    Weights,
    decoder_only,
    layer_of,
    whole_sae,
)
from husai.sae.formats.writing import write_json, write_safetensors
from husai.sae.trained import TrainedSAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

VERSION = "6.54.0"
"""Version of SAELens whose layout is written."""

_DECODER = {"W_dec": "Fd", "b_dec": "d"}
_PLAIN = {"W_enc": "dF", "b_enc": "F", **_DECODER}
_TENSORS = {
    "standard": _PLAIN,
    "topk": _PLAIN,
    "abstopk": _PLAIN,
    "batchtopk": {**_PLAIN, "topk_threshold": ""},
    "matryoshka_batchtopk": {**_PLAIN, "topk_threshold": ""},
    "jumprelu": {**_PLAIN, "threshold": "F", "log_threshold": "F"},
    "gated": {"W_enc": "dF", "b_gate": "F", "b_mag": "F", "r_mag": "F", **_DECODER},
}
_OPTIONAL = ("threshold", "log_threshold", "scaling_factor", "finetuning_scaling_factor")
_SIZES = {"b_enc": "F", "b_gate": "F", "threshold": "F"}
_TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)


def found_in(folder: Path) -> bool:
    """Whether the folder holds an SAE of this kind."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(path: Path, hints: Hints) -> Reading:
    """Read the folder ``path``.

    Raises
    ------
    InputError
        When it is broken, or its architecture has no decoder as an SAE has.
    """
    cfg = Settings.of(path / CONFIG)
    weights = path / WEIGHTS
    tensors, _ = read_safetensors(weights)
    name, k = _architecture(cfg)
    if name == "temporal":
        raise InputError(
            f"{cfg.path}: architecture 'temporal' predicts each row from those before it; it is "
            "not an SAE of single rows and is not read"
        )
    contract = _contract(cfg)
    if name in _TRANSCODERS:
        found = take(weights, tensors, {"b_enc": "F", "W_dec": "Fo", "b_dec": "o"}, ("b_enc",))
        _check_sizes(cfg, found["W_dec"], "d_out")
        contract = replace(contract, space="output")
        why = f"{name}: it writes other activations than it reads"
        return decoder_only(path, "saelens", found["W_dec"], why, contract, name)
    known = name in _TENSORS
    declared = _TENSORS[name] if known else {**_SIZES, **_DECODER}
    optional = _OPTIONAL if known else tuple(_SIZES)
    factors = {"scaling_factor": "F", "finetuning_scaling_factor": "F"}
    found = take(weights, tensors, {**declared, **factors}, (*optional, *factors))
    _check_sizes(cfg, found["W_dec"], "d_in")
    if not known:
        return decoder_only(
            path, "saelens", found["W_dec"], f"{name}: codes of this kind are not read", contract
        )
    reading = _scaled(path, cfg, name, k, found, contract, hints)
    return replace(reading, architecture=name)


def _architecture(cfg: Settings) -> tuple[str, float | None]:
    """Return the architecture; in old configurations the activation function determines it."""
    name = cfg.text("architecture") or "standard"
    function = cfg.first_text("activation_fn", "activation_fn_str") or "relu"
    k = cfg.number("k")
    if k is None:
        k = cfg.group("activation_fn_kwargs").number("k")
    if function == "topk" and name == "standard":
        name = "topk"
    elif function not in ("relu", "topk") or (function == "topk" and name not in ("topk",)):
        name = f"{name} with activation_fn {function}"
    if name == "topk" and cfg.group("activation_fn_kwargs").flag("signed", False):
        name = "abstopk"
    return name, k


def _check_sizes(cfg: Settings, W_dec: torch.Tensor, width: str) -> None:
    cfg.agrees("d_sae", W_dec.shape[0])
    cfg.agrees(width, W_dec.shape[1])


def _contract(cfg: Settings) -> Contract:
    """Read model and hook from the metadata, or from the fields of older versions."""
    meta = cfg.group("metadata")
    places = (meta, cfg)

    def text(*names: str) -> str | None:
        return next((found for place in places if (found := place.first_text(*names))), None)

    hook = text("hook_name", "hook_point")
    reshape = cfg.text("reshape_activations")
    if reshape not in (None, "none", "hook_z"):
        raise cfg.bad("reshape_activations", "none or hook_z")
    if reshape == "hook_z" and hook is not None and not hook.endswith("_z"):
        raise cfg.bad("reshape_activations", f"none: {hook} has no heads")
    if reshape is None and hook is not None and "hook_z" in hook:
        reshape = "hook_z"
    layer = layer_of(hook)
    if layer is None:
        stated = next((p.number(n) for p in places for n in ("hook_layer",) if n in p), None)
        layer = None if stated is None else int(stated)
    positions = meta.data.get("seqpos_slice") or cfg.data.get("seqpos_slice")
    sliced = isinstance(positions, list) and any(part is not None for part in positions)
    return Contract(
        model=text("model_name"),
        hook=hook,
        hook_out=text("hook_name_out"),
        layer=layer,
        position=str(positions) if sliced else None,
        scale="none",
        reshape=None if reshape == "none" else reshape,
    )


def _scaled(
    path: Path,
    cfg: Settings,
    name: str,
    k: float | None,
    found: Mapping[str, torch.Tensor],
    contract: Contract,
    hints: Hints,
) -> Reading:
    """Multiply the scales that SAELens applies at run time into the weights."""
    norm, factor, whitening = _input(path, cfg, hints)
    scale = norm if factor is None else f"{factor:.6g}"
    if whitening is not None:
        scale = "covariance_whitening"
    if norm == "unknown":
        reason = "its input scale is not in its files; give it (input_scale=..., --input-scale)"
        contract = replace(contract, scale="unknown")
        return decoder_only(path, "saelens", found["W_dec"], reason, contract)
    contract = replace(contract, scale=scale)
    weights, settings, choice, reason = _function(cfg, name, k, found, hints)
    if not cfg.flag("apply_b_dec_to_input", True):
        weights = weights.reading_raw_rows()
    if factor is not None:
        weights = weights.scaled(factor)
    if whitening is not None:
        weights = _unwhitened(weights, whitening)
    stretch = found.get("scaling_factor", found.get("finetuning_scaling_factor"))
    if stretch is not None and not torch.allclose(stretch, torch.ones_like(stretch)):
        if not cfg.flag("finetuning_scaling_factor", False):
            reason = "it holds a scaling_factor that its configuration does not mention"
        weights = replace(weights, W_dec=weights.W_dec * stretch[:, None])
    if reason:
        return decoder_only(path, "saelens", weights.W_dec, reason, contract)
    return whole_sae(
        path,
        "saelens",
        weights,
        settings,
        contract,
        input_norm=norm if norm in ("layer_norm", "unit_norm") else "none",
        choice=choice,
    )


def _input(
    path: Path, cfg: Settings, hints: Hints
) -> tuple[Any, float | None, dict[str, torch.Tensor] | None]:
    """Return how rows are transformed first: a norm per row, a factor, or an affine map."""
    stated = cfg.data.get("normalize_activations")
    if stated in (None, "none") or stated is False:
        return "none", None, None
    rows: dict[str, InputNorm] = {"layer_norm": "layer_norm", "constant_norm_rescale": "unit_norm"}
    if stated in rows:
        return rows[stated], None, None
    if stated is True or stated in ("expected_average_only_in", "constant_scalar_rescale"):
        factor = cfg.number("activation_normalization_factor")
        if factor is None and (path / SCALER).is_file():
            factor = Settings.of(path / SCALER).number("scaling_factor")
        factor = hints.input_scale if factor is None else factor
        if factor is None:
            return "unknown", None, None
        if factor <= 0:
            raise InputError(f"{path}: input scale {factor}; give a number above 0")
        return "none", factor, None
    if stated == "covariance_whitening":
        if not (path / WHITENING).is_file():
            raise InputError(
                f"{cfg.path}: normalize_activations covariance_whitening, and no {WHITENING} "
                "beside it: decoder rows are directions of whitened rows, which cannot be undone"
            )
        tensors, _ = read_safetensors(path / WHITENING)
        maps = {"mean": "d", "matrix": "dd", "inverse_matrix": "dd"}
        return "none", None, take(path / WHITENING, tensors, maps)
    raise cfg.bad(
        "normalize_activations",
        "none, expected_average_only_in, constant_norm_rescale, layer_norm or covariance_whitening",
    )


def _unwhitened(weights: Weights, maps: Mapping[str, torch.Tensor]) -> Weights:
    """Convert weights of an SAE of ``(x − mean) @ matrix`` to weights for x."""
    M, back, mean = (maps[n].double() for n in ("matrix", "inverse_matrix", "mean"))
    return replace(
        weights,
        W_enc=(M @ weights.W_enc.double()).float(),
        W_dec=(weights.W_dec.double() @ back).float(),
        b_dec=(weights.b_dec.double() @ back + mean).float(),
    )


def _function(
    cfg: Settings, name: str, k: float | None, found: Mapping[str, torch.Tensor], hints: Hints
) -> tuple[Weights, dict[str, Any], Choice, str]:
    """Return weights, settings, choice of latents, and the reason if codes cannot be computed."""
    if name == "gated":
        # f = [πenc + b_gate > 0] · relu(e^r · πenc + b_mag), with πenc before either bias: a
        # threshold on the magnitude's own pre-activation
        size = found["r_mag"].exp()
        weights = Weights(
            found["W_enc"] * size,
            found["b_mag"],
            found["W_dec"],
            found["b_dec"],
            found["b_mag"] - size * found["b_gate"],
        )
        return weights, {"architecture": "jumprelu", "l0_coefficient": 0.0}, "own", ""
    weights = Weights.named(found)
    batch = name in ("batchtopk", "matryoshka_batchtopk")
    if cfg.flag("rescale_acts_by_decoder_norm", batch):
        weights = weights.unit_rows()
    if name == "standard":
        return weights, {"architecture": "relu", "l1_coefficient": 0.0}, "own", ""
    if name in ("topk", "abstopk"):
        given = _whole(cfg, k, hints)
        choice: Choice = "signed" if name == "abstopk" else "own"
        return weights, {"architecture": "topk", "k": given}, choice, ""
    if batch:
        weights = weights.thresholds(float(found["topk_threshold"]))
        reason = ""
        if float(found["topk_threshold"]) <= 0:
            reason = "its topk_threshold was not measured yet when it was saved"
        return weights, _batch_settings(cfg, name, k, len(found["W_dec"])), "own", reason
    if weights.threshold is None:
        if "log_threshold" not in found:
            raise InputError(f"{cfg.path.parent / WEIGHTS}: tensors missing: threshold")
        weights = replace(weights, threshold=found["log_threshold"].exp())
    return weights, {"architecture": "jumprelu", "l0_coefficient": 0.0}, "own", ""


def _whole(cfg: Settings, k: float | None, hints: Hints) -> int | None:
    if k is None:
        return hints.k
    if k != int(k) or k <= 0:
        raise InputError(f"{cfg.path}: k: {k}; expected a whole number above 0")
    return int(k)


def _batch_settings(cfg: Settings, name: str, k: float | None, d_sae: int) -> dict[str, Any]:
    """Settings of an SAE that selects by a threshold: its k is a mean, and may be a fraction."""
    if k is None or k != int(k) or k <= 0:
        return {"architecture": "jumprelu", "l0_coefficient": 0.0}
    settings: dict[str, Any] = {"architecture": "batch_topk", "k": int(k)}
    widths = cfg.data.get("matryoshka_widths")
    if name == "matryoshka_batchtopk" and isinstance(widths, list) and widths:
        if not all(isinstance(w, int) and 0 < w <= d_sae for w in widths):
            raise cfg.bad("matryoshka_widths", f"whole numbers up to {d_sae}")
        ends = tuple(sorted({*(w / d_sae for w in widths), 1.0}))
        settings |= {"architecture": "matryoshka_batch_topk", "matryoshka_fractions": ends}
    return settings


def write(sae: TrainedSAE, path: Path) -> None:
    """Write a folder that SAELens loads: relu, topk, and all others by their thresholds."""
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    contract = sae.provenance.get("contract", {})
    names = {"model": "model_name", "hook": "hook_name"}
    cfg: dict[str, Any] = {
        "architecture": "standard",
        "d_in": sae.d_in,
        "d_sae": sae.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": contract.get("reshape") or "none",
        "metadata": {"sae_lens_version": VERSION}
        | {names[name]: contract[name] for name in names if contract.get(name)},
    }
    topk: dict[str, Any] = {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    if sae.threshold is not None:
        cfg["architecture"] = "jumprelu"
        tensors["threshold"] = sae.threshold
    elif architecture(sae.config.architecture).selection == "row":
        cfg |= {"architecture": "topk", **topk}
    if isinstance(sae, ForeignSAE):
        if sae.choice == "groups":
            raise InputError("groupmax does not exist in SAELens; convert to sparsify")
        if sae.choice == "signed":
            cfg |= {"architecture": "abstopk", **topk}
        norms = {"unit_norm": "constant_norm_rescale"}
        cfg["normalize_activations"] = norms.get(sae.input_norm, sae.input_norm)
    write_safetensors(path / WEIGHTS, tensors)
    write_json(path / CONFIG, cfg)
