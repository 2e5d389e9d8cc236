"""Sparse assignment: the best matching on a graph of candidate pairs, with its dual prices.

The primal is ``max sum s_ij x_ij`` with every row in at most one pair and every column in at most
one; a row may stay unmatched at the score ``outside``. The dual has ``u_i + v_j >= s_ij``,
``u_i >= outside`` and ``v_j >= 0``; at the optimum matched pairs are tight
(``u_i + v_j = s_ij``), unmatched rows have ``u_i = outside`` and unmatched columns ``v_j = 0``.
Successive shortest paths keep all of this true at every step (Jonker & Volgenant 1987 for the
dense case; Dijkstra on reduced costs as in Edmonds & Karp 1972), so that when the last row is
placed the matching is optimal and the prices prove it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from husai.matching.heap import replace_top, sift_up

FREE = -1  # a row or column without a partner
_LEFT_OUT = -2  # a row for which staying unmatched is best


@njit(cache=True, nogil=True)
def reduce_rows(
    indptr: Any,
    columns: Any,
    scores: Any,
    v: Any,
    column_of: Any,
    row_of: Any,
    u: Any,
    outside: float,
    max_bids: int,
) -> int:
    """Place rows by bidding without increments (augmenting row reduction of Jonker & Volgenant).

    Every free row takes its best column and raises the price of that column until its second best
    column is as good; the row that had the column before bids next. Matched pairs stay tight, so
    that the shortest paths can start from any state that this leaves.

    Parameters
    ----------
    indptr, columns, scores
        The candidate pairs as a CSR matrix: ``[n_rows + 1]``, ``[n_pairs]``, ``[n_pairs]``.
    v
        ``[n_columns]``: prices of the columns; changed in place.
    column_of, row_of
        ``[n_rows]`` and ``[n_columns]``: the partner of each, or ``FREE``; changed in place.
    u
        ``[n_rows]``: prices of the rows; changed in place.
    outside
        Score of a row that stays unmatched.
    max_bids
        When to stop; rows with equal scores could outbid one another for very long.

    Returns
    -------
    bids
        How many bids were made.
    """
    n_rows = len(indptr) - 1
    queue = np.empty(n_rows, np.int64)
    n_free = 0
    for i in range(n_rows):
        if column_of[i] == FREE:
            queue[n_free] = i
            n_free += 1
    bids = 0
    for q in range(n_free):
        i = queue[q]
        while bids < max_bids:
            bids += 1
            best, second, best_j = outside, outside, -1
            for e in range(indptr[i], indptr[i + 1]):
                profit = scores[e] - v[columns[e]]
                if profit > best:
                    second = best
                    best = profit
                    best_j = columns[e]
                elif profit > second:
                    second = profit
            u[i] = best
            if best_j < 0:
                break
            owner = row_of[best_j]
            if owner != FREE and best <= second:
                break  # a tie: taking the column from its row gains nothing
            if owner != FREE or best > second:
                v[best_j] += best - second
                u[i] = second
            column_of[i] = best_j
            row_of[best_j] = i
            if owner == FREE:
                break
            column_of[owner] = FREE
            i = owner
    return bids


@njit(cache=True, nogil=True)
def shortest_paths(
    indptr: Any,
    columns: Any,
    scores: Any,
    v: Any,
    column_of: Any,
    row_of: Any,
    u: Any,
    outside: float,
    max_scans: int,
) -> int:
    """Place every free row along a shortest alternating path; return how many edges were scanned.

    Parameters are those of :func:`reduce_rows`, but for ``max_scans``: once so many edges were
    scanned it stops, and the remaining rows stay free.
    """
    n_rows = len(indptr) - 1
    n_cols = len(v)
    dist = np.full(n_cols, np.inf)
    came_from = np.empty(n_cols, np.int64)
    done = np.zeros(n_cols, np.bool_)
    touched = np.empty(n_cols, np.int64)
    capacity = 1024
    heap_d = np.empty(capacity, np.float64)
    heap_j = np.empty(capacity, np.int64)
    scans = 0
    for start in range(n_rows):
        if column_of[start] != FREE:
            continue
        best = outside
        for e in range(indptr[start], indptr[start + 1]):
            best = max(best, scores[e] - v[columns[e]])
        u[start] = best
        n_touched = 0
        size = 0
        i = start
        reached = 0.0
        # the cheapest way found so far of leaving a row out
        out_dist, out_row = np.inf, -1
        sink = -1
        while True:
            leave = reached + max(0.0, u[i] - outside)
            if leave < out_dist:
                out_dist, out_row = leave, i
            scans += indptr[i + 1] - indptr[i]
            for e in range(indptr[i], indptr[i + 1]):
                j = columns[e]
                if done[j]:
                    continue
                d = reached + max(0.0, u[i] + v[j] - scores[e])
                if d < dist[j] and d < out_dist:
                    if dist[j] == np.inf:
                        touched[n_touched] = j
                        n_touched += 1
                    dist[j] = d
                    came_from[j] = i
                    if size == capacity:
                        grown_d = np.empty(2 * capacity, np.float64)
                        grown_j = np.empty(2 * capacity, np.int64)
                        grown_d[:capacity] = heap_d
                        grown_j[:capacity] = heap_j
                        heap_d, heap_j = grown_d, grown_j
                        capacity *= 2
                    heap_d[size] = d
                    heap_j[size] = j
                    sift_up(heap_d, heap_j, size)
                    size += 1
            j = -1
            while size > 0:
                d, j = heap_d[0], heap_j[0]
                size -= 1
                replace_top(heap_d, heap_j, size, heap_d[size], heap_j[size])
                if not done[j] and d == dist[j]:
                    break
                j = -1
            if j < 0 or dist[j] >= out_dist:
                reached = out_dist
                break
            reached = dist[j]
            if row_of[j] == FREE:
                sink = j
                break
            done[j] = True
            i = row_of[j]
        u[start] -= reached
        for t in range(n_touched):
            j = touched[t]
            if done[j]:
                u[row_of[j]] -= reached - dist[j]
                v[j] += reached - dist[j]
        # exchange the pairs along the path, from its end (a free column, or the row that stays
        # unmatched) back to its start
        if sink >= 0:
            j = sink
        else:
            j = column_of[out_row]
            column_of[out_row] = _LEFT_OUT
            if out_row == start:
                j = -1
        while j >= 0:
            i = came_from[j]
            previous = column_of[i]
            column_of[i] = j
            row_of[j] = i
            if i == start:
                break
            j = previous
        for t in range(n_touched):
            dist[touched[t]] = np.inf
            done[touched[t]] = False
        if scans > max_scans:
            break
    return scans
