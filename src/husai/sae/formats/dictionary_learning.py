"""Read and write SAEs of dictionary_learning: a folder with ``ae.pt`` and ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from husai.boundary import Settings, read_pt
from husai.errors import InputError
from husai.sae.architectures import architecture
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
from husai.sae.formats.writing import refuse_foreign, write_json, write_pt
from husai.sae.trained import TrainedSAE

CONFIG, WEIGHTS = "config.json", "ae.pt"

_LINEAR = {"encoder.weight": "Fd", "encoder.bias": "F", "decoder.weight": "dF"}
_NAMED = {"W_enc": "dF", "b_enc": "F", "W_dec": "Fd", "b_dec": "d"}
_TENSORS = {
    "AutoEncoder": {**_LINEAR, "bias": "d"},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "d"},
    "AutoEncoderTopK": {**_LINEAR, "b_dec": "d", "k": ""},
    "BatchTopKSAE": {**_LINEAR, "b_dec": "d", "k": "", "threshold": ""},
    "MatryoshkaBatchTopKSAE": {**_NAMED, "k": "", "threshold": "", "group_sizes": "G"},
    "JumpReluAutoEncoder": {**_NAMED, "threshold": "F"},
    "GatedAutoEncoder": {
        "encoder.weight": "Fd",
        "r_mag": "F",
        "gate_bias": "F",
        "mag_bias": "F",
        "decoder.weight": "dF",
        "decoder_bias": "d",
    },
}
_CROSSCODER = {"encoder.bias": "F", "decoder.weight": "LFd", "decoder.bias": "Ld"}


def found_in(folder: Path) -> bool:
    """Whether the folder holds an SAE of this kind."""
    return (folder / WEIGHTS).is_file()


def is_checkpoint(path: Path) -> bool:
    """Whether the file is one of the checkpoints that are written beside ``ae.pt``."""
    return path.name.startswith("ae_") and (path.parent.parent / CONFIG).is_file()


def read(path: Path, hints: Hints) -> Reading:
    """Read the folder ``path``, or a checkpoint ``ae_STEP.pt`` of one.

    Raises
    ------
    InputError
        When it is broken, or its class is not known.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    folders = (weights.parent, weights.parent.parent)
    config = Settings.of(
        next((f / CONFIG for f in folders if (f / CONFIG).is_file()), weights.parent / CONFIG)
    )
    trainer = config.group("trainer")
    kind = trainer.text("dict_class")
    if kind is None:
        raise InputError(
            f"{config.path}: no trainer.dict_class; give the configuration of training"
        )
    tensors = read_pt(weights)
    contract = Contract(
        model=trainer.text("lm_name"),
        hook=trainer.text("submodule_name"),
        layer=_layer(trainer),
        scale="none",
    )
    decoder = tensors.get("decoder.weight")
    if "crosscoder" in kind.lower() and isinstance(decoder, torch.Tensor) and decoder.dim() == 3:
        return _crosscoder(weights, tensors, kind, contract)
    if kind not in _TENSORS:
        raise InputError(
            f"{config.path}: trainer.dict_class {kind!r} is not one of {', '.join(_TENSORS)}"
        )
    found = take(weights, tensors, _TENSORS[kind], optional=("k",))
    parts, settings, reason = _function(kind, found, trainer, weights, hints)
    trainer.agrees("activation_dim", parts.W_dec.shape[1])
    trainer.agrees("dict_size", parts.W_dec.shape[0])
    if reason:
        return decoder_only(path, "dictionary_learning", parts.W_dec, reason, contract, kind)
    return whole_sae(path, "dictionary_learning", parts, settings, contract, architecture=kind)


def _layer(trainer: Settings) -> int | None:
    layer = trainer.number("layer")
    return layer_of(trainer.text("submodule_name")) if layer is None else int(layer)


def _function(
    kind: str,
    found: Mapping[str, torch.Tensor],
    trainer: Settings,
    origin: Path,
    hints: Hints,
) -> tuple[Weights, dict[str, Any], str]:
    """Return weights, settings, and the reason if the codes cannot be computed."""
    jumprelu: dict[str, Any] = {"architecture": "jumprelu", "l0_coefficient": 0.0}
    relu: dict[str, Any] = {"architecture": "relu", "l1_coefficient": 0.0}
    if kind == "AutoEncoder":
        return Weights.linear(found, "bias"), relu, ""
    if kind == "AutoEncoderNew":
        return Weights.linear(found, "decoder.bias").reading_raw_rows(), relu, ""
    if kind == "JumpReluAutoEncoder":
        return Weights.named(found).reading_raw_rows(), jumprelu, ""
    if kind == "GatedAutoEncoder":
        size = found["r_mag"].exp()
        weights = Weights(
            found["encoder.weight"].T * size,
            found["mag_bias"],
            found["decoder.weight"].T,
            found["decoder_bias"],
            found["mag_bias"] - size * found["gate_bias"],
        )
        return weights, jumprelu, ""
    k = _k(trainer, found, origin, hints)
    if kind == "AutoEncoderTopK":
        return Weights.linear(found, "b_dec"), {"architecture": "topk", "k": k}, ""
    value = float(found["threshold"])
    # dictionary_learning writes −1 before a threshold was measured
    reason = f"threshold {value:g}: it was saved before one was measured" if value < 0 else ""
    if kind == "BatchTopKSAE":
        weights = Weights.linear(found, "b_dec").thresholds(value)
        return weights, {"architecture": "batch_topk", "k": k}, reason
    weights = Weights.named({n: t for n, t in found.items() if n != "threshold"}).thresholds(value)
    settings = {
        "architecture": "matryoshka_batch_topk",
        "k": k,
        "matryoshka_fractions": _fractions(origin, found["group_sizes"], len(found["W_dec"])),
    }
    return weights, settings, reason


def _fractions(origin: Path, sizes: torch.Tensor, d_sae: int) -> tuple[float, ...]:
    if int(sizes.sum()) != d_sae or bool((sizes <= 0).any()):
        raise InputError(f"{origin}: group_sizes {sizes.tolist()} do not add up to {d_sae}")
    ends = sizes.double().cumsum(0) / d_sae
    return (*ends[:-1].tolist(), 1.0)


def _k(
    trainer: Settings, found: Mapping[str, torch.Tensor], origin: Path, hints: Hints
) -> int | None:
    """Return k from the configuration, the buffer, or the user."""
    stated = trainer.whole("k")
    if "k" not in found:
        return hints.k if stated is None else stated
    kept = float(found["k"])
    if kept != int(kept) or kept <= 0:
        raise InputError(f"{origin}: k holds {kept:g}; expected a whole number above 0")
    if stated is not None and stated != kept:
        raise InputError(f"{origin}: k is {int(kept)}, but {stated} in {trainer.path.name}")
    return int(kept)


def _crosscoder(path: Path, tensors: Mapping[str, Any], kind: str, contract: Contract) -> Reading:
    """Read a crosscoder's decoder ``[layers, features, d]``; each feature's layers are joined."""
    found = take(path, tensors, _CROSSCODER, optional=("encoder.bias", "decoder.bias"))
    W_dec = found["decoder.weight"].permute(1, 0, 2).flatten(1)
    why = f"{kind}: it reads and writes several layers at once"
    contract = replace(contract, space="layers")
    return decoder_only(path, "dictionary_learning", W_dec, why, contract, kind)


def write(sae: TrainedSAE, path: Path) -> None:
    """Write a folder that dictionary_learning loads; it has a class for every architecture."""
    refuse_foreign(sae, "dictionary_learning")
    entry = architecture(sae.config.architecture)
    contract = sae.provenance.get("contract", {})
    trainer: dict[str, Any] = {"activation_dim": sae.d_in, "dict_size": sae.config.d_sae}
    for theirs, ours in (("lm_name", "model"), ("layer", "layer"), ("submodule_name", "hook")):
        if contract.get(ours) is not None:
            trainer[theirs] = contract[ours]
    linear = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
    }
    named = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if entry.selection == "all":
        trainer["dict_class"] = "AutoEncoder"
        tensors = linear | {"bias": sae.b_dec}
    elif entry.selection == "threshold":
        assert sae.threshold is not None
        trainer["dict_class"] = "JumpReluAutoEncoder"
        tensors = named | {"threshold": sae.threshold}
        # its encoder reads x itself
        tensors["b_enc"] = sae.b_enc - sae.b_dec @ sae.W_enc
    else:
        assert sae.config.k is not None
        trainer["k"] = sae.config.k
        k = torch.tensor(sae.config.k, dtype=torch.int)
        # dictionary_learning writes −1 before a threshold was measured
        threshold = torch.tensor(-1.0) if sae.threshold is None else sae.threshold[0]
        buffers = {"k": k, "threshold": threshold}
        if entry.nested and entry.selection == "batch":
            trainer["dict_class"] = "MatryoshkaBatchTopKSAE"
            ends = torch.tensor([0, *sae.config.prefixes])
            tensors = named | buffers | {"group_sizes": ends.diff()}
        else:
            batch = entry.selection == "batch"
            trainer["dict_class"] = "BatchTopKSAE" if batch else "AutoEncoderTopK"
            tensors = linear | buffers | {"b_dec": sae.b_dec}
    write_pt(path / WEIGHTS, tensors)
    write_json(path / CONFIG, {"trainer": trainer})
