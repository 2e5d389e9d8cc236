"""The exact best assignment on a whole matrix of scores (Jonker & Volgenant 1987).

First the rows bid for columns, which places most of them; the rest are placed along shortest paths
of reduced costs. This is several times faster than a solver that only has shortest paths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError

_FREE = -1

# Rounds in which rows bid; further rounds place few more rows.
_ROUNDS = 2


def assign(scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match rows to columns one to one, so that the sum of their scores is the greatest.

    Parameters
    ----------
    scores
        ``[n_a, n_b]``; every feature of the smaller side gets a partner.

    Returns
    -------
    rows, columns
        ``[min(n_a, n_b)]``: the pairs, sorted by row.

    Raises
    ------
    InputError
        When the scores are not a finite matrix.
    """
    matrix = np.ascontiguousarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise InputError(f"scores: shape {matrix.shape}; give a finite matrix [n_a, n_b]")
    if 0 in matrix.shape:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if matrix.shape[0] <= matrix.shape[1]:
        return np.arange(len(matrix)), _column_of_rows(matrix)[0]
    columns, _ = _column_of_rows(np.ascontiguousarray(matrix.T))
    order = np.argsort(columns)
    return columns[order], order


class Priced(NamedTuple):
    """A best assignment with the prices that prove it.

    ``u_i + v_j >= s_ij`` for every pair, with equality on the assignment, ``v >= 0``, and ``v = 0``
    for a column that no row has, all up to rounding.

    Attributes
    ----------
    column
        ``[n]`` of each row.
    u, v
        ``[n]`` and ``[m]`` prices of the rows and the columns.
    """

    column: NDArray[np.int64]
    u: NDArray[np.float64]
    v: NDArray[np.float64]


def assign_priced(scores: ArrayLike) -> Priced:
    """Match the rows of a matrix ``[n, m]``, n at most m, to its columns, and give the prices.

    Raises
    ------
    InputError
        When it is not finite, has no row, or more rows than columns.
    """
    matrix = np.ascontiguousarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not 0 < len(matrix) <= matrix.shape[1] or not np.isfinite(matrix).all():
        raise InputError(
            f"scores: shape {matrix.shape}; give a finite matrix with no more rows than columns"
        )
    column, price = _column_of_rows(matrix)
    v = -price
    return Priced(column, matrix[np.arange(len(matrix)), column] - v[column], v)


def _column_of_rows(
    scores: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    n_rows, n_columns = scores.shape
    price = np.zeros(n_columns)  # never above 0, and 0 for a column that nobody has
    column_of = np.full(n_rows, _FREE, dtype=np.int64)
    row_of = np.full(n_columns, _FREE, dtype=np.int64)
    free = np.arange(n_rows)
    for _ in range(_ROUNDS):
        free = _bid(scores, price, column_of, row_of, free)
    _place(scores, price, column_of, row_of, free)
    return column_of, price


@njit(cache=True, nogil=True)
def _bid(scores: Any, price: Any, column_of: Any, row_of: Any, free: Any) -> Any:
    """Let every free row take its best column, and lower its price to match the second best.

    The row that loses its column bids at once if the price changed, in the next round if it did
    not. Returns the rows that are still free.
    """
    n_columns = scores.shape[1]
    left = np.empty(len(free), np.int64)
    n_left, q = 0, 0
    bids, most_bids = 0, 8 * len(free)  # a price war between near equals ends here
    queue = free.copy()
    while q < len(queue):
        i = queue[q]
        q += 1
        bids += 1
        best, second, best_j, second_j = np.inf, np.inf, -1, -1
        for j in range(n_columns):
            cost = -scores[i, j] - price[j]
            if cost < second:
                if cost < best:
                    second, second_j = best, best_j
                    best, best_j = cost, j
                else:
                    second, second_j = cost, j
        j = best_j
        lower = price[j]
        if second_j >= 0:
            lower = price[j] - (second - best)
        moves = lower < price[j]
        if moves:
            price[j] = lower
        elif row_of[j] != _FREE and second_j >= 0 and second <= best:
            j = second_j  # as good, and it may be free
        previous = row_of[j]
        column_of[i], row_of[j] = j, i
        if previous != _FREE:
            column_of[previous] = _FREE
            if moves and bids < most_bids:
                q -= 1
                queue[q] = previous
            else:
                left[n_left] = previous
                n_left += 1
    return left[:n_left]


@njit(cache=True, nogil=True)
def _place(scores: Any, price: Any, column_of: Any, row_of: Any, free: Any) -> None:
    """Place each free row along a shortest path of reduced costs.

    ``columns`` holds, in this order, the columns whose distance is final, those at the least
    distance that are still to be visited (``low`` to ``up``), and the others.
    """
    n_columns = scores.shape[1]
    distance = np.empty(n_columns)
    from_row = np.empty(n_columns, np.int64)
    columns = np.arange(n_columns)
    for start in free:
        for j in range(n_columns):
            distance[j] = -scores[start, j] - price[j]
            from_row[j] = start
        low, up, final, least, end = 0, 0, 0, 0.0, _FREE
        while end == _FREE:
            if low == up:  # the next least distance, and all columns at it
                final = low
                least = distance[columns[up]]
                up += 1
                for k in range(up, n_columns):
                    j = columns[k]
                    if distance[j] <= least:
                        if distance[j] < least:
                            up, least = low, distance[j]
                        columns[k], columns[up] = columns[up], j
                        up += 1
                for k in range(low, up):
                    if row_of[columns[k]] == _FREE:
                        end = columns[k]
                        break
                if end != _FREE:
                    break
            through = columns[low]
            low += 1
            i = row_of[through]
            paid = -scores[i, through] - price[through] - least
            for k in range(up, n_columns):
                j = columns[k]
                reached = -scores[i, j] - price[j] - paid
                if reached < distance[j]:
                    distance[j], from_row[j] = reached, i
                    if reached <= least:
                        if row_of[j] == _FREE:
                            end = j
                            break
                        columns[k], columns[up] = columns[up], j
                        up += 1
        for k in range(final):
            price[columns[k]] += distance[columns[k]] - least
        j = end
        while True:  # exchange the pairs along the path
            i = from_row[j]
            row_of[j] = i
            column_of[i], j = j, column_of[i]
            if i == start:
                break
