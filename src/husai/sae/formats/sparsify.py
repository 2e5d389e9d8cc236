"""Read and write SAEs of sparsify: a folder per hook with ``cfg.json`` and ``sae.safetensors``.

A run with several seeds has a folder ``seedN`` below each hook point.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from husai.boundary import Settings, read_json, read_safetensors
from husai.errors import InputError
from husai.sae.architectures import architecture
from husai.sae.formats.declared import take
from husai.sae.formats.reading import (
    Choice,
    Contract,
    ForeignSAE,
    Hints,
    Reading,
    Weights,
    decoder_only,
    layer_of,
    whole_sae,
)
from husai.sae.formats.writing import refuse_foreign, write_json, write_safetensors
from husai.sae.trained import TrainedSAE

CONFIG, WEIGHTS, RUN_CONFIG = "cfg.json", "sae.safetensors", "config.json"

_TENSORS = {"encoder.weight": "Fd", "encoder.bias": "F", "W_dec": "Fd", "b_dec": "d"}


def found_in(folder: Path) -> bool:
    """Whether the folder holds an SAE of this kind."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(path: Path, hints: Hints) -> Reading:
    """Read the folder ``path``.

    Raises
    ------
    InputError
        When it is broken.
    """
    cfg = Settings.of(path / CONFIG)
    weights = path / WEIGHTS
    tensors, _ = read_safetensors(weights)
    activation = cfg.text("activation") or "topk"
    if activation not in ("topk", "groupmax"):
        raise cfg.bad("activation", "topk or groupmax")
    signed = cfg.flag("signed", False)
    transcodes = cfg.flag("transcode", False)
    skips = cfg.flag("skip_connection", False) or "W_skip" in tensors
    kind = "groupmax" if activation == "groupmax" else "signed topk" if signed else "topk"
    contract = _contract(path)
    if transcodes or skips:
        declared = {"encoder.bias": "F", "W_dec": "Fo", "b_dec": "o"}
        found = take(weights, tensors, declared, optional=("encoder.bias",))
        _check_sizes(cfg, *found["W_dec"].shape)
        contract = replace(contract, space="output" if transcodes else "input")
        why = (
            "a transcoder: it writes other activations than it reads"
            if transcodes
            else "its skip connection is not part of an SAE"
        )
        return decoder_only(path, "sparsify", found["W_dec"], why, contract, "transcoder")
    found = take(weights, tensors, _TENSORS)
    d_sae, _ = found["W_dec"].shape
    _check_sizes(cfg, *found["W_dec"].shape)
    told = cfg.whole("k")
    k = hints.k if told is None else told
    choice: Choice = "own"
    if kind != "topk":
        choice = "groups" if kind == "groupmax" else "signed"
    if choice == "groups" and k is not None and d_sae % k:
        raise InputError(f"{cfg.path}: k {k} does not divide {d_sae} latents into equal groups")
    parts = Weights(
        found["encoder.weight"].T, found["encoder.bias"], found["W_dec"], found["b_dec"]
    )
    settings = {"architecture": "topk", "k": k}
    return whole_sae(path, "sparsify", parts, settings, contract, architecture=kind, choice=choice)


def _check_sizes(cfg: Settings, d_sae: int, d: int) -> None:
    cfg.agrees("d_in", d)
    # 0 means: as many as the expansion factor says
    if cfg.number("num_latents"):
        cfg.agrees("num_latents", d_sae)
    elif (factor := cfg.number("expansion_factor")) is not None and factor * d != d_sae:
        raise InputError(
            f"{cfg.path}: expansion_factor {factor:g} of {d} does not give the {d_sae} latents of "
            "the tensors"
        )


def _contract(path: Path) -> Contract:
    """Read the hook from the folder's name, and the model from the run's configuration above."""
    inside = path.name.startswith("seed")
    hook = path.parent.name if inside else path.name
    run = path.parent.parent if inside else path.parent
    model = None
    if (run / RUN_CONFIG).is_file():
        model = Settings(run / RUN_CONFIG, read_json(run / RUN_CONFIG)).text("model")
    layer = layer_of(hook)
    named = layer is not None or hook in ("embed_tokens",)
    return Contract(model=model, hook=hook if named else None, layer=layer, scale="none")


def write(sae: TrainedSAE, path: Path) -> None:
    """Write a folder that sparsify loads.

    Raises
    ------
    InputError
        When its kind is not topk, signed topk or groupmax.
    """
    refuse_foreign(sae, "sparsify", ("own", "signed", "groups"))
    if architecture(sae.config.architecture).selection != "row":
        raise InputError(
            f"architecture: {sae.config.architecture} does not exist in sparsify, which has only "
            "topk; convert to saelens or dictionary_learning"
        )
    choice = sae.choice if isinstance(sae, ForeignSAE) else "own"
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    cfg: dict[str, Any] = {
        "activation": "groupmax" if choice == "groups" else "topk",
        "normalize_decoder": True,
        "num_latents": sae.config.d_sae,
        "k": sae.config.k,
        "d_in": sae.d_in,
    }
    if choice == "signed":
        cfg["signed"] = True
    write_safetensors(path / WEIGHTS, tensors)
    write_json(path / CONFIG, cfg)
