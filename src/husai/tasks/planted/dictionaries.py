"""Draw the true features of a planted world: unit rows with the configured geometry."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from husai.errors import InputError
from husai.tasks.planted.config import (
    CircularDictionary,
    CorrelatedDictionary,
    HierarchicalDictionary,
    NearOrthogonalDictionary,
    PlantedConfig,
)


def welch_bound(n_features: int, d_in: int) -> float:
    """Least coherence, max_{i≠j} |d_i · d_j|, that n unit rows in d dimensions can have.

    √((n − d)/(d(n − 1))) for n > d, else 0 (Welch 1974).
    """
    if n_features <= d_in:
        return 0.0
    return float(np.sqrt((n_features - d_in) / (d_in * (n_features - 1))))


def make_dictionary(
    config: PlantedConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the dictionary ``[n_features, d_in]`` and its planes ``[n_planes, 2, d_in]``."""
    n, d, choice = config.n_features, config.d_in, config.dictionary
    planes = np.zeros((0, 2, d))
    if isinstance(choice, CircularDictionary):
        return _circular(config, choice, rng)
    rows = unit_rows(rng.standard_normal((n, d)))
    if isinstance(choice, NearOrthogonalDictionary):
        rows = np.linalg.qr(rows.T)[0].T if n <= d else _spread(rows, choice)
    elif isinstance(choice, CorrelatedDictionary):
        group = np.arange(n) // choice.group_size
        centres = unit_rows(rng.standard_normal((group[-1] + 1, d)))[group]
        rows = _lean(rows, centres, np.sqrt(choice.cosine))
    elif isinstance(choice, HierarchicalDictionary):
        assert config.hierarchy is not None
        for (above, _), (start, stop) in pairwise(config.hierarchy.levels()):
            parents = rows[above + np.arange(stop - start) // config.hierarchy.branching]
            rows[start:stop] = _lean(rows[start:stop], parents, choice.parent_cosine)
    return rows, planes


def _circular(
    config: PlantedConfig, choice: CircularDictionary, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    d, n_planes, per_plane = config.d_in, choice.n_planes, config.plane_rows()
    n_lines = config.n_features - n_planes * per_plane
    if choice.orthogonal:
        frame = np.linalg.qr(rng.standard_normal((d, 2 * n_planes + n_lines)))[0].T
        planes, lines = frame[: 2 * n_planes].reshape(n_planes, 2, d), frame[2 * n_planes :]
    else:
        planes = np.linalg.qr(rng.standard_normal((n_planes, d, 2)))[0].transpose(0, 2, 1)
        lines = unit_rows(rng.standard_normal((n_lines, d)))
    if choice.n_phases is None:
        on_planes = planes
    else:
        angle = 2 * np.pi * np.arange(per_plane) / per_plane
        on_planes = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ planes
    return np.concatenate([on_planes.reshape(-1, d), lines]), planes


def _spread(rows: NDArray[Any], choice: NearOrthogonalDictionary) -> NDArray[np.float64]:
    """Lower Σ_{i≠j} |d_i·d_j|^p by Adam on the sphere; Adam needs the gradient to a factor only."""
    n, p = len(rows), choice.exponent
    # Single precision halves the time and is enough to lower the objective
    rows = rows.astype(np.float32)
    mean, square = np.zeros_like(rows), np.zeros_like(rows)
    block = max(1, 2**24 // n)  # rows of the Gram matrix at a time: 64 MB
    for step in range(1, choice.n_steps + 1):
        gradient = np.empty_like(rows)
        if p == 2:
            # Σ_j (d_i·d_j) d_j through the d × d frame operator, without the row itself
            gradient[:] = rows @ (rows.T @ rows) - rows
        else:
            for start in range(0, n, block):
                cosine = rows[start : start + block] @ rows.T
                cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = 0.0
                gradient[start : start + block] = _odd_power(cosine, p - 1) @ rows
        # At the optimum only the part along the sphere is zero
        gradient -= np.sum(gradient * rows, axis=1, keepdims=True) * rows
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = (mean / (1 - 0.9**step)) / (
            np.sqrt(square / (1 - 0.999**step)) + np.float32(1e-30)
        )
        rows = unit_rows(rows - choice.learning_rate * update)
    return unit_rows(rows.astype(np.float64))


def _odd_power(x: NDArray[Any], power: int) -> NDArray[Any]:
    """Compute x**power by multiplication, which is ten times as fast as ``**``."""
    square, result = x * x, x.copy()
    for _ in range(power // 2):
        result *= square
    return result


def _lean(
    fresh: NDArray[np.float64], towards: NDArray[np.float64], cosine: float
) -> NDArray[np.float64]:
    """Make unit rows with a given cosine to the unit rows ``towards``; the rest is ``fresh``."""
    across = fresh - np.sum(fresh * towards, axis=1, keepdims=True) * towards
    norm = np.linalg.norm(across, axis=1, keepdims=True)
    if (norm < 1e-8).any():
        raise InputError(
            f"d_in = {fresh.shape[1]}: too few dimensions for rows with a given cosine; raise it"
        )
    return cosine * towards + np.sqrt(1 - cosine**2) * across / norm


def unit_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Scale rows ``[n, d]``, none of them zero, to norm 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
