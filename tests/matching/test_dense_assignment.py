"""The assignment on a whole matrix: the optimum by brute force, and by scipy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from husai.errors import InputError
from husai.matching.dense_assignment import assign
from husai.matching.match import match_features, matched_mean


def total(scores: np.ndarray) -> float:
    """Sum of the match, after a check that it is one."""
    rows, columns = assign(scores)
    n = min(scores.shape)
    assert len(rows) == len(columns) == len(set(rows)) == len(set(columns)) == n
    assert (np.diff(rows) > 0).all()
    return float(scores[rows, columns].sum())


@pytest.mark.parametrize("ties", [False, True])
def test_small_matrices_are_matched_as_well_as_by_brute_force(ties: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        n_a, n_b = rng.integers(1, 6, 2)
        scores = rng.standard_normal((n_a, n_b))
        if ties:
            scores = rng.integers(-2, 3, (n_a, n_b)).astype(float)
        wide = scores if n_a <= n_b else scores.T
        best = max(
            wide[np.arange(len(wide)), list(p)].sum()
            for p in permutations(range(wide.shape[1]), len(wide))
        )
        assert total(scores) == pytest.approx(best)


@pytest.mark.parametrize("shape", [(150, 150), (60, 200), (200, 60)])
def test_larger_matrices_are_matched_as_by_scipy(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    line = np.sort(rng.random(max(shape)))
    for scores in (
        rng.standard_normal(shape),
        rng.integers(0, 3, shape).astype(float),  # many equal ones: price wars
        1 + 1e-15 * rng.standard_normal(shape),  # differences below what prices can hold
        np.outer(line[: shape[0]], line[: shape[1]]),  # one best column for all
        -np.square(np.subtract.outer(line[: shape[0]], line[: shape[1]] + 0.3)),
        np.zeros(shape),
    ):
        wanted = scores[linear_sum_assignment(scores, maximize=True)].sum()
        assert total(scores) == pytest.approx(wanted, rel=1e-12, abs=1e-9)


def test_the_mean_alone_equals_that_of_the_match() -> None:
    rng = np.random.default_rng(2)
    A, B = rng.standard_normal((30, 8)), rng.standard_normal((21, 8))
    for signed in (True, False):
        match = match_features(A, B, signed=signed)
        assert matched_mean(A, B, signed=signed) == pytest.approx(match.mean, abs=1e-12)
    with pytest.raises(InputError, match="rows of 8 numbers and B of 5"):
        matched_mean(A, B[:, :5])


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite matrix"):
        assign(np.array([[1.0, np.nan]]))
    with pytest.raises(InputError, match="finite matrix"):
        assign(np.ones(3))
