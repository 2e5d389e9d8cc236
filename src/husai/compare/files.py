"""SAEs and activations from files, ready to be compared, with where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from husai.consistency.study.record import SAERecord
from husai.errors import InputError

if TYPE_CHECKING:
    from husai.sae import TrainedSAE
    from husai.sae.formats import Format


def load_saes(paths: Sequence[Path], format: Format | None = None) -> list[SAERecord]:
    """Load SAEs or plain dictionaries, named by the shortest tails of their paths.

    Parameters
    ----------
    paths
        Directories or files, in any of the formats of :func:`husai.sae.load_sae`, or plain
        dictionaries.
    format
        What they are; detected when None.

    Raises
    ------
    InputError
        When one is given twice, does not exist, cannot be read, or holds what is not finite.
    """
    return [
        load_one(path, name, format) for path, name in zip(paths, short_names(paths), strict=True)
    ]


def load_one(path: Path, name: str, format: Format | None = None) -> SAERecord:
    """Load one SAE or plain dictionary.

    Raises
    ------
    InputError
        When it cannot be read; nothing that it may hold is executed.
    """
    from husai.sae import detect_format, load_dictionary, load_sae

    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    format = format or detect_format(path)
    origin = {"path": str(path), "format": format, "files": describe_files(path)}
    if format in ("npy", "safetensors"):
        W_dec, _ = load_dictionary(path, format)
        return SAERecord(name, "dictionary", 0, W_dec, origin=origin)
    sae = load_sae(path, format)
    W_dec, W_enc = sae.W_dec.float().numpy(), sae.W_enc.float().numpy()
    _check_finite(path, "decoder", W_dec)
    _check_finite(path, "encoder", W_enc.T)
    converged = sae.metrics.get("converged")
    known = converged is not None and np.isfinite(converged)
    return SAERecord(
        id=name,
        architecture=sae.config.architecture,
        seed=0,
        W_dec=W_dec,
        W_enc=W_enc,
        encode=lambda rows: _encode(sae, rows),
        converged=bool(converged) if known else None,
        origin={**origin, "architecture": sae.config.architecture},
    )


def _encode(sae: TrainedSAE, rows: NDArray[Any]) -> NDArray[Any]:
    import torch

    with torch.no_grad():
        codes: NDArray[Any] = sae.encode(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
    return codes


def _check_finite(path: Path, what: str, rows: NDArray[Any]) -> None:
    """Refuse NaN, naming the file."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: {len(bad)} of the {len(rows)} features of its {what} hold NaN or infinity "
            f"(the first is {bad[0]}); the SAE is broken, retrain it or repair those rows"
        )


def load_activations(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """Load activation rows ``[n, d]`` from an .npy file or a .safetensors file with one matrix.

    Raises
    ------
    InputError
        When the file is missing, unreadable, not a matrix of at least two rows, or not finite.
    """
    from husai.sae import load_dictionary

    if path.suffix not in (".npy", ".safetensors"):
        raise InputError(f"{path}: give activation rows as an .npy or .safetensors matrix")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give activation rows as .npy or .safetensors")
    # a plain matrix, whatever its rows are
    rows, _ = load_dictionary(path, "npy" if path.suffix == ".npy" else "safetensors")
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} activation row; give at least two")
    return rows, {"path": str(path), "files": describe_files(path)}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(path: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of a file, or of the files that a directory itself holds."""
    if not path.is_dir():
        files = [path]
    else:
        files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest tails of the paths that tell them apart.

    Raises
    ------
    InputError
        When a path is given twice.
    """
    parts = [path.absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(str(path) for path, p in zip(paths, parts, strict=True) if parts.count(p) > 1)
        raise InputError(f"{twice}: given twice; an SAE compared with itself says nothing")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return [str(Path(*p[-length:])) for p in parts]
