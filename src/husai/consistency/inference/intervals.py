"""Intervals and tests over seeds, for scores of pairs of SAEs and of single SAEs.

The ten pair scores of five SAEs are not ten independent observations: pairs that share a seed are
correlated. The mean of the pair scores is a U-statistic of the seeds, and its spread is estimated
over the seeds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import comb, sqrt
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.errors import InputError

IntervalMethod = Literal["jackknife", "bootstrap"]


@dataclass(frozen=True)
class SeedInterval:
    """The mean score of a pair of seeds, with an interval over seeds.

    Attributes
    ----------
    mean
        Mean over pairs; None when there is no pair.
    low, high, se
        Ends of the interval and the standard error; None when not defined.
    level
        Confidence level.
    n_seeds, n_pairs
        Number of seeds and of pairs.
    method
        ``"jackknife"`` or ``"bootstrap"`` for pair scores, ``"t"`` for scores of single SAEs.
    reason
        Why something is None; empty when all is defined.
    """

    mean: float | None
    low: float | None
    high: float | None
    se: float | None
    level: float
    n_seeds: int
    n_pairs: int
    method: str
    reason: str

    @property
    def defined(self) -> bool:
        """Whether the interval is defined."""
        return self.low is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a flat dictionary."""
        return asdict(self)


def pair_matrix(scores: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    """Check a symmetric matrix ``[S, S]`` of pair scores; its diagonal is ignored.

    Raises
    ------
    InputError
        When it is not square, not symmetric, or a score off the diagonal is not finite.
    """
    W = np.array(scores, dtype=np.float64)
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] < 1:
        raise InputError(f"{name}: shape {W.shape}; give a square matrix, seeds by seeds")
    off = ~np.eye(len(W), dtype=bool)
    if not np.isfinite(W[off]).all():
        raise InputError(f"{name}: a pair score is NaN or infinite; leave that seed out")
    if not np.allclose(W[off], W.T[off], rtol=0, atol=1e-9):
        raise InputError(f"{name}: not symmetric; average the two directions first")
    np.fill_diagonal(W, 0.0)
    return W


def seed_interval(
    scores: ArrayLike,
    *,
    level: float = 0.95,
    method: IntervalMethod = "jackknife",
    bounds: tuple[float, float] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> SeedInterval:
    """Interval over seeds for the mean pair score.

    ``"jackknife"``: leave out one seed with all its pairs; ``se² = (S-1)/S Σ_s (U_(s) - Ū)²`` with
    the t quantile of S-1 degrees of freedom (Arvesen 1969 for U-statistics). Exact when seeds
    differ in quality, ``W_st = μ + a_s + a_t``; too wide when pairs have noise of their own.
    ``"bootstrap"`` resamples seeds and takes percentiles over pairs of different seeds: far too
    narrow with few seeds, and included only to show this.

    Measured coverage of a nominal 95 % (``benchmarks/consistency_coverage.py``, simulated
    seeds): jackknife .93 to .99 at 3, 5 and 10 seeds, lowest where a few seeds fail badly;
    bootstrap .49 to .76 at 3; a t interval that treats the pairs as independent .45 at 10. With
    three seeds the intervals cover but are wide: three to nine times the width with ten.

    It fails in three cases. *Basins*: when nine seeds in ten reach one solution and the others
    another (scores .9 within and .5 across, pair noise .02), the interval covers the truth in .41
    of studies with 5 seeds, .61 with 10 and .86 with 20, since a few seeds often all reach the same
    solution and agree perfectly. *Skew*: a few seeds that fail badly bring the coverage below
    nominal. *Three seeds*: pair noise alone makes the interval twice too wide, so that real
    differences are missed. So show the scores of the seeds beside the interval;
    :mod:`~husai.consistency.inference.planning` says how many seeds an interval of a given width
    needs.

    Parameters
    ----------
    scores
        ``[S, S]`` symmetric pair scores; the diagonal is ignored.
    level
        Confidence level in (0, 1).
    method
        ``"jackknife"`` (default) or ``"bootstrap"``.
    bounds
        Possible values of the score, for example ``(0, 1)``; the interval is cut there.
    n_resamples, seed
        Number of resamples of the bootstrap, and their seed.

    Returns
    -------
    SeedInterval
        With fewer than three seeds, ``reason`` says why there is no interval.

    Raises
    ------
    InputError
        When the matrix, the level or the method is not valid.
    """
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    if method not in get_args(IntervalMethod):
        raise InputError(f"method: {method!r} is not known; choose from {get_args(IntervalMethod)}")
    W = pair_matrix(scores)
    n = len(W)
    n_pairs = n * (n - 1) // 2
    if n < 3:
        reason = (
            "one seed: no pair to compare"
            if n == 1
            else "two seeds make one pair: the spread over seeds is not known"
        )
        mean = float(W[0, 1]) if n == 2 else None
        return SeedInterval(mean, None, None, None, level, n, n_pairs, method, reason)
    mean = float(W.sum() / 2 / n_pairs)
    if method == "jackknife":
        return jackknife_interval(mean, _without_each(W), level=level, bounds=bounds)
    means = _bootstrap_means(W, n_resamples, np.random.default_rng(seed))
    low, high = (float(v) for v in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    low, high = _within(low, high, bounds)
    se = float(means.std(ddof=1))
    return SeedInterval(mean, low, high, se, level, n, n_pairs, method, "")


def jackknife_interval(
    whole: float,
    without: ArrayLike,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> SeedInterval:
    """Interval over seeds for any statistic, from its values with each seed left out.

    ``se² = (S-1)/S Σ_s (θ_(s) - θ̄)²``, with the t quantile of S-1 degrees of freedom. The interval
    is centred on the statistic of all seeds.

    Parameters
    ----------
    whole
        The statistic of all S seeds.
    without
        ``[S]``: the statistic with seed s left out.
    level
        Confidence level.
    bounds
        Possible values of the statistic; the interval is cut there.

    Raises
    ------
    InputError
        When fewer than two values are given or one is not finite.
    """
    left = np.asarray(without, dtype=np.float64)
    if left.ndim != 1 or len(left) < 2 or not np.isfinite([whole, *left]).all():
        raise InputError(
            "without: give at least two finite values, the statistic without each seed"
        )
    n = len(left)
    se = (n - 1) * float(left.std(ddof=1)) / sqrt(n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * se
    low, high = _within(whole - half, whole + half, bounds)
    return SeedInterval(whole, low, high, se, level, n, n * (n - 1) // 2, "jackknife", "")


def _within(low: float, high: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """Cut an interval to the possible values."""
    return (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))


def _bootstrap_means(
    W: NDArray[np.float64], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean pair score of resampled seeds, over pairs of different seeds."""
    n = len(W)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    counts = counts[(counts > 0).sum(axis=1) > 1]  # one seed n times has no pair
    weighted = np.einsum("rs,st,rt->r", counts, W, counts)
    means: NDArray[np.float64] = weighted / (
        counts.sum(axis=1) ** 2 - np.square(counts).sum(axis=1)
    )
    return means


def pseudo_values(scores: ArrayLike) -> NDArray[np.float64]:
    """Jackknife pseudo-values ``S U - (S-1) U_(s)`` of the mean pair score, one per seed.

    Their mean is the mean pair score, and their spread shows how much the seeds differ.

    Parameters
    ----------
    scores
        ``[S, S]`` symmetric pair scores of at least three seeds; the diagonal is ignored.

    Returns
    -------
    values
        ``[S]``, one per seed.

    Raises
    ------
    InputError
        When the matrix is not valid or has fewer than three seeds.
    """
    W = pair_matrix(scores)
    n = len(W)
    if n < 3:
        raise InputError(f"scores: {n} seeds; a jackknife over seeds needs at least three")
    return np.asarray(n * W.sum() / 2 / comb(n, 2) - (n - 1) * _without_each(W))


def _without_each(W: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[S]``: the mean pair score with each of three or more seeds left out."""
    return np.asarray((W.sum() / 2 - W.sum(axis=1)) / comb(len(W) - 1, 2))


@dataclass(frozen=True)
class Difference:
    """Difference of the mean pair scores of two groups of seeds.

    Attributes
    ----------
    difference
        Mean of A minus mean of B; None when a group has no pair.
    low, high, se
        Interval over seeds and standard error; None with fewer than three seeds in a group.
    p_value
        Two-sided t-test of no difference, with the same standard error; None where undefined.
    effect
        Hedges' g on the jackknife pseudo-values: the difference in units of the spread of seeds.
        None where nothing varies.
    level, paired, n_a, n_b
        Confidence level, whether seeds are paired, and the numbers of seeds.
    reason
        Why something is None.
    """

    difference: float | None
    low: float | None
    high: float | None
    se: float | None
    p_value: float | None
    effect: float | None
    level: float
    paired: bool
    n_a: int
    n_b: int
    reason: str


def seed_difference(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    level: float = 0.95,
    paired: bool = False,
    bounds: tuple[float, float] | None = None,
) -> Difference:
    """Difference of two groups' mean pair scores with an interval over seeds.

    Unpaired: the jackknife variances are added; t with Welch's degrees of freedom. Paired (seed s
    of A and seed s of B have the same initialisation or data order): jackknife of the difference,
    with S-1 degrees of freedom.

    Parameters
    ----------
    scores_a, scores_b
        ``[S_a, S_a]`` and ``[S_b, S_b]`` symmetric pair scores.
    level
        Confidence level.
    paired
        Whether seed s of A belongs to seed s of B.
    bounds
        Possible values of the difference, for example ``(-1, 1)``; the interval is cut there.

    Raises
    ------
    InputError
        When a matrix or the level is not valid, or paired groups differ in size.
    """
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    A, B = pair_matrix(scores_a, "scores_a"), pair_matrix(scores_b, "scores_b")
    n_a, n_b = len(A), len(B)
    if paired and n_a != n_b:
        raise InputError(f"paired: groups of {n_a} and {n_b} seeds cannot be paired")
    if min(n_a, n_b) < 2:
        reason = "a group has one seed: no pair to compare"
        return Difference(None, None, None, None, None, None, level, paired, n_a, n_b, reason)
    means = [float(W.sum() / (len(W) * (len(W) - 1))) for W in (A, B)]
    difference = means[0] - means[1]
    if min(n_a, n_b) < 3:
        reason = "a group has two seeds: its spread over seeds is not known"
        return Difference(difference, None, None, None, None, None, level, paired, n_a, n_b, reason)
    x, y = pseudo_values(A), pseudo_values(B)
    if paired:
        delta = x - y
        se = float(delta.std(ddof=1) / sqrt(n_a))
        freedom = float(n_a - 1)
        pooled, scale = float(delta.std(ddof=1)), 1 - 3 / (4 * freedom - 1)
    else:
        v_a, v_b = x.var(ddof=1) / n_a, y.var(ddof=1) / n_b
        se = sqrt(v_a + v_b)
        welch = v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1)
        freedom = float((v_a + v_b) ** 2 / welch) if welch > 0 else float(min(n_a, n_b) - 1)
        total = n_a + n_b - 2
        pooled = sqrt(((n_a - 1) * x.var(ddof=1) + (n_b - 1) * y.var(ddof=1)) / total)
        scale = 1 - 3 / (4 * total - 1)  # Hedges' correction for few seeds
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * se
    effect = difference / pooled * scale if pooled > 0 else None
    low, high = _within(difference - half, difference + half, bounds)
    return Difference(
        difference=difference,
        low=low,
        high=high,
        se=se,
        p_value=float(2 * stats.t.sf(abs(difference) / se, freedom)) if se > 0 else None,
        effect=effect,
        level=level,
        paired=paired,
        n_a=n_a,
        n_b=n_b,
        reason="",
    )


def mean_interval(
    values: ArrayLike, *, level: float = 0.95, bounds: tuple[float, float] | None = None
) -> SeedInterval:
    """Interval for the mean of a score of single SAEs (plane recall, FVU).

    Seeds are independent, so this is the t interval; with one seed there is none.

    Parameters
    ----------
    values
        ``[S]``, one per seed.
    level
        Confidence level.
    bounds
        Possible values of the score, for example ``(0, 1)``; the interval is cut there.

    Raises
    ------
    InputError
        When the values are not finite or there is none.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise InputError("values: give at least one finite number per seed")
    n, mean = len(x), float(x.mean())
    if n < 2:
        reason = "one seed: the spread over seeds is not known"
        return SeedInterval(mean, None, None, None, level, n, 0, "t", reason)
    se = float(x.std(ddof=1) / sqrt(n))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * se
    low, high = _within(mean - half, mean + half, bounds)
    return SeedInterval(mean, low, high, se, level, n, 0, "t", "")
