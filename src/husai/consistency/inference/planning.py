"""How many seeds a study needs, from the variances of seed effects and pair noise.

The model is ``W_st = μ + a_s + a_t + e_st``, with seed effects ``a`` and pair noise ``e``. Both
variances are estimated from the pair scores of a study, and give:

- variance of the mean pair score of S seeds: ``4 σ_a² / S + 2 σ_e² / (S (S-1))``;
- expected squared standard error of the jackknife: ``4 σ_a² / S + 4 σ_e² / (S (S-2))``. It is
  right for seed effects and too large for pair noise, by ``2 (S-1) / (S-2)``: twice too wide at
  S = 3. Studies show the jackknife interval, so plans use this one.

The model does not cover basins: where most seeds reach one solution and a few another, seed
effects are not normal, and no interval from few seeds reaches its nominal coverage (see
:func:`~husai.consistency.inference.intervals.seed_interval`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from husai.consistency.inference.intervals import pair_matrix
from husai.errors import InputError

MAX_SEEDS = 200
"""Plans try at most this many seeds; where they are not enough, the answer is None."""


@dataclass(frozen=True)
class VarianceComponents:
    """The variances of the pair scores of a group of seeds.

    Attributes
    ----------
    mean
        Mean pair score μ.
    seed_sd
        σ_a, standard deviation of a seed's effect.
    pair_sd
        σ_e, standard deviation of the pair noise.
    n_seeds
        Seeds that the estimate was made from; with four or five it is rough.
    """

    mean: float
    seed_sd: float
    pair_sd: float
    n_seeds: int

    def variance(self, n_seeds: int) -> float:
        """Variance of the mean pair score over ``n_seeds`` seeds."""
        pairs = n_seeds * (n_seeds - 1) / 2
        return 4 * self.seed_sd**2 / n_seeds + self.pair_sd**2 / pairs

    def jackknife_variance(self, n_seeds: int) -> float:
        """Expected squared standard error that the jackknife gives for ``n_seeds >= 3``."""
        return 4 * self.seed_sd**2 / n_seeds + 4 * self.pair_sd**2 / (n_seeds * (n_seeds - 2))

    def half_width(self, n_seeds: int, level: float = 0.95) -> float:
        """Half the expected width of the jackknife interval over ``n_seeds >= 3`` seeds."""
        quantile = float(stats.t.ppf((1 + level) / 2, n_seeds - 1))
        return quantile * sqrt(self.jackknife_variance(n_seeds))

    def simulate(self, n_seeds: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a symmetric ``[S, S]`` matrix of pair scores from the model, not cut to bounds."""
        a = self.seed_sd * rng.standard_normal(n_seeds)
        e = np.triu(self.pair_sd * rng.standard_normal((n_seeds, n_seeds)), 1)
        return np.asarray(self.mean + a[:, None] + a[None, :] + e + e.T)


def variance_components(scores: ArrayLike) -> VarianceComponents:
    """Estimate the variances of seeds and pairs from pair scores.

    The analysis of variance of a half diallel without selfing (Griffing 1956, method 4): the mean
    square of rows has expectation ``σ_e² + (S-2) σ_a²``, the residual one ``σ_e²``. A negative
    estimate of σ_a² becomes 0.

    Parameters
    ----------
    scores
        ``[S, S]`` symmetric pair scores of at least four seeds; the diagonal is ignored.

    Raises
    ------
    InputError
        When the matrix is not valid or has fewer than four seeds: with three, seed effects and
        pair noise cannot be separated.
    """
    W = pair_matrix(scores)
    n = len(W)
    if n < 4:
        raise InputError(
            f"scores: {n} seeds; give at least four, to separate seed effects from pair noise"
        )
    rows = W.sum(axis=1)
    total = rows.sum() / 2
    seeds = float(np.square(rows).sum() / (n - 2) - 4 * total**2 / (n * (n - 2)))
    squares = float(np.square(W[np.triu_indices(n, 1)]).sum())
    residual = squares - seeds - 2 * total**2 / (n * (n - 1))
    pair_variance = max(residual, 0.0) / (n * (n - 3) / 2)
    seed_variance = max((seeds / (n - 1) - pair_variance) / (n - 2), 0.0)
    mean = float(total / (n * (n - 1) / 2))
    return VarianceComponents(mean, sqrt(seed_variance), sqrt(pair_variance), n)


def seeds_for_half_width(
    components: VarianceComponents, half_width: float = 0.05, *, level: float = 0.95
) -> int | None:
    """Fewest seeds for which the jackknife interval is expected to be at most ± ``half_width``.

    Returns None when ``MAX_SEEDS`` are not enough.

    Raises
    ------
    InputError
        When the width is not positive or the level is outside (0, 1).
    """
    if not half_width > 0 or not 0 < level < 1:
        raise InputError(f"half_width {half_width}, level {level}; give a width > 0, a level < 1")
    return _fewest(lambda n: components.half_width(n, level) <= half_width)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Fewest seeds, from 3 to ``MAX_SEEDS``, by bisection: if n are enough, so are n + 1."""
    low, high = 3, 3
    # from below, since the noncentral t is NaN for far more seeds than needed
    while not enough(high):
        if high == MAX_SEEDS:
            return None
        low, high = high + 1, min(2 * high, MAX_SEEDS)
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def power_to_separate(
    a: VarianceComponents, b: VarianceComponents, n_seeds: int, *, level: float = 0.95
) -> float:
    """Probability that ``n_seeds`` seeds in each of two settings show a difference.

    The test is the unpaired one of
    :func:`~husai.consistency.inference.intervals.seed_difference`. Pair noise makes its standard
    error too large, which lowers the power.

    Raises
    ------
    InputError
        With fewer than three seeds, or a level outside (0, 1).
    """
    if n_seeds < 3 or not 0 < level < 1:
        raise InputError(f"n_seeds {n_seeds}, level {level}; give at least 3 and a level below 1")
    variance = a.variance(n_seeds) + b.variance(n_seeds)
    expected = [side.jackknife_variance(n_seeds) for side in (a, b)]
    difference = abs(a.mean - b.mean)
    if variance == 0:
        return 1.0 if difference > 0 else 0.0
    # Welch's degrees of freedom at the expected variances
    freedom = sum(expected) ** 2 / sum(v**2 for v in expected) * (n_seeds - 1)
    quantile = float(stats.t.ppf((1 + level) / 2, freedom)) * sqrt(sum(expected) / variance)
    shift = difference / sqrt(variance)
    upper = stats.nct.sf(quantile, freedom, shift)
    lower = stats.nct.cdf(-quantile, freedom, shift)
    return float(upper + lower)


def seeds_to_separate(
    a: VarianceComponents, b: VarianceComponents, *, power: float = 0.8, level: float = 0.95
) -> int | None:
    """Fewest seeds in each of two settings that show a difference with the given power.

    Returns None when ``MAX_SEEDS`` are not enough, as for two equal means.

    Raises
    ------
    InputError
        When power or level is outside (0, 1).
    """
    if not 0 < power < 1:
        raise InputError(f"power: {power}; give a number between 0 and 1")
    return _fewest(lambda n: power_to_separate(a, b, n, level=level) >= power)
