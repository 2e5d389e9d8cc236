"""Loads SAEs and activations from files for a comparison, and records where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from husai.activations import RowsFile, read_rows
from husai.consistency.analyses.gate import convergence_gate, decay_start
from husai.consistency.study.record import SAERecord
from husai.errors import InputError

if TYPE_CHECKING:
    from husai.sae import TrainedSAE
    from husai.sae.formats import Format, Hints


def load_saes(
    paths: Sequence[str | Path], format: Format | None = None, hints: Hints | None = None
) -> list[SAERecord]:
    """Load SAEs or plain dictionaries; each is named by the last parts of its path.

    Parameters
    ----------
    paths
        Folders or files in any of the formats of :func:`husai.sae.formats.read`, or plain
        dictionaries. A folder may have several SAEs, whose names then start in that folder.
    format
        Their format; detected when None.
    hints
        What their files leave out.

    Raises
    ------
    InputError
        When one is given twice, does not exist, cannot be read, or has numbers that are not
        finite.
    """
    from husai.sae.formats import find_saes, is_address, resolved

    places, below, known, sources = [], [], [], []
    for path in paths:
        root, known_hints = resolved(path, hints)
        found = [root] if format is not None else find_saes(root)
        several = len(found) > 1
        places += found if several else [root]
        below += [len(one.relative_to(root).parts) if several else 1 for one in found]
        known += [known_hints] * len(found)
        sources += [{"source": str(path)} if is_address(path) else {}] * len(found)
    saes = [
        load_one(place, name, format, known_hints)
        for place, name, known_hints in zip(places, short_names(places, below), known, strict=True)
    ]
    return [
        replace(sae, origin={**sae.origin, **source})
        for sae, source in zip(saes, sources, strict=True)
    ]


def load_one(
    path: str | Path, name: str, format: Format | None = None, hints: Hints | None = None
) -> SAERecord:
    """Load one SAE or plain dictionary.

    Raises
    ------
    InputError
        When it cannot be read; code in the file is never executed.
    """
    from husai.sae.formats import read

    found = read(path, format, hints)
    origin = {
        "path": str(path),
        "format": found.format,
        "files": describe_files(found.path),
        "contract": found.contract.as_dict(),
        **({"architecture": found.architecture} if found.architecture else {}),
        **({"left_out": found.left_out} if found.left_out else {}),
    }
    architecture = found.architecture or "dictionary"
    sae = found.sae
    if sae is None:
        return SAERecord(name, architecture, 0, found.W_dec.numpy(), origin=origin)
    settled, motion = _settled(sae)
    return SAERecord(
        id=name,
        architecture=architecture,
        seed=0,
        W_dec=found.W_dec.numpy(),
        W_enc=sae.W_enc.float().numpy(),
        encode=lambda rows: _encode(sae, rows),
        converged=settled,
        motion=motion,
        origin=origin,
    )


def _settled(sae: TrainedSAE) -> tuple[bool | None, float | None]:
    """Return whether an SAE had settled, and its motion.

    They are measured on the earlier decoders in its file; a file without these may state them.
    """
    training = sae.provenance.get("training", {})
    stated = sae.provenance.get("gate")
    if not sae.snapshots and isinstance(stated, dict):
        settled, motion = stated.get("settled"), stated.get("motion")
        return (
            settled if isinstance(settled, bool) else None,
            motion if isinstance(motion, float) else None,
        )
    if not sae.snapshots or not {"steps", "decay_fraction"} <= set(training):
        return None, None
    live = [sae.density.numpy() > 0] if len(sae.density) else None
    gate = convergence_gate([sae.snapshots], decay_start(training), live=live)
    return gate.settled[0], gate.motion[0]


def _encode(sae: TrainedSAE, rows: NDArray[Any]) -> NDArray[Any]:
    import torch

    with torch.no_grad():
        # a copy, since torch warns about memory-mapped files that are read-only
        codes: NDArray[Any] = sae.encode(torch.from_numpy(np.array(rows))).numpy()
    return codes


def load_activations(path: Path, width: int | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
    """Load rows of activations with :func:`husai.activations.read_rows`, as ``[n, d]`` float32.

    Parameters
    ----------
    path
        The file.
    width
        Numbers that a row must have; not checked when None.

    Returns
    -------
    rows
        Memory-mapped if the file is a float32 ``.npy``.
    origin
        Path and files, to be kept in the result.

    Raises
    ------
    InputError
        When the file cannot be read, rows have another width, or all rows are equal.
    """
    rows = _rows_of_width(path, width).values
    if np.array_equal(rows[0], rows[-1]) and (rows == rows[0]).all():
        raise InputError(f"{path}: all rows are equal; give activations that vary")
    rows = rows if rows.dtype == np.float32 else rows.astype(np.float32)
    return rows, {"path": str(path), "files": describe_files(path)}


def rows_of_saes(path: Path, saes: Sequence[SAERecord]) -> RowsFile:
    """Read the activation rows for these SAEs with :func:`husai.activations.read_rows`.

    Raises
    ------
    InputError
        When the file cannot be read, or its rows have another width than the SAEs.
    """
    return _rows_of_width(path, saes[0].W_dec.shape[1])


def _rows_of_width(path: Path, width: int | None) -> RowsFile:
    rows = read_rows(path, width)
    if width is not None and rows.values.shape[1] != width:
        raise InputError(f"{path}: rows of {rows.values.shape[1]} numbers; the SAEs read {width}")
    return rows


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(path: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of a file, or of the files in an SAE's folder."""
    from husai.sae.formats.detect import files_of

    return [
        {"name": f.name, "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files_of(path)
    ]


def short_names(paths: Sequence[Path], least: Sequence[int] | None = None) -> list[str]:
    """Name each path by its last parts, as few as are needed to tell the paths apart.

    Parameters
    ----------
    paths
        The paths to name.
    least
        Fewest parts of each name; 1 when None.

    Raises
    ------
    InputError
        When a path is given twice.
    """
    parts = [path.absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(str(path) for path, p in zip(paths, parts, strict=True) if parts.count(p) > 1)
        raise InputError(f"{twice}: given twice; give each SAE once")
    length = 1
    while True:
        lengths = [max(length, one) for one in least or [1] * len(parts)]
        names = [p[-n:] for p, n in zip(parts, lengths, strict=True)]
        if len(set(names)) == len(parts):
            return [str(Path(*name)) for name in names]
        length += 1
