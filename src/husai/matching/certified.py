"""The optimal matching of two large dictionaries, with a proof, from about one pass of products.

1. One pass keeps the best partners of every row and column: the candidates. The other pairs are
   bounded: ``s_ij <= min(r_i, c_j)`` with ``r_i`` and ``c_j`` the worst score that row i and
   column j kept.
2. A sparse assignment on the candidates gives a matching and prices ``u``, ``v``.
3. The matching is optimal over all pairs when ``u_i + v_j >= s_ij`` for all of them (weak
   duality). The bound of step 1 proves this for nearly all pairs without computing them again;
   the few blocks that it leaves open are computed, and pairs that violate the condition become
   candidates.
4. Repeat from 2, starting from the last prices, until no pair violates the condition.

Scores of candidates are float64; float32 products are used only with their worst-case error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from husai.matching.assignment import FREE, reduce_rows, shortest_paths
from husai.matching.blocked import Float64, TopLists, UnitRows
from husai.matching.candidates import BLOCK_COLUMNS, BLOCK_ROWS, Candidates, Products

Int64 = NDArray[np.int64]

# Bids per row before the shortest paths take over: enough for most rows to find their place.
_BIDS_PER_ROW = 20
# Edges scanned in one call of the compiled solver: about a second, after which Ctrl-C can act.
_SCANS_PER_CALL = 100_000_000
# Edges that one search may scan in all: some minutes. Only dictionaries that hold many exact
# copies of their rows need more.
_MOST_SCANS = 40_000_000_000
# Violating pairs that become candidates: the most per row in the first round, four times as many
# in each further round (dictionaries with duplicate rows need that), and the most in one round.
_VIOLATORS = 32
_MOST_ADDED = 20_000_000
# Random columns that a row without candidates gets as candidates.
_SPARE_PAIRINGS = 8


@dataclass(frozen=True)
class Certificate:
    """The proof of how close a matching is to the optimum.

    Weak duality: prices with ``u_i + v_j >= s_ij`` for every pair and ``v_j >= 0`` for the columns
    of the wider dictionary bound every matching's sum by ``sum u + sum v``.

    Attributes
    ----------
    gap_bound
        Upper bound on (best possible mean similarity - that of this matching), from the prices or
        from the nearest partner of each feature, whichever is lower.
    duality_gap
        ``(sum u + sum v - sum s) / m``, before allowing for ``largest_violation``.
    largest_violation
        Upper bound on ``max_ij s_ij - u_i - v_j`` over **all** pairs.
    tolerance
        ``gap_bound`` at or below which the matching is called certified.
    passes
        Products computed, as a multiple of one pass over all pairs.
    rounds
        How many sparse assignments were solved.
    n_candidates
        Candidate pairs of the last one.
    a_price, b_price
        ``[n_a]`` and ``[n_b]`` float64: the prices.
    """

    gap_bound: float
    duality_gap: float
    largest_violation: float
    tolerance: float
    passes: float
    rounds: int
    n_candidates: int
    a_price: Float64 = field(repr=False)
    b_price: Float64 = field(repr=False)

    @property
    def certified(self) -> bool:
        """Whether the matching is proved optimal to within the tolerance."""
        return self.gap_bound <= self.tolerance


@njit(cache=True, nogil=True)
def _best_profits(indptr: Any, columns: Any, scores: Any, v: Any, outside: float) -> Any:
    """``[n]``: the highest ``score - price`` among each row's candidates."""
    best = np.full(len(indptr) - 1, outside)
    for i in range(len(best)):
        for e in range(indptr[i], indptr[i + 1]):
            best[i] = max(best[i], scores[e] - v[columns[e]])
    return best


def _ceiling(r: Float64, c: Float64, price: Float64) -> Float64:
    """``[len(r)]``: ``max_j min(r_i, c_j) - price_j``, in ``O(n log n)``."""
    order = np.argsort(c)
    c, price = c[order], price[order]
    # columns with c_j >= r_i give r_i minus their lowest price, the others max(c_j - price_j)
    lowest_above = np.append(np.minimum.accumulate(price[::-1])[::-1], np.inf)
    best_below = np.append(-np.inf, np.maximum.accumulate(c - price))
    place = np.searchsorted(c, r)
    with np.errstate(invalid="ignore"):
        above = np.where(np.isneginf(r), -np.inf, r - lowest_above[place])
    return np.maximum(above, best_below[place])


class CertifiedSearch:
    """Exact matching of A's rows into B's, ``n_a <= n_b``, for one score.

    Parameters
    ----------
    a, b
        The dictionaries, the narrower one first.
    candidates
        The best partners found in one pass over all pairs.
    signed
        Whether the score is the cosine or its absolute value.
    products
        Cosines of the two dictionaries, on the CPU or on another device.
    max_passes
        The most products to compute, the first pass included, as a multiple of one pass.
    tolerance
        Gap in the mean score at which to stop.
    advance
        Called with the work done since the last call, as a share of one pass.
    """

    def __init__(
        self,
        a: UnitRows,
        b: UnitRows,
        candidates: Candidates,
        *,
        signed: bool,
        products: Products,
        max_passes: float,
        tolerance: float,
        advance: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._a, self._b, self._signed, self._products = a, b, signed, products
        self._max_passes, self._tolerance, self._advance = max_passes, tolerance, advance
        self._passes = 1.0
        self._rounds = 0
        self._scans = 0
        # below every score, so that a row stays unmatched only when it has no candidate left
        self._outside = -1.5 if signed else -0.5
        self._r, self._c = _kept(candidates.rows, b.n), _kept(candidates.columns, a.n)
        self._margin = max(a.rounding, b.rounding)
        self._best = candidates.rows.best.astype(np.float64)
        self._violators = _VIOLATORS
        self._rng = np.random.default_rng(0)
        self._edges = np.zeros(0, np.int64)
        self._scores = np.zeros(0)
        self.u, self.v = np.zeros(a.n), np.zeros(b.n)
        self.column_of, self._row_of = np.full(a.n, FREE), np.full(b.n, FREE)
        # a row whose price is at or above this was checked: column prices have only risen since
        self._verified = np.full(a.n, np.inf)
        self._add(_pairs_of(candidates, b.n))

    def run(self) -> Certificate:
        """Find the matching and its proof; ``column_of`` ``[n_a]`` then holds the matching."""
        violation = np.inf
        while True:
            self._solve()
            excess = self._excess()
            if self._gap() + excess[0] / self._a.n <= self._tolerance:
                violation = max(0.0, excess[1])
                break
            blocks = self._open_blocks()
            cost = sum(len(i) * len(j) for i, j in blocks) / (self._a.n * self._b.n)
            if self._passes + cost > self._max_passes or self._scans > _MOST_SCANS:
                violation = excess[1]
                break
            found = self._check(blocks)
            if not len(found):
                excess = self._excess()
                violation = max(0.0, excess[1])
                break
            self._add(found)
            self._violators *= 4
        self._place_the_rest()
        gap = self._gap()
        return Certificate(
            gap_bound=max(0.0, min(gap + excess[0] / self._a.n, self._nearest_bound())),
            duality_gap=gap,
            largest_violation=float(violation),
            tolerance=self._tolerance,
            passes=self._passes,
            rounds=self._rounds,
            n_candidates=len(self._edges),
            a_price=self.u,
            b_price=self.v,
        )

    # -- the sparse problem ---------------------------------------------------------------------

    def _add(self, pairs: Int64) -> None:
        """Add pairs, given as ``i * n_b + j``, sorted and without repeats, to the candidates."""
        place = np.searchsorted(self._edges, pairs)
        place[place == len(self._edges)] = -1
        new = pairs if not len(self._edges) else pairs[self._edges[place] != pairs]
        rows, columns = np.divmod(new, self._b.n)
        scores = self._a.cosines(self._b, rows, columns)
        if not self._signed:
            np.abs(scores, out=scores)
        edges = np.concatenate([self._edges, new])
        order = np.argsort(edges, kind="stable")
        self._edges = edges[order]
        self._scores = np.concatenate([self._scores, scores])[order]
        rows, columns = np.divmod(self._edges, self._b.n)
        self._columns = columns.astype(np.int32)
        self._indptr = np.searchsorted(rows, np.arange(self._a.n + 1))

    def _solve(self) -> None:
        """Solve the sparse problem, starting from the last prices when these still hold."""
        if self._rounds and self._a.n == self._b.n and (self.column_of >= 0).all():
            best = _best_profits(self._indptr, self._columns, self._scores, self.v, self._outside)
            for i in np.flatnonzero(best > self.u):
                self._row_of[self.column_of[i]] = FREE
                self.column_of[i] = FREE
        else:
            self._start_over()
        self._finish_paths()
        for _ in range(3):
            left = np.flatnonzero(self.column_of < 0)
            if not len(left) or self._scans > _MOST_SCANS:
                break
            self._spare_pairs(left)
            self._start_over()
            self._finish_paths()
        self._rounds += 1

    def _start_over(self) -> None:
        """Forget the prices and the matching, and place the rows by bidding."""
        self.u[:], self.v[:] = 0.0, 0.0
        self.column_of[:], self._row_of[:] = FREE, FREE
        self._verified[:] = np.inf
        reduce_rows(
            self._indptr,
            self._columns,
            self._scores,
            self.v,
            self.column_of,
            self._row_of,
            self.u,
            self._outside,
            _BIDS_PER_ROW * self._a.n,
        )

    def _finish_paths(self) -> None:
        """Place the rows that are still free, unless too many edges were scanned."""
        while (self.column_of == FREE).any():
            if self._scans > _MOST_SCANS:
                # stop here: prices that hold for the candidates still bound the optimum
                best = _best_profits(
                    self._indptr, self._columns, self._scores, self.v, self._outside
                )
                free = self.column_of == FREE
                self.u[free] = best[free]
                return
            self._scans += shortest_paths(
                self._indptr,
                self._columns,
                self._scores,
                self.v,
                self.column_of,
                self._row_of,
                self.u,
                self._outside,
                _SCANS_PER_CALL,
            )

    def _spare_pairs(self, left: Int64) -> None:
        """Give the unmatched rows a few random unmatched columns as candidates."""
        over = np.flatnonzero(self._row_of == FREE)
        pairs = [
            left * self._b.n + self._rng.permutation(over)[: len(left)]
            for _ in range(_SPARE_PAIRINGS)
        ]
        self._add(_sorted_unique(np.concatenate(pairs)))

    def _place_the_rest(self) -> None:
        """Give each unmatched row any unmatched column."""
        left = np.flatnonzero(self.column_of < 0)
        over = np.flatnonzero(self._row_of == FREE)[: len(left)]
        self.column_of[left] = over
        self._row_of[over] = left

    # -- the proof ------------------------------------------------------------------------------

    def _gap(self) -> float:
        """Duality gap of the present matching and prices, in the mean score."""
        rows = np.flatnonzero(self.column_of >= 0)
        cosines = self._a.cosines(self._b, rows, self.column_of[rows])
        primal = cosines.sum() if self._signed else np.abs(cosines).sum()
        # an unmatched row counts with the lowest score it can have
        primal += (self._a.n - len(rows)) * (-1.0 if self._signed else 0.0)
        return float((self.u.sum() + self.v.sum() - primal) / self._a.n)

    def _nearest_bound(self) -> float:
        """Bound on the gap: no mean exceeds that of the rows' nearest columns, nor 1."""
        best = np.minimum(1.0, self._best + self._margin)
        return float(best.mean() - self._scores_of_match().mean())

    def _scores_of_match(self) -> Float64:
        cosines = self._a.cosines(self._b, np.arange(self._a.n), self.column_of)
        return cosines if self._signed else np.abs(cosines)

    def _suspects(self) -> tuple[Float64, Float64]:
        """How far the bound on the pairs not kept can exceed the prices, by row and by column."""
        by_row = _ceiling(self._r, self._c, self.v) + self._margin - self.u
        by_row[self.u >= self._verified] = -np.inf
        rows = np.flatnonzero(by_row > 0)
        by_column = np.full(self._b.n, -np.inf)
        if len(rows):
            by_column = _ceiling(self._c, self._r[rows], self.u[rows]) + self._margin - self.v
        return by_row, by_column

    def _excess(self) -> tuple[float, float]:
        """Bounds on what violations can add to the dual sum, and on the largest one."""
        by_row, by_column = self._suspects()
        by_row, by_column = np.maximum(by_row, 0.0), np.maximum(by_column, 0.0)
        # raising every suspect row's price by its excess makes the prices feasible; so does
        # raising the columns'
        total = min(by_row.sum(), by_column.sum()) + self._a.n * self._slack
        largest = min(by_row.max(), by_column.max()) + self._slack
        # the candidates meet the condition by construction; a check of it costs little
        best = _best_profits(self._indptr, self._columns, self._scores, self.v, self._outside)
        own = np.maximum(best - self.u, 0.0)
        return float(total + own.sum()), float(max(largest, own.max()))

    @property
    def _slack(self) -> float:
        """The largest violation of one pair that is ignored."""
        return self._tolerance / 4

    def _open_blocks(self) -> list[tuple[Int64, Int64]]:
        """Blocks of pairs that the bound leaves open."""
        by_row, by_column = self._suspects()
        rows = np.flatnonzero(by_row > 0)
        columns = np.flatnonzero(by_column > 0)
        rows = rows[np.argsort(self.u[rows])]
        reach = self._r[rows] + self._margin - self.u[rows]
        depth = self._c[columns] + self._margin - self.v[columns]
        blocks = []
        for start in range(0, len(rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            open_to = (self.v[columns] < reach[part].max()) & (depth > self.u[rows[part]].min())
            if open_to.any():
                blocks.append((rows[part], columns[open_to]))
        return blocks

    def _check(self, blocks: list[tuple[Int64, Int64]]) -> Int64:
        """Compute the blocks; return the pairs with the largest violations, none if none does."""
        found = []
        n_rows = sum(len(rows) for rows, _ in blocks)
        most = min(self._violators, max(_VIOLATORS, _MOST_ADDED // max(1, n_rows)))
        for rows, columns in blocks:
            parts = [
                self._check_block(rows, columns[start : start + BLOCK_COLUMNS])
                for start in range(0, len(columns), BLOCK_COLUMNS)
            ]
            i, j, violation = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            order = np.lexsort((-violation, i))
            i, j = i[order], j[order]
            rank = np.arange(len(i)) - np.searchsorted(i, i)  # within the row, the worst first
            kept = rank < most
            found.append(rows[i[kept]] * self._b.n + j[kept])
            checked = np.ones(len(rows), bool)
            checked[i[~kept]] = False
            self._verified[rows[checked]] = self.u[rows[checked]]
        return _sorted_unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _check_block(self, rows: Int64, columns: Int64) -> tuple[Int64, Int64, Float64]:
        """Violating pairs of a block: place among ``rows``, column, and size of the violation.

        Float32 products find the pairs that may violate, and float64 decides; where these are
        much of the block (as with many equal scores), the whole block is computed in float64.
        """
        block = self._products.multiply(rows, columns)
        self._count(len(rows) * len(columns))
        if not self._signed:
            np.abs(block, out=block)
        block -= self.v[columns].astype(np.float32)
        # the margin covers the product, the rest the rounding of the prices to float32
        limit = (self.u[rows] - self._margin - 1e-6).astype(np.float32)
        near = np.flatnonzero(block > limit[:, None])
        if len(near) <= block.size // 16:
            i, j = np.divmod(near, len(columns))
            violation = self._violation(rows[i], columns[j])
        else:
            scores = self._a.float64(rows) @ self._b.float64(columns).T
            self._count(2 * scores.size)  # a float64 product costs two of float32
            if not self._signed:
                np.abs(scores, out=scores)
            scores -= self.u[rows, None] + self.v[None, columns]
            i, j = np.nonzero(scores > self._slack)
            violation = scores[i, j]
        violates = violation > self._slack
        return i[violates], columns[j[violates]], violation[violates]

    def _count(self, n_products: int) -> None:
        share = n_products / (self._a.n * self._b.n)
        self._passes += share
        self._advance(share)

    def _violation(self, i: Int64, j: Int64) -> Float64:
        cosines = self._a.cosines(self._b, i, j)
        if not self._signed:
            np.abs(cosines, out=cosines)
        return np.asarray(cosines - self.u[i] - self.v[j])


def _sorted_unique(values: Int64) -> Int64:
    """Sorted values, each once; millions of them, for which numpy's hashing ``unique`` is slow."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


def _kept(lists: TopLists, n_partners: int) -> Float64:
    """``[n]``: the most that a partner outside a list can score; -inf if the list has them all."""
    worst = lists.threshold.astype(np.float64)
    return np.full(len(worst), -np.inf) if lists.key.shape[1] >= n_partners else worst


def _pairs_of(candidates: Candidates, n_b: int) -> Int64:
    """Return the candidates of rows and columns together, as sorted ``i * n_b + j``."""
    rows, columns = candidates.rows.index, candidates.columns.index
    by_row = np.arange(len(rows), dtype=np.int64)[:, None] * n_b + rows
    by_column = columns.astype(np.int64) * n_b + np.arange(len(columns), dtype=np.int64)[:, None]
    return _sorted_unique(np.concatenate([by_row.ravel(), by_column.ravel()]))
