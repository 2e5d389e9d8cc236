"""Dictionaries with rows of unit norm: a feature is a direction, so its length does not count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError
from husai.matching.match import unit_rows

Rows = NDArray[np.floating[Any]]

# Larger dictionaries are kept in float32: in float64 two of 16,384 × 1,024 would take 128 MB more.
_PRECISE_NUMBERS = 2**23


def direction_rows(rows: ArrayLike, name: str = "dictionary") -> Rows:
    """Scale rows ``[n, d]`` to unit norm: float64, or float32 above 2²³ numbers.

    Raises
    ------
    InputError
        When it is not a finite matrix.
    """
    return held_rows(unit_rows(rows, name))


def held_rows(unit: NDArray[np.float64]) -> Rows:
    """Return unit rows in the precision in which they are kept: float32 above 2²³ numbers."""
    return unit if unit.size <= _PRECISE_NUMBERS else unit.astype(np.float32)


def unit_pair(A: ArrayLike, B: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both dictionaries with unit rows, in float64.

    Raises
    ------
    InputError
        When one is not a finite matrix, or their dimensions differ.
    """
    rows_a, rows_b = unit_rows(A, "A"), unit_rows(B, "B")
    if rows_a.shape[1] != rows_b.shape[1]:
        raise InputError(
            f"A has rows of {rows_a.shape[1]} numbers and B of {rows_b.shape[1]}: "
            "dictionaries can be compared only in one space"
        )
    return rows_a, rows_b


def row_cosines(A: ArrayLike, B: ArrayLike) -> NDArray[np.float64]:
    """Cosine ``[n]`` of each row of A ``[n, d]`` with the same row of B ``[n, d]``."""
    A, B = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
    scale = np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    return np.asarray((A * B).sum(axis=1) / np.maximum(scale, 1e-300))
