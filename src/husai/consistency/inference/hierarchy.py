"""Statistics of studies with several transformers, each with several seeds of its SAEs.

``y_ts = μ + τ_t + a_ts`` for a score of a single SAE, and
``W_tss' = μ + τ_t + a_ts + a_ts' + e_tss'`` for a score of a pair of SAEs on one transformer.
A claim about "the grokked model" is about μ, and its sample is the transformers: however many
seeds of SAEs one transformer has, they say nothing about another transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.consistency.inference.intervals import mean_interval, pair_matrix
from husai.consistency.inference.planning import variance_components
from husai.errors import InputError

Floats = NDArray[np.float64]

EXACT = 8
"""Up to so many transformers, permutation tests take all orders (40,320 for 8)."""


@dataclass(frozen=True)
class Hierarchy:
    """A score over transformers and, within each, seeds.

    Attributes
    ----------
    mean, low, high
        μ with its t interval over transformers.
    between_sd
        Standard deviation of τ: how much transformers differ. 0 where the seeds alone explain the
        spread of the transformers' means.
    seed_sd, pair_sd
        Standard deviations of the seed effect and of the pair noise, pooled over transformers;
        ``pair_sd`` is None for a score of single SAEs.
    between_share
        Share of the variance of one SAE's score (or of one pair's) that lies between transformers.
    new_low, new_high
        Prediction interval for the score of another transformer with as many seeds.
    least, most
        Smallest and largest mean of a transformer.
    n_transformers, n_seeds
        Number of transformers, and the smallest number of seeds of a transformer.
    level
        Confidence level.
    reason
        Why something is None.
    """

    mean: float
    low: float | None
    high: float | None
    between_sd: float | None
    seed_sd: float | None
    pair_sd: float | None
    between_share: float | None
    new_low: float | None
    new_high: float | None
    least: float
    most: float
    n_transformers: int
    n_seeds: int
    level: float
    reason: str


def score_hierarchy(
    scores: Sequence[ArrayLike],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Hierarchy:
    """Analyse a score of pairs of SAEs over transformers.

    Variances are estimated by the method of moments: those of seeds and pairs within each
    transformer, then pooled (see
    :func:`~husai.consistency.inference.planning.variance_components`); between transformers, the
    variance of their means minus the part that seeds and pairs explain.

    Parameters
    ----------
    scores
        For each transformer ``[S, S]`` symmetric pair scores of its SAEs, S >= 2; seed effects
        need S >= 4.
    level
        Confidence level of the intervals.
    bounds
        Possible values of the score; intervals are cut there.

    Raises
    ------
    InputError
        When no transformer is given, or a matrix is not valid or has one seed.
    """
    matrices = [pair_matrix(W, f"scores of transformer {t}") for t, W in enumerate(scores)]
    if not matrices or min(len(W) for W in matrices) < 2:
        raise InputError("scores: give at least one transformer, each with two or more seeds")
    means = np.array([W.sum() / (len(W) * (len(W) - 1)) for W in matrices])
    sizes = [len(W) for W in matrices]
    if min(sizes) < 4:
        reason = "seed effects and pair noise need four seeds on each transformer"
        return _hierarchy(means, sizes, None, None, None, level, bounds, reason)
    parts = [variance_components(W) for W in matrices]
    seed = float(np.mean([one.seed_sd**2 for one in parts]))
    pair = float(np.mean([one.pair_sd**2 for one in parts]))
    within = float(np.mean([4 * seed / n + 2 * pair / (n * (n - 1)) for n in sizes]))
    return _hierarchy(means, sizes, within, seed, pair, level, bounds, "")


def value_hierarchy(
    values: Sequence[ArrayLike],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Hierarchy:
    """Analyse a score of single SAEs (answers with a latent, FVU) over transformers.

    One-way random effects by the method of moments.

    Parameters
    ----------
    values
        For each transformer ``[S]``, one per SAE; the spread within it needs S >= 2.
    level, bounds
        As in :func:`score_hierarchy`.

    Raises
    ------
    InputError
        When no transformer is given, or a value is not finite.
    """
    rows = [np.asarray(one, dtype=np.float64) for one in values]
    if not rows or any(one.ndim != 1 or not len(one) for one in rows):
        raise InputError("values: give at least one transformer, each with one or more SAEs")
    if not all(np.isfinite(one).all() for one in rows):
        raise InputError("values: NaN or infinite; leave that SAE out")
    means, sizes = np.array([one.mean() for one in rows]), [len(one) for one in rows]
    if min(sizes) < 2:
        reason = "a transformer has one SAE: its spread over seeds is not known"
        return _hierarchy(means, sizes, None, None, None, level, bounds, reason)
    seed = float(np.mean([one.var(ddof=1) for one in rows]))
    within = float(np.mean([seed / n for n in sizes]))
    return _hierarchy(means, sizes, within, seed, None, level, bounds, "")


def _hierarchy(
    means: Floats,
    sizes: Sequence[int],
    within: float | None,
    seed: float | None,
    pair: float | None,
    level: float,
    bounds: tuple[float, float] | None,
    reason: str,
) -> Hierarchy:
    n = len(means)
    over = mean_interval(means, level=level, bounds=bounds)
    assert over.mean is not None
    between = share = new_low = new_high = None
    if n > 1:
        spread = float(means.var(ddof=1))
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sqrt(spread * (1 + 1 / n))
        new_low, new_high = over.mean - half, over.mean + half
        if bounds is not None:
            new_low, new_high = max(new_low, bounds[0]), min(new_high, bounds[1])
        if within is not None and seed is not None:
            between = max(spread - within, 0.0)
            one = between + (seed if pair is None else 2 * seed + pair)
            share = between / one if one > 0 else None
    else:
        reason = "one transformer: the spread over transformers is not known"
    return Hierarchy(
        mean=over.mean,
        low=over.low,
        high=over.high,
        between_sd=None if between is None else sqrt(between),
        seed_sd=None if seed is None else sqrt(seed),
        pair_sd=None if pair is None else sqrt(pair),
        between_share=share,
        new_low=new_low,
        new_high=new_high,
        least=float(means.min()),
        most=float(means.max()),
        n_transformers=n,
        n_seeds=min(sizes),
        level=level,
        reason=reason,
    )


@dataclass(frozen=True)
class Association:
    """Rank correlation of two properties of transformers.

    Attributes
    ----------
    rho
        Spearman's rank correlation; None where one property does not vary.
    p_value
        Two-sided, by permuting the transformers: all orders of up to eight, random orders of more.
    n_transformers
        Number of transformers.
    reason
        Why something is None.
    """

    rho: float | None
    p_value: float | None
    n_transformers: int
    reason: str


def association(
    x: ArrayLike, y: ArrayLike, *, n_permutations: int = 10_000, seed: int = 0
) -> Association:
    """Correlate two properties of transformers; each transformer is one observation.

    Parameters
    ----------
    x, y
        ``[T]``, one per transformer.
    n_permutations
        Number of random orders for more than eight transformers.
    seed
        Seed of the random orders.

    Raises
    ------
    InputError
        When lengths differ or values are not finite.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not np.isfinite([a, b]).all():
        raise InputError("x, y: give one finite number of each for every transformer")
    n = len(a)
    if n < 3:
        return Association(None, None, n, "a correlation needs at least three transformers")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Association(None, None, n, "a property does not vary over the transformers")

    ranks_a, ranks_b = stats.rankdata(a), stats.rankdata(b)
    centred = ranks_a - ranks_a.mean()
    rho = float(np.corrcoef(ranks_a, ranks_b)[0, 1])
    if n <= EXACT:
        orders = np.array(list(permutations(ranks_b)))
    else:
        rng = np.random.default_rng(seed)
        drawn = rng.permuted(np.tile(ranks_b, (n_permutations, 1)), axis=1)
        orders = np.concatenate([ranks_b[None], drawn])  # the observed one is among them
    products = np.abs(orders @ centred)
    # the margin keeps rounding from making a tie look smaller
    extreme = products >= abs(float(ranks_b @ centred)) * (1 - 1e-9)
    return Association(rho, float(extreme.mean()), n, "")


def hierarchy_table(
    table: pd.DataFrame,
    by: Sequence[str],
    analyse: Callable[[Sequence[Floats]], Hierarchy],
    values: Callable[[pd.DataFrame], Floats],
    top: str = "transformer",
) -> pd.DataFrame:
    """Analyse each part of a table over transformers.

    Parameters
    ----------
    table
        Rows of SAEs or pairs, with ``by`` and ``top``.
    by
        Columns; each combination of their values is analysed separately.
    analyse
        :func:`score_hierarchy` or :func:`value_hierarchy`.
    values
        Makes the input of ``analyse`` from the rows of one transformer.
    top
        Name of the column with the transformer.

    Returns
    -------
    pandas.DataFrame
        The columns ``by`` and the fields of :class:`Hierarchy`.
    """
    rows = []
    for key, part in table.groupby(list(by), sort=True):
        found = analyse([values(own) for _, own in part.groupby(top, sort=True)])
        rows.append({**dict(zip(by, key, strict=True)), **vars(found)})
    return pd.DataFrame(rows)
