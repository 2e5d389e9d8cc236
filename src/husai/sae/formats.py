"""SAEs on disk in the formats of others: SAELens, dictionary_learning, sparsify, plain matrices."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from husai.errors import InputError
from husai.sae.architectures import architecture
from husai.sae.config import SAEConfig
from husai.sae.trained import FILE_KIND, TrainedSAE, read_sae, save_sae
from husai.storage import atomic_path, read_header, read_tensors

Format = Literal["husai", "saelens", "dictionary_learning", "sparsify", "safetensors", "npy"]

SAELENS_VERSION = "6.54.0"
"""Version of SAELens whose layout is written."""

DECODER_NAMES = ("W_dec", "decoder.weight", "dictionary", "features")
"""Tensors of a plain safetensors file that may be the dictionary, in order of preference."""


def detect_format(path: str | Path) -> Format:
    """Tell which project wrote the SAE at ``path``, from the files that are there.

    Raises
    ------
    InputError
        When nothing is there, or nothing known.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "sae_weights.safetensors").is_file() and (path / "cfg.json").is_file():
            return "saelens"
        if (path / "ae.pt").is_file():
            return "dictionary_learning"
        if (path / "sae.safetensors").is_file() and (path / "cfg.json").is_file():
            return "sparsify"
        raise InputError(
            f"{path}: no SAE here; expected cfg.json with sae_weights.safetensors (SAELens) or "
            "sae.safetensors (sparsify), or ae.pt with config.json (dictionary_learning)"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory")
    if path.suffix == ".npy":
        return "npy"
    if path.name == "ae.pt":
        return "dictionary_learning"
    if path.suffix == ".safetensors":
        if path.name == "sae_weights.safetensors" and (path.parent / "cfg.json").is_file():
            return "saelens"
        return "husai" if read_header(path).get("kind") == FILE_KIND else "safetensors"
    raise InputError(
        f"{path}: {path.suffix or 'no suffix'} is not a format that is read; give a .safetensors "
        "or .npy file, or a directory of SAELens, dictionary_learning or sparsify"
    )


def load_sae(path: str | Path, format: Format | None = None) -> TrainedSAE:
    """Read a SAE of this project, SAELens, dictionary_learning or sparsify.

    Parameters
    ----------
    path
        A file of this project, or a directory of another.
    format
        Found by :func:`detect_format` when not given.

    Returns
    -------
    TrainedSAE
        Of a SAE of others, ``metrics`` and ``history`` are empty, ``W_dec_init`` is NaN, and a
        penalty the file does not tell is 0 in ``config``.

    Raises
    ------
    InputError
        When the file is torn, foreign, or of a kind that has no counterpart here.
    """
    path = Path(path)
    found = format or detect_format(path)
    if found == "husai":
        return read_sae(path)
    if path.is_file() and found in ("saelens", "dictionary_learning", "sparsify"):
        path = path.parent
    if found == "saelens":
        return _from_saelens(path)
    if found == "dictionary_learning":
        return _from_dictionary_learning(path)
    if found == "sparsify":
        return _from_sparsify(path)
    raise InputError(
        f"{path}: a {found} file holds a dictionary and no encoder; use load_dictionary"
    )


def load_dictionary(
    path: str | Path, format: Format | None = None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Read the decoder of a SAE, or a plain dictionary: what a comparison needs.

    Parameters
    ----------
    path
        Anything :func:`load_sae` reads, a ``.safetensors`` file with a matrix ``W_dec`` (or a
        single matrix), or a ``.npy`` matrix; rows are features.
    format
        Found by :func:`detect_format` when not given.

    Returns
    -------
    W_dec
        ``[d_sae, d_in]`` float32.
    info
        ``path``, ``format``, ``d_sae``, ``d_in``; for SAEs also ``config`` and ``metrics``.

    Raises
    ------
    InputError
        When it cannot be read or is not a finite matrix.
    """
    path = Path(path)
    found = format or detect_format(path)
    info: dict[str, Any] = {"path": str(path), "format": found}
    if found == "npy":
        try:
            matrix = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path}: not a whole .npy matrix ({error})") from error
    elif found == "safetensors":
        matrix = _plain_matrix(path)
    else:
        sae = load_sae(path, found)
        matrix = sae.W_dec.numpy()
        info |= {"config": sae.config.model_dump(mode="json"), "metrics": dict(sae.metrics)}
    if matrix.ndim != 2 or not matrix.size or not np.issubdtype(matrix.dtype, np.number):
        raise InputError(f"{path}: shape {matrix.shape} {matrix.dtype}; give a matrix [n, d]")
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    if not np.isfinite(matrix).all():
        raise InputError(f"{path}: the dictionary holds NaN or infinity")
    return matrix, info | {"d_sae": matrix.shape[0], "d_in": matrix.shape[1]}


def _plain_matrix(path: Path) -> NDArray[Any]:
    tensors, _ = read_tensors(path)
    for name in DECODER_NAMES:
        if name in tensors:
            tensor = tensors[name].float()
            return (tensor.T if name == "decoder.weight" else tensor).numpy()
    matrices = [tensor for tensor in tensors.values() if tensor.dim() == 2]
    if len(matrices) != 1:
        raise InputError(
            f"{path}: {len(matrices)} matrices and none named {' or '.join(DECODER_NAMES)}; "
            "name the dictionary W_dec"
        )
    return matrices[0].float().numpy()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; it belongs beside the weights") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a JSON object")
    return data


def _build(
    origin: Path,
    source: str,
    settings: dict[str, Any],
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    threshold: torch.Tensor | None,
) -> TrainedSAE:
    d_sae, d_in = W_dec.shape
    shapes = {
        "W_enc": (W_enc, (d_in, d_sae)),
        "b_enc": (b_enc, (d_sae,)),
        "b_dec": (b_dec, (d_in,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise InputError(f"{origin}: {name} is {tuple(tensor.shape)}, expected {shape}")
    try:
        config = SAEConfig(d_sae=d_sae, **settings)
    except ValidationError as error:
        raise InputError(f"{origin}: its settings do not hold: {error}") from error
    return TrainedSAE(
        config=config,
        W_enc=W_enc.float().contiguous(),
        b_enc=b_enc.float().contiguous(),
        W_dec=W_dec.float().contiguous(),
        b_dec=b_dec.float().contiguous(),
        threshold=None if threshold is None else threshold.float().contiguous(),
        W_dec_init=torch.full((d_sae, d_in), torch.nan),
        metrics={},
        history=pd.DataFrame(),
        density=torch.full((d_sae,), torch.nan, dtype=torch.float64),
        provenance={"imported_from": source},
    )


def _take(tensors: dict[str, torch.Tensor], names: tuple[str, ...], origin: Path) -> Any:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"{origin}: tensors missing: {', '.join(missing)}")
    return [tensors[name].float() for name in names]


def _from_saelens(path: Path) -> TrainedSAE:
    cfg = _read_json(path / "cfg.json")
    weights = path / "sae_weights.safetensors"
    tensors, _ = read_tensors(weights)
    W_enc, W_dec, b_dec = _take(tensors, ("W_enc", "W_dec", "b_dec"), weights)
    kind = cfg.get("architecture")
    if kind not in ("standard", "topk", "jumprelu"):
        raise InputError(
            f"{path / 'cfg.json'}: architecture {kind!r}; standard, topk and jumprelu are read"
        )
    scaling = cfg.get("normalize_activations", "none")
    if scaling not in ("none", None):
        raise InputError(
            f"{path / 'cfg.json'}: normalize_activations {scaling!r}; fold it into the weights "
            "with SAELens (fold_activation_norm_scaling_factor) first"
        )
    (b_enc,) = _take(tensors, ("b_enc",), weights)
    if not cfg.get("apply_b_dec_to_input", True):
        b_enc = b_enc + b_dec @ W_enc
    settings: dict[str, Any] = {"architecture": "relu", "l1_coefficient": 0.0}
    threshold = None
    if kind == "topk":
        settings = {"architecture": "topk", "k": cfg.get("k")}
        if cfg.get("rescale_acts_by_decoder_norm", False):
            norms = W_dec.norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    elif kind == "jumprelu":
        settings = {"architecture": "jumprelu", "l0_coefficient": 0.0}
        (threshold,) = _take(tensors, ("threshold",), weights)
    return _build(path, "SAELens", settings, W_enc, b_enc, W_dec, b_dec, threshold)


def _from_dictionary_learning(path: Path) -> TrainedSAE:
    config_path, weights = path / "config.json", path / "ae.pt"
    trainer = _read_json(config_path).get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise InputError(f"{config_path}: no trainer.dict_class")
    try:
        # never anything but tensors: a pickle may run code
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{weights}: not a whole file of tensors ({error})") from error
    if not isinstance(tensors, dict):
        raise InputError(f"{weights}: not a dictionary of tensors")
    kind = trainer["dict_class"]
    threshold = None
    names: tuple[str, ...]
    if kind == "AutoEncoder":
        names = ("encoder.weight", "encoder.bias", "decoder.weight", "bias")
        W_enc, b_enc, W_dec, b_dec = _take(tensors, names, weights)
        settings: dict[str, Any] = {"architecture": "relu", "l1_coefficient": 0.0}
        W_enc, W_dec = W_enc.T, W_dec.T
    elif kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        names = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
        W_enc, b_enc, W_dec, b_dec = _take(tensors, names, weights)
        W_enc, W_dec = W_enc.T, W_dec.T
        settings = {"architecture": "topk", "k": trainer.get("k")}
        if kind == "BatchTopKSAE":
            settings["architecture"] = "batch_topk"
            threshold = _scalar_threshold(tensors, weights, W_dec.shape[0])
    elif kind == "MatryoshkaBatchTopKSAE":
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "group_sizes")
        W_enc, b_enc, W_dec, b_dec, sizes = _take(tensors, names, weights)
        ends = sizes.double().cumsum(0) / sizes.double().sum()
        settings = {
            "architecture": "matryoshka_batch_topk",
            "k": trainer.get("k"),
            "matryoshka_fractions": (*ends[:-1].tolist(), 1.0),
        }
        threshold = _scalar_threshold(tensors, weights, W_dec.shape[0])
    elif kind == "JumpReluAutoEncoder":
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        W_enc, b_enc, W_dec, b_dec, threshold = _take(tensors, names, weights)
        # its encoder reads x itself
        b_enc = b_enc + b_dec @ W_enc
        settings = {"architecture": "jumprelu", "l0_coefficient": 0.0}
    else:
        raise InputError(f"{config_path}: trainer.dict_class {kind!r} has no counterpart here")
    return _build(path, "dictionary_learning", settings, W_enc, b_enc, W_dec, b_dec, threshold)


def _scalar_threshold(tensors: dict[str, torch.Tensor], origin: Path, d_sae: int) -> torch.Tensor:
    (value,) = _take(tensors, ("threshold",), origin)
    if float(value) < 0:
        raise InputError(
            f"{origin}: threshold {float(value)}: it was saved before one was measured"
        )
    return value.expand(d_sae)


def _from_sparsify(path: Path) -> TrainedSAE:
    cfg = _read_json(path / "cfg.json")
    weights = path / "sae.safetensors"
    tensors, _ = read_tensors(weights)
    if cfg.get("activation", "topk") != "topk" or cfg.get("transcode") or "W_skip" in tensors:
        raise InputError(f"{path / 'cfg.json'}: only topk autoencoders are read")
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = _take(tensors, names, weights)
    settings = {"architecture": "topk", "k": cfg.get("k")}
    return _build(path, "sparsify", settings, W_enc.T, b_enc, W_dec, b_dec, None)


def export_sae(sae: TrainedSAE, path: str | Path, format: Format) -> None:
    """Write a SAE for another project's loader; activations and reconstructions stay the same.

    Parameters
    ----------
    sae
        What to write.
    path
        A directory, made when missing; for ``husai`` a file.
    format
        ``saelens`` (relu as standard, topk, all others as jumprelu with their thresholds),
        ``dictionary_learning`` (every architecture), ``sparsify`` (topk only) or ``husai``.

    Raises
    ------
    InputError
        When the format has no counterpart of the architecture.
    """
    path = Path(path)
    if format == "husai":
        save_sae(sae, path)
    elif format == "saelens":
        _to_saelens(sae, path)
    elif format == "dictionary_learning":
        _to_dictionary_learning(sae, path)
    elif format == "sparsify":
        _to_sparsify(sae, path)
    else:
        raise InputError(
            f"format: {format!r}; saelens, dictionary_learning, sparsify and husai are written"
        )


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


def _write_plain(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _to_saelens(sae: TrainedSAE, path: Path) -> None:
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    cfg: dict[str, Any] = {
        "architecture": "standard",
        "d_in": sae.d_in,
        "d_sae": sae.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAELENS_VERSION},
    }
    if sae.threshold is not None:
        cfg["architecture"] = "jumprelu"
        tensors["threshold"] = sae.threshold
    elif architecture(sae.config.architecture).selection == "row":
        cfg |= {
            "architecture": "topk",
            "k": sae.config.k,
            "rescale_acts_by_decoder_norm": False,
        }
    _write_plain(path / "sae_weights.safetensors", tensors)
    _write_json(path / "cfg.json", cfg)


def _to_dictionary_learning(sae: TrainedSAE, path: Path) -> None:
    entry = architecture(sae.config.architecture)
    trainer: dict[str, Any] = {"activation_dim": sae.d_in, "dict_size": sae.config.d_sae}
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
        tensors["b_enc"] = sae.b_enc - sae.b_dec @ sae.W_enc
    else:
        assert sae.config.k is not None
        trainer["k"] = sae.config.k
        k = torch.tensor(sae.config.k, dtype=torch.int)
        # dictionary_learning writes −1 where no threshold was measured
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
    path.mkdir(parents=True, exist_ok=True)
    with atomic_path(path / "ae.pt") as temporary:
        torch.save(
            {n: t.detach().cpu().clone().contiguous() for n, t in tensors.items()}, temporary
        )
    _write_json(path / "config.json", {"trainer": trainer})


def _to_sparsify(sae: TrainedSAE, path: Path) -> None:
    if architecture(sae.config.architecture).selection != "row":
        raise InputError(
            f"architecture: {sae.config.architecture} has no counterpart in sparsify, which "
            "knows topk only; export to saelens or dictionary_learning"
        )
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    _write_plain(path / "sae.safetensors", tensors)
    _write_json(
        path / "cfg.json",
        {
            "activation": "topk",
            "normalize_decoder": True,
            "num_latents": sae.config.d_sae,
            "k": sae.config.k,
            "d_in": sae.d_in,
        },
    )
