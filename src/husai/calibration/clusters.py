"""Intervals for observations that come in clusters: whole clusters are resampled."""

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
"""Independent clusters below which no bootstrap interval is given."""

_BLOCK_NUMBERS = 1_000_000  # of a table of resamples held at a time: 8 MB


def too_few(n_clusters: int) -> str:
    """Say why there is no interval."""
    return f"{n_clusters} independent clusters: too few to see their spread"


def resampled(
    code: NDArray[np.int64], n_resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """How often each observation is in each resample of whole clusters: blocks ``[r, n]``."""
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
    """Ranks ``[R, n]`` of ``x [n]`` in which observation i stands ``weights[r, i]`` times.

    Ties share their mean rank, as in ``scipy.stats.rankdata`` of the repeated observations.
    """
    values, place = np.unique(x, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    count = np.add.reduceat(weights[:, order], starts, axis=1)
    rank: Floats = (np.cumsum(count, axis=1) - (count - 1) / 2)[:, place]
    return rank


def weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's correlation with every row of ``weights``; NaN where one side is constant."""
    total = weights.sum(axis=1, keepdims=True)
    a, b = midranks(x, weights), midranks(y, weights)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    product = (weights * a * b).sum(axis=1)
    # ranks are multiples of a half: what is constant sums to rounding errors only
    return np.where(scale > 1e-9, product / np.maximum(scale, 1e-9), np.nan)


def spearman(x: Floats, y: Floats) -> float | None:
    """Spearman's correlation; None below three observations or where one side is constant."""
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
        None without observations.
    n, n_clusters
        Observations, and independent groups of them.
    n_effective
        Independent observations that say as much; None without observations.
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
    """Give a share with Wilson's interval on the effective number of observations.

    The design effect is the variance of the share between clusters (the ratio estimator's, Kish
    1965) over that of as many independent observations; n over it is the effective number, held
    between the number of clusters and n. A share of 0 or 1 shows no spread at all: there every
    cluster counts as one observation, and Wilson's interval is never of length 0.

    Parameters
    ----------
    success
        ``[n]`` bool.
    cluster
        ``[n]`` what belongs together.
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
