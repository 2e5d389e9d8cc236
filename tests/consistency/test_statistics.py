"""Intervals over seeds: worked cases, what is not defined, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency import adjust_p, seed_difference, seed_interval, seed_permutation_test
from husai.consistency.inference.intervals import IntervalMethod
from husai.errors import InputError


def symmetric(
    rng: np.random.Generator, n: int, seed_sd: float, pair_sd: float
) -> NDArray[np.float64]:
    """``W_st = .5 + a_s + a_t + e_st``: seeds of different quality and noise of the pair."""
    a = seed_sd * rng.standard_normal(n)
    e = np.triu(pair_sd * rng.standard_normal((n, n)), 1)
    return np.asarray(0.5 + a[:, None] + a[None, :] + e + e.T)


def test_jackknife_equals_a_computation_by_hand() -> None:
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
    assert coverage(n, 0.1, 0.0, 800) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("n", [3, 5])
def test_jackknife_never_undercovers_and_the_bootstrap_does(n: int) -> None:
    assert coverage(n, 0.05, 0.1, 500) >= 0.94
    assert coverage(n, 0.1, 0.0, 150, "bootstrap") < 0.9


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


def test_difference_of_groups_covers_and_is_calibrated() -> None:
    rng = np.random.default_rng(20)
    hits, effects = 0, []
    for _ in range(1000):
        got = seed_difference(symmetric(rng, 5, 0.1, 0.0) + 0.2, symmetric(rng, 4, 0.1, 0.0))
        assert got.low is not None
        assert got.high is not None
        assert got.effect is not None
        hits += got.low <= 0.2 <= got.high
        effects.append(got.effect)
    assert hits / 1000 == pytest.approx(0.95, abs=0.02)
    # a pseudo-value moves by 2 a_s: the true effect is .2 / (2 · .1) = 1
    assert np.mean(effects) == pytest.approx(1.0, abs=0.08)


def test_pairing_removes_effects_that_groups_share() -> None:
    rng = np.random.default_rng(21)
    common = symmetric(rng, 5, 0.2, 0.0)
    a, b = common + 0.02 + 0.01 * symmetric(rng, 5, 0.1, 0.0), common
    paired, apart = seed_difference(a, b, paired=True), seed_difference(a, b)
    assert paired.difference == pytest.approx(apart.difference)
    assert paired.se is not None
    assert apart.se is not None
    assert paired.se < apart.se / 20


def test_differences_that_are_not_defined_say_why() -> None:
    one = seed_difference(np.ones((1, 1)), np.ones((3, 3)))
    assert one.difference is None
    assert "one seed" in one.reason
    two = seed_difference(np.full((2, 2), 0.5), np.full((3, 3), 0.3))
    assert two.difference == pytest.approx(0.2)
    assert two.low is None
    assert "two seeds" in two.reason
    flat = seed_difference(np.full((3, 3), 0.5), np.full((3, 3), 0.3))
    assert flat.effect is None
    with pytest.raises(InputError, match="paired"):
        seed_difference(np.ones((3, 3)), np.ones((4, 4)), paired=True)


def block_scores(
    sizes: tuple[int, int], within: tuple[float, float], across: float
) -> NDArray[np.float64]:
    n = sum(sizes)
    W = np.full((n, n), across)
    W[: sizes[0], : sizes[0]] = within[0]
    W[sizes[0] :, sizes[0] :] = within[1]
    return W


def test_permutation_test_equals_a_computation_by_hand() -> None:
    W = block_scores((3, 3), (0.8, 0.6), 0.5)
    got = seed_permutation_test(W, list("aaabbb"))
    assert got.exact
    assert got.n_permutations == 20
    assert got.value == pytest.approx(0.2)
    # |difference| of .2 only for the observed labels and their swap
    assert got.p_value == pytest.approx(2 / 20)
    assert got.least_p == pytest.approx(2 / 20)
    apart = seed_permutation_test(W, list("aaabbb"), statistic="separation")
    assert apart.value == pytest.approx(0.2)
    assert apart.p_value == pytest.approx(2 / 20)
    uneven = seed_permutation_test(block_scores((2, 3), (0.8, 0.5), 0.5), list("aabbb"))
    assert uneven.n_permutations == 10
    assert uneven.p_value == pytest.approx(1 / 10)
    three = seed_permutation_test(np.eye(6), list("aabbcc"), statistic="separation")
    assert three.n_permutations == 90
    assert three.p_value == 1.0


def test_permutation_p_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(22)
    p = []
    for _ in range(150):
        W = symmetric(rng, 8, 0.1, 0.05)
        p.append(seed_permutation_test(W, list("aaaabbbb")).p_value)
    assert (np.array(p) <= 0.1).mean() == pytest.approx(0.1, abs=0.06)
    W = symmetric(rng, 8, 0.1, 0.05)
    exact = seed_permutation_test(W, list("aaaabbbb"))
    drawn = seed_permutation_test(W, list("aaaabbbb"), n_permutations=60)
    assert exact.exact
    assert not drawn.exact
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.2)


def test_adjusted_p_values_of_many_comparisons() -> None:
    assert adjust_p([0.01, 0.04, 0.03, None], method="holm") == pytest.approx(
        [0.03, 0.06, 0.06, None]
    )
    assert adjust_p([0.01, float("nan"), 0.02, 0.5]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.03),
        pytest.approx(0.5),
    ]
    assert adjust_p([None]) == [None]
    rng = np.random.default_rng(23)
    families = [adjust_p(rng.random(20), method="holm") for _ in range(400)]
    false_families = np.mean([min(p or 1.0 for p in f) < 0.05 for f in families])
    assert false_families == pytest.approx(0.05, abs=0.03)
    with pytest.raises(InputError, match="outside"):
        adjust_p([1.2])


def test_labels_that_do_not_fit_are_errors() -> None:
    with pytest.raises(InputError, match="labels"):
        seed_permutation_test(np.ones((3, 3)), ["a", "b"])
    with pytest.raises(InputError, match="at least two"):
        seed_permutation_test(np.ones((3, 3)), ["a", "a", "b"])
    with pytest.raises(InputError, match="between two"):
        seed_permutation_test(np.ones((6, 6)), list("aabbcc"))
