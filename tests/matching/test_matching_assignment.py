"""The sparse assignment against scipy, and its dual prices against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from husai.matching.assignment import FREE, reduce_rows, shortest_paths
from husai.matching.certified import _ceiling


@pytest.mark.parametrize("bids", [0, 1, 10_000])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (14, 9)])
def test_optimum_and_prices_of_random_sparse_graphs_are_exact(
    shape: tuple[int, int], ties: bool, bids: int
) -> None:
    outside = -0.5
    for seed in range(30):
        rng = np.random.default_rng(seed)
        dense = rng.random(shape)
        if ties:
            dense = np.round(dense * 3) / 3
        present = rng.random(shape) < rng.choice([0.15, 0.4, 1.0])
        rows, columns = np.nonzero(present)
        indptr = np.searchsorted(rows, np.arange(shape[0] + 1))
        scores = dense[rows, columns]
        u, v = np.zeros(shape[0]), np.zeros(shape[1])
        column_of, row_of = np.full(shape[0], FREE), np.full(shape[1], FREE)
        graph = (indptr, columns.astype(np.int32), scores, v, column_of, row_of, u, outside)
        reduce_rows(*graph, bids)
        while (column_of == FREE).any():
            shortest_paths(*graph, 7)  # in small portions, as an interruptible caller does

        # oracle: leaving row i out is a column of its own, worth ``outside``
        padded = np.full((shape[0], shape[1] + shape[0]), -1e6)
        padded[:, : shape[1]][present] = dense[present]
        padded[np.arange(shape[0]), shape[1] + np.arange(shape[0])] = outside
        i, j = linear_sum_assignment(padded, maximize=True)
        placed = column_of >= 0
        value = dense[placed.nonzero()[0], column_of[placed]].sum() + outside * (~placed).sum()
        assert value == pytest.approx(padded[i, j].sum(), abs=1e-12)

        assert present[placed.nonzero()[0], column_of[placed]].all()
        assert len(set(column_of[placed].tolist())) == placed.sum()
        np.testing.assert_array_equal(row_of[column_of[placed]], placed.nonzero()[0])
        # the dual: feasible, and tight where it has to be
        assert (u[rows] + v[columns] - scores).min(initial=0) >= -1e-12
        assert u.min() >= outside - 1e-12
        assert v.min() >= 0
        assert np.all(v[row_of == FREE] == 0)
        np.testing.assert_allclose(u[~placed], outside, atol=1e-12)
        assert u.sum() + v.sum() == pytest.approx(value, abs=1e-10)


def test_the_bound_on_pairs_not_kept_equals_brute_force() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        r, c, price = rng.normal(size=30), rng.normal(size=20), rng.random(20)
        r[rng.random(30) < 0.2] = -np.inf
        c[rng.random(20) < 0.2] = -np.inf
        expected = (np.minimum(r[:, None], c[None, :]) - price).max(axis=1)
        np.testing.assert_allclose(_ceiling(r, c, price), expected)
