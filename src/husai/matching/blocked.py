"""Cosines of two dictionaries computed block by block, since all of them may not fit in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError
from husai.matching.heap import replace_top

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Entries that a scan tests together before it looks at each: enough for vector instructions, few
# enough that one hit costs little.
_CHUNK = 64
_ROWS_AT_ONCE = 4096
# below this norm a row counts as zero: its direction would be rounding error
_ZERO_NORM = float(np.finfo(np.float32).tiny)


def check_dictionary(dictionary: ArrayLike, name: str) -> NDArray[Any]:
    """Return ``dictionary`` ``[n, d]`` as a float32 or float64 array, or say what is wrong with it.

    Raises
    ------
    InputError
        When it is not a two-dimensional array of finite real numbers with at least one row.
    """
    rows = np.asarray(dictionary)
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"{name}: its shape is {rows.shape}; give a matrix [features, d]")
    if rows.dtype not in (np.float32, np.float64):
        if rows.dtype.kind not in "fiu":
            raise InputError(f"{name}: it holds {rows.dtype}; give real numbers")
        rows = rows.astype(np.float64 if rows.dtype.kind in "iu" else np.float32)
    n_bad, first = 0, -1
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        bad = np.flatnonzero(~np.isfinite(rows[start : start + _ROWS_AT_ONCE]).all(axis=1))
        if bad.size and first < 0:
            first = start + int(bad[0])
        n_bad += bad.size
    if n_bad:
        raise InputError(
            f"{name}: {n_bad} of its {len(rows)} rows hold NaN or infinity (the first is row "
            f"{first}); repair or drop them"
        )
    return rows


def inverse_norms(rows: NDArray[Any]) -> Float64:
    """Return ``[n]`` float64: one over the norm of each row of ``[n, d]``, 0 for a row of zeros."""
    scale = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
        norm = np.sqrt(np.einsum("ij,ij->i", part, part))
        np.divide(1.0, norm, out=scale[start : start + len(part)], where=norm > _ZERO_NORM)
    return scale


def thread_count() -> int:
    """Threads to use: the cores that this process may use, at most ``OMP_NUM_THREADS`` if set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores or 1, int(limit)) if limit.isdigit() and int(limit) else cores or 1


def in_threads(kernel: Callable[..., None], n: int, *arguments: Any) -> None:
    """Run ``kernel(*arguments, start, stop)`` over ``range(n)``, divided among threads.

    The kernels release the GIL. Plain threads are used, since numba's own thread pools fail when
    they are called from several threads or after a fork, and callers do both.
    """
    parts = min(thread_count(), n)
    if parts <= 1:
        kernel(*arguments, 0, n)
        return
    edges = [n * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        jobs = [pool.submit(kernel, *arguments, a, z) for a, z in pairwise(edges)]
        for job in jobs:
            job.result()


@dataclass
class TopLists:
    """The ``k`` best partners of every feature met so far, each list a binary min-heap.

    Attributes
    ----------
    key
        ``[n, k]`` float32: scores, the worst kept one first; ``-inf`` where nothing was met yet.
    index
        ``[n, k]`` int32: the partners.
    """

    key: Float32
    index: NDArray[np.int32]

    @classmethod
    def empty(cls, n: int, k: int) -> TopLists:
        """Empty lists of ``k`` partners for ``n`` features."""
        return cls(np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int32))

    def part(self, start: int, stop: int) -> TopLists:
        """The lists of features ``start`` to ``stop``, sharing memory."""
        return TopLists(self.key[start:stop], self.index[start:stop])

    @property
    def threshold(self) -> Float32:
        """``[n]``: no partner outside the list scores more than this."""
        return self.key[:, 0]

    @property
    def best(self) -> Float32:
        """``[n]``: the best score met."""
        return self.key.max(axis=1)


@njit(cache=True, nogil=True)
def _update_rows(
    block: Any, absolute: bool, key: Any, index: Any, first_column: int, a: int, z: int
) -> None:
    n_cols = block.shape[1]
    for i in range(a, z):
        row = block[i]
        threshold = key[i, 0]
        for start in range(0, n_cols, _CHUNK):
            values = row[start : start + _CHUNK]
            # Most chunks hold nothing to keep. This test comes first; it has a fixed length and
            # no branch, so that the compiler can make vector instructions of it.
            if len(values) == _CHUNK:
                hit = np.int32(0)
                if absolute:
                    for c in range(_CHUNK):
                        hit |= np.int32(abs(values[c]) > threshold)
                else:
                    for c in range(_CHUNK):
                        hit |= np.int32(values[c] > threshold)
                if hit == 0:
                    continue
            for c in range(len(values)):
                value = abs(values[c]) if absolute else values[c]
                if value > threshold:
                    replace_top(key[i], index[i], key.shape[1], value, first_column + start + c)
                    threshold = key[i, 0]


@njit(cache=True, nogil=True)
def _update_columns(
    block: Any, absolute: bool, key: Any, index: Any, first_row: int, left: int, right: int
) -> None:
    thresholds = key[left:right, 0].copy()
    for i in range(len(block)):
        row = block[i, left:right]
        for start in range(0, len(row), _CHUNK):
            values = row[start : start + _CHUNK]
            limits = thresholds[start : start + _CHUNK]
            if len(values) == _CHUNK:
                hit = np.int32(0)
                if absolute:
                    for c in range(_CHUNK):
                        hit |= np.int32(abs(values[c]) > limits[c])
                else:
                    for c in range(_CHUNK):
                        hit |= np.int32(values[c] > limits[c])
                if hit == 0:
                    continue
            for c in range(len(values)):
                value = abs(values[c]) if absolute else values[c]
                if value > limits[c]:
                    j = left + start + c
                    replace_top(key[j], index[j], key.shape[1], value, first_row + i)
                    limits[c] = key[j, 0]


def update_row_lists(block: Float32, absolute: bool, lists: TopLists, first_column: int) -> None:
    """Add a block's entries to the lists of its rows; each thread has rows of its own."""
    in_threads(_update_rows, len(block), block, absolute, lists.key, lists.index, first_column)


def update_column_lists(block: Float32, absolute: bool, lists: TopLists, first_row: int) -> None:
    """Add a block's entries to the lists of its columns; each thread has columns of its own."""
    in_threads(_update_columns, block.shape[1], block, absolute, lists.key, lists.index, first_row)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _pair_cosines(
    a: Any, a_scale: Any, b: Any, b_scale: Any, rows: Any, columns: Any, out: Any, t0: int, t1: int
) -> None:
    for t in range(t0, t1):
        x, y = a[rows[t]], b[columns[t]]
        total = 0.0
        for c in range(len(x)):
            total += np.float64(x[c]) * np.float64(y[c])
        out[t] = total * a_scale[rows[t]] * b_scale[columns[t]]


class UnitRows:
    """A dictionary ready for products: float32 unit rows for speed, the original for exact cosines.

    Parameters
    ----------
    dictionary
        ``[n, d]`` real numbers, one feature per row. A row of zeros has cosine 0 with everything.
    name
        What to call it in an error.

    Attributes
    ----------
    unit
        ``[n, d]`` float32, C order: rows of unit norm (or zero).
    n, d
        Its shape.

    Raises
    ------
    InputError
        When it is not a two-dimensional array of finite real numbers with at least one row.
    """

    def __init__(self, dictionary: ArrayLike, name: str) -> None:
        rows = check_dictionary(dictionary, name)
        self.raw = np.ascontiguousarray(rows)
        self.n, self.d = rows.shape
        self.scale = inverse_norms(self.raw)
        self.unit = np.empty((self.n, self.d), np.float32)
        for start in range(0, self.n, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            np.multiply(
                self.raw[part], self.scale[part, None], out=self.unit[part], casting="same_kind"
            )

    def take(self, rows: NDArray[Any]) -> UnitRows:
        """The dictionary that has only these rows."""
        part = UnitRows.__new__(UnitRows)
        part.raw, part.scale, part.unit = self.raw[rows], self.scale[rows], self.unit[rows]
        part.n, part.d = part.raw.shape
        return part

    @property
    def rounding(self) -> float:
        """Bound on the error of a float32 product of two unit rows.

        ``gamma_d = d 2^-24`` for the sum (Higham, Accuracy and Stability of Numerical Algorithms,
        eq. 3.5, with ``sum |x_i y_i| <= 1``) and a unit in the last place for rounding each row.
        """
        return (self.d + 8) * 2.0**-24

    def cosines(
        self, other: UnitRows, rows: NDArray[Any], columns: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Cosines in float64 of the pairs (``rows[t]`` here, ``columns[t]`` in ``other``)."""
        out = np.empty(len(rows), np.float64)
        in_threads(
            _pair_cosines,
            len(rows),
            self.raw,
            self.scale,
            other.raw,
            other.scale,
            rows,
            columns,
            out,
        )
        return out

    def float64(self, rows: NDArray[Any]) -> Float64:
        """These rows at unit norm, ``[len(rows), d]`` float64."""
        return self.raw[rows].astype(np.float64) * self.scale[rows, None]
