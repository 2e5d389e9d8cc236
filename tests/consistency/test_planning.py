"""Plans against simulated studies, which the intervals of the library itself analyse."""

from __future__ import annotations

import numpy as np
import pytest

from husai.consistency import pseudo_values, seed_difference, seed_interval
from husai.consistency.inference.planning import (
    VarianceComponents,
    power_to_separate,
    seeds_for_half_width,
    seeds_to_separate,
    variance_components,
)
from husai.errors import InputError

WORLDS = [(0.05, 0.0), (0.0, 0.05), (0.04, 0.06)]


@pytest.mark.parametrize(("seed_sd", "pair_sd"), WORLDS)
def test_components_are_unbiased(seed_sd: float, pair_sd: float) -> None:
    world = VarianceComponents(0.7, seed_sd, pair_sd, 0)
    rng = np.random.default_rng(0)
    got = [variance_components(world.simulate(8, rng)) for _ in range(600)]
    assert np.mean([g.mean for g in got]) == pytest.approx(0.7, abs=0.004)
    assert np.mean([g.pair_sd**2 for g in got]) == pytest.approx(pair_sd**2, abs=1.5e-4)
    # an estimate below 0 becomes 0, which costs a little bias where there is no seed effect
    assert np.mean([g.seed_sd**2 for g in got]) == pytest.approx(seed_sd**2, abs=2e-4)


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize(("seed_sd", "pair_sd"), WORLDS)
def test_variances_of_the_mean_and_of_the_jackknife(seed_sd: float, pair_sd: float, n: int) -> None:
    world = VarianceComponents(0.5, seed_sd, pair_sd, 0)
    rng = np.random.default_rng(1)
    # the jackknife's standard error is that of its pseudo-values, their mean the score
    values = np.array([pseudo_values(world.simulate(n, rng)) for _ in range(1000)])
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(n)
    assert means.var() == pytest.approx(world.variance(n), rel=0.15)
    assert np.square(errors).mean() == pytest.approx(world.jackknife_variance(n), rel=0.15)


def test_pair_noise_alone_makes_three_seeds_twice_too_wide() -> None:
    noise = VarianceComponents(0.5, 0.0, 0.1, 0)
    assert noise.jackknife_variance(3) / noise.variance(3) == pytest.approx(4.0)
    seeds = VarianceComponents(0.5, 0.1, 0.0, 0)
    assert seeds.jackknife_variance(3) == pytest.approx(seeds.variance(3))


def test_planned_seeds_give_the_width_that_is_asked_for() -> None:
    world = VarianceComponents(0.7, 0.03, 0.04, 0)
    n = seeds_for_half_width(world, 0.05)
    assert n is not None
    assert world.half_width(n) <= 0.05 < world.half_width(n - 1)
    rng = np.random.default_rng(2)
    widths = []
    for _ in range(300):
        got = seed_interval(world.simulate(n, rng))
        assert got.low is not None
        assert got.high is not None
        widths.append((got.high - got.low) / 2)
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(world.half_width(n), rel=0.08)


@pytest.mark.parametrize(("seed_sd", "pair_sd"), WORLDS)
def test_power_equals_that_of_simulated_comparisons(seed_sd: float, pair_sd: float) -> None:
    a = VarianceComponents(0.70, seed_sd, pair_sd, 0)
    b = VarianceComponents(0.62, seed_sd, pair_sd, 0)
    rng = np.random.default_rng(3)
    n, trials = 5, 300
    found = 0
    for _ in range(trials):
        p = seed_difference(a.simulate(n, rng), b.simulate(n, rng)).p_value
        assert p is not None
        found += p < 0.05
    assert found / trials == pytest.approx(power_to_separate(a, b, n), abs=0.1)


def test_more_seeds_are_needed_for_smaller_differences() -> None:
    a = VarianceComponents(0.70, 0.03, 0.03, 0)
    far = seeds_to_separate(a, VarianceComponents(0.50, 0.03, 0.03, 0))
    near = seeds_to_separate(a, VarianceComponents(0.66, 0.03, 0.03, 0))
    assert far is not None
    assert near is not None
    assert far < near
    assert power_to_separate(a, VarianceComponents(0.66, 0.03, 0.03, 0), near) >= 0.8
    assert seeds_to_separate(a, a) is None
    assert seeds_for_half_width(VarianceComponents(0.5, 3.0, 0.0, 0)) is None


def test_impossible_plans_are_an_error() -> None:
    with pytest.raises(InputError, match="four"):
        variance_components(np.eye(3))
    world = VarianceComponents(0.5, 0.1, 0.1, 0)
    with pytest.raises(InputError, match="half_width"):
        seeds_for_half_width(world, 0.0)
    with pytest.raises(InputError, match="n_seeds"):
        power_to_separate(world, world, 2)
    with pytest.raises(InputError, match="power"):
        seeds_to_separate(world, world, power=1.0)


def test_the_interval_over_few_seeds_does_not_cover_two_basins() -> None:
    # scores .9 within a basin and .5 across, one seed in ten in the smaller: as the docstring says
    truth = 0.9 * (0.9**2 + 0.1**2) + 0.5 * 2 * 0.9 * 0.1
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(300):
        basin = rng.random(10) < 0.1
        noise = np.triu(0.02 * rng.standard_normal((10, 10)), 1)
        W = np.where(basin[:, None] == basin, 0.9, 0.5) + noise + noise.T
        got = seed_interval(W)
        assert got.low is not None
        assert got.high is not None
        covered += got.low <= truth <= got.high
    assert covered / 300 == pytest.approx(0.61, abs=0.09)
