"""Statistics of observations that come in clusters: bootstrap of clusters, shares, correlations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.errors import InputError

Floats = NDArray[np.float64]

MIN_CLUSTERS = 5
"""With fewer independent clusters there is no bootstrap interval."""

_BLOCK_NUMBERS = 1_000_000  # numbers in a block of resamples: 8 MB


def too_few(n_clusters: int) -> str:
    """Return the reason why there is no interval."""
    return f"{n_clusters} independent clusters; an interval needs at least {MIN_CLUSTERS}"


def resampled(
    code: NDArray[np.int64], n_resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Yield how often each observation is in each resample of clusters, in blocks ``[r, n]``.

    Parameters
    ----------
    code
        ``[n]``: number of the cluster of each observation.
    n_resamples
        Number of resamples.
    rng
        Random generator.
    """
    n_clusters = int(code.max()) + 1
    counts = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_resamples)
    at_once = max(1, _BLOCK_NUMBERS // len(code))
    for start in range(0, n_resamples, at_once):
        yield counts[start : start + at_once, code].astype(np.float64)


def percentiles(draws: Floats, level: float) -> tuple[float, float]:
    """Ends of the percentile interval of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def midranks(x: Floats, weights: Floats) -> Floats:
    """Ranks ``[R, n]`` of ``x [n]`` when observation i is repeated ``weights[r, i]`` times.

    Ties share their mean rank, as in ``scipy.stats.rankdata`` of the repeated observations.
    """
    values, place = np.unique(x, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    count = np.add.reduceat(weights[:, order], starts, axis=1)
    rank: Floats = (np.cumsum(count, axis=1) - (count - 1) / 2)[:, place]
    return rank


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's correlation ``[R]`` for each row of weights ``[R, n]``; NaN if constant."""
    total = weights.sum(axis=1, keepdims=True)
    a, b = midranks(x, weights), midranks(y, weights)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    product = (weights * a * b).sum(axis=1)
    # ranks are multiples of a half, so a smaller scale is rounding error of a constant
    return np.where(scale > 1e-9, product / np.maximum(scale, 1e-9), np.nan)


def spearman(x: Floats, y: Floats) -> float | None:
    """Spearman's correlation; None for fewer than three observations or a constant side."""
    if len(x) < 3:
        return None
    value = float(weighted_spearman(x, y, np.ones((1, len(x))))[0])
    return None if np.isnan(value) else value


@dataclass(frozen=True)
class ClusteredShare:
    """A share of observations that come in clusters.

    Attributes
    ----------
    value, low, high
        The share and its interval; None without observations.
    n, n_clusters
        Number of observations, and of independent clusters.
    n_effective
        Number of independent observations with the same precision; None without observations.
    level
        Confidence level.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_clusters: int
    n_effective: float | None
    level: float


def clustered_share(
    success: ArrayLike, cluster: Sequence[Any], *, level: float = 0.95
) -> ClusteredShare:
    """Compute a share with Wilson's interval for the effective number of observations.

    The design effect is the variance of the share between clusters (of the ratio estimator, Kish
    1965) divided by that of n independent observations. The effective number is n divided by the
    design effect, at least the number of clusters and at most n. A share of 0 or 1 has no spread:
    then every cluster counts as one observation, so that the interval still has a length.

    Parameters
    ----------
    success
        ``[n]`` bool.
    cluster
        ``[n]`` the cluster of each observation.
    level
        Confidence level.

    Raises
    ------
    InputError
        When lengths differ or the level is not between 0 and 1.
    """
    y = np.asarray(success, dtype=bool)
    if y.ndim != 1 or len(y) != len(cluster):
        raise InputError(f"success, cluster: shapes {y.shape} and ({len(cluster)},); they differ")
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    n = len(y)
    if not n:
        return ClusteredShare(None, None, None, 0, 0, None, level)
    code = pd.factorize(pd.Series(list(cluster), dtype=object))[0]
    n_clusters = int(code.max()) + 1
    share = float(y.mean())
    effective = float(n_clusters)
    if n_clusters > 1 and 0 < share < 1:
        residual = np.bincount(code, weights=y - share)
        variance = n_clusters / (n_clusters - 1) * float(residual @ residual) / n**2
        if variance > 0:
            effective = min(max(share * (1 - share) / variance, n_clusters), n)
        else:
            effective = float(n)
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    spread = share * (1 - share) / effective + (z / (2 * effective)) ** 2
    half = z * sqrt(spread) / (1 + z**2 / effective)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return ClusteredShare(share, low, high, n, n_clusters, effective, level)
