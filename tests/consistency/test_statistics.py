"""Intervals over seeds: worked cases, what is not defined, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency import seed_interval
from husai.consistency.statistics import IntervalMethod
from husai.errors import InputError


def symmetric(
    rng: np.random.Generator, n: int, seed_sd: float, pair_sd: float
) -> NDArray[np.float64]:
    """``W_st = .5 + a_s + a_t + e_st``: seeds of different quality and noise of the pair."""
    a = seed_sd * rng.standard_normal(n)
    e = np.triu(pair_sd * rng.standard_normal((n, n)), 1)
    return np.asarray(0.5 + a[:, None] + a[None, :] + e + e.T)


def test_jackknife_by_hand() -> None:
    # three seeds: leaving one out leaves one pair
    W = np.array([[0, 0.4, 0.5], [0.4, 0, 0.9], [0.5, 0.9, 0]])
    got = seed_interval(W)
    assert got.mean == pytest.approx(0.6)
    assert got.se == pytest.approx(np.sqrt(2 / 3 * ((0.9 - 0.6) ** 2 + 0.1**2 + 0.2**2)))
    assert got.se is not None
    assert got.high is not None
    assert got.high - 0.6 == pytest.approx(4.302653 * got.se, rel=1e-6)
    cut = seed_interval(W, bounds=(0, 1))
    assert (cut.low, cut.high) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "words"), [(1, "one seed"), (2, "two seeds")])
def test_too_few_seeds_are_not_defined_and_say_so(n: int, words: str) -> None:
    got = seed_interval(np.full((n, n), 0.3))
    assert not got.defined
    assert words in got.reason
    assert got.low is None
    assert (got.mean is None) == (n == 1)


def coverage(
    n: int, seed_sd: float, pair_sd: float, trials: int, method: IntervalMethod = "jackknife"
) -> float:
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(trials):
        got = seed_interval(
            symmetric(rng, n, seed_sd, pair_sd),
            method=method,
            n_resamples=200,
        )
        assert got.low is not None
        assert got.high is not None
        hits += got.low <= 0.5 <= got.high
    return hits / trials


@pytest.mark.parametrize("n", [3, 5, 10])
def test_jackknife_covers_nominally_when_seeds_differ(n: int) -> None:
    assert coverage(n, 0.1, 0.0, 1500) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [3, 5])
def test_jackknife_never_undercovers_and_the_bootstrap_does(n: int) -> None:
    assert coverage(n, 0.05, 0.1, 800) >= 0.94
    assert coverage(n, 0.1, 0.0, 300, "bootstrap") < 0.9


def test_bad_matrices_are_errors() -> None:
    with pytest.raises(InputError, match="square"):
        seed_interval(np.ones((2, 3)))
    with pytest.raises(InputError, match="NaN"):
        seed_interval(np.array([[0, np.nan], [np.nan, 0]]))
    with pytest.raises(InputError, match="symmetric"):
        seed_interval(np.array([[0, 0.1], [0.3, 0]]))
    with pytest.raises(InputError, match="level"):
        seed_interval(np.ones((3, 3)), level=95)
    with pytest.raises(InputError, match="method"):
        seed_interval(np.ones((3, 3)), method="bayes")  # type: ignore[arg-type]
