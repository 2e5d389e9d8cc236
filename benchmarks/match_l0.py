"""Find the sparsity coefficient that gives an SAE a wanted L0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def match_l0(
    l0_of: Callable[[list[float]], Sequence[float]],
    target: float,
    low: float,
    high: float,
    *,
    points: int,
    rounds: int,
    tolerance: float = 0.0,
) -> float:
    """Search a geometric grid that shrinks around the coefficient whose L0 is nearest.

    Parameters
    ----------
    l0_of
        Trains an SAE for each coefficient, and gives their L0.
    target
        L0 that is wanted; how near another is, is judged by its ratio to it.
    low, high
        Ends of the first grid.
    points, rounds
        Coefficients of a grid, and grids at most.
    tolerance
        Part of the target by which the L0 may be off for the search to end early.
    """
    best = low
    for _ in range(rounds):
        grid = np.geomspace(low, high, points)
        l0 = np.maximum(l0_of([float(value) for value in grid]), 1e-3)
        at = int(np.argmin(np.abs(np.log(l0 / target))))
        best = float(grid[at])
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, points - 1)]
        if abs(l0[at] - target) < tolerance * target:
            break
    return best
