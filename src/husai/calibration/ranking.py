"""Whether scores rank settings in the same order as the true recovery does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from husai.calibration.clusters import (
    MIN_CLUSTERS,
    percentiles,
    resampled,
    spearman,
    too_few,
    weighted_spearman,
)
from husai.errors import InputError


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of a score with the truth, with an interval over clusters.

    Attributes
    ----------
    value, low, high
        The correlation and its interval; None where not defined, with ``reason``.
    n, n_clusters
        Number of observations, and of independent clusters.
    level
        Confidence level.
    reason
        Why something is None; empty otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_clusters: int
    level: float
    reason: str


def rank_correlation(
    score: ArrayLike,
    truth: ArrayLike,
    *,
    cluster: Sequence[Any] | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rank correlation of a score with true recovery, bootstrapped over clusters.

    Settings trained on the same rows of the same world are not independent observations, so whole
    clusters are resampled.

    Parameters
    ----------
    score, truth
        ``[n]`` the score and the true recovery of each setting.
    cluster
        ``[n]`` the cluster of each setting, for example the draw of its world; each setting is a
        cluster of its own when not given.
    level
        Confidence level.
    n_resamples, seed
        Number of resamples of the bootstrap (percentiles), and their seed.

    Raises
    ------
    InputError
        When lengths differ, a value is not finite, or the level is not between 0 and 1.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (score, truth))
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite([x, y]).all():
        raise InputError(
            f"score, truth: shapes {x.shape} and {y.shape}; give two finite vectors of one length"
        )
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    if cluster is not None and len(cluster) != len(x):
        raise InputError(f"cluster: {len(cluster)} for {len(x)} observations")
    code = np.arange(len(x)) if cluster is None else pd.factorize(pd.Series(list(cluster)))[0]
    value = spearman(x, y)
    n, n_clusters = len(x), int(code.max(initial=-1)) + 1
    if value is None:
        constant = "the score" if len(x) and np.ptp(x) == 0 else "the truth"
        reason = f"{n} observations" if n < 3 else f"{constant} does not vary"
        return RankCorrelation(None, None, None, n, n_clusters, level, reason)
    if n_clusters < MIN_CLUSTERS:
        return RankCorrelation(value, None, None, n, n_clusters, level, too_few(n_clusters))
    draws = np.concatenate(
        [
            weighted_spearman(x, y, weights)
            for weights in resampled(code, n_resamples, np.random.default_rng(seed))
        ]
    )
    # a resample in which one side is constant has no correlation
    low, high = percentiles(draws[~np.isnan(draws)], level)
    return RankCorrelation(value, low, high, n, n_clusters, level, "")


def calibrate_scores(
    settings: pd.DataFrame,
    scores: Sequence[str],
    *,
    truth: str = "gt_mcc",
    cluster: str = "cluster",
    within: Sequence[str] = (),
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate each score with the true recovery, over all settings and within slices.

    Parameters
    ----------
    settings
        A row per setting (world, draw, architecture, sparsity, steps, ...): the scores that can be
        computed without the truth, the true recovery, and the columns to slice by.
    scores
        Columns of the scores.
    truth
        Column of the true recovery.
    cluster
        Column of the cluster, as in :func:`rank_correlation`.
    within
        Columns; the settings are sliced by the values of one of them at a time.
    level, n_resamples, seed
        As in :func:`rank_correlation`.

    Returns
    -------
    pandas.DataFrame
        ``score``, ``truth``, ``slice`` ("all" or a column of ``within``), ``value`` of that
        column, ``rank_correlation``, ``low``, ``high``, ``n``, ``n_clusters``, ``reason``.

    Raises
    ------
    InputError
        When a column is missing.
    """
    missing = [c for c in (*scores, truth, cluster, *within) if c not in settings]
    if missing:
        raise InputError(f"settings: columns missing: {', '.join(missing)}")
    slices: list[tuple[str, object, pd.DataFrame]] = [("all", "", settings)]
    for column in within:
        slices += [(column, value, part) for value, part in settings.groupby(column, sort=True)]
    rows = []
    for score in scores:
        for name, value, part in slices:
            known = part[part[score].notna() & part[truth].notna()]
            found = rank_correlation(
                known[score].to_numpy(dtype=np.float64),
                known[truth].to_numpy(dtype=np.float64),
                cluster=known[cluster].tolist(),
                level=level,
                n_resamples=n_resamples,
                seed=seed,
            )
            rows.append(
                {
                    "score": score,
                    "truth": truth,
                    "slice": name,
                    "value": str(value),
                    "rank_correlation": found.value,
                    "low": found.low,
                    "high": found.high,
                    "n": found.n,
                    "n_clusters": found.n_clusters,
                    "reason": found.reason,
                }
            )
    return pd.DataFrame(rows)


def within_run_correlation(
    settings: pd.DataFrame,
    scores: Sequence[str],
    *,
    run: str,
    truth: str = "gt_mcc",
    cluster: str = "cluster",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate each score with the true recovery over the lengths of training of one run.

    Spearman's correlation within every run, and its mean over runs. Differences between worlds,
    widths and architectures have no influence on it.

    Parameters
    ----------
    settings
        A row per run and length.
    scores
        Columns of the scores.
    run
        Column with the name of the run: settings that differ only in their length. Runs of fewer
        than three lengths, or in which a side does not vary, are left out.
    truth, cluster, level, n_resamples, seed
        As in :func:`calibrate_scores`.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`calibrate_scores`: ``rank_correlation`` is the mean over runs, ``n``
        the number of runs.

    Raises
    ------
    InputError
        When a column is missing.
    """
    missing = [c for c in (*scores, run, truth, cluster) if c not in settings]
    if missing:
        raise InputError(f"settings: columns missing: {', '.join(missing)}")
    rows = []
    for score in scores:
        values, clusters = [], []
        known = settings[settings[score].notna() & settings[truth].notna()]
        for _, part in known.groupby(run, sort=False):
            x, y = (part[name].to_numpy(dtype=np.float64) for name in (score, truth))
            value = spearman(x, y)
            if value is not None:
                values.append(value)
                clusters.append(part[cluster].iloc[0])
        code = pd.factorize(pd.Series(clusters, dtype=object))[0]
        n_clusters = int(code.max(initial=-1)) + 1
        low = high = None
        reason = "" if n_clusters >= MIN_CLUSTERS else too_few(n_clusters)
        if not values:
            reason = "no run has three lengths in which both vary"
        elif not reason:
            resamples = resampled(code, n_resamples, np.random.default_rng(seed))
            means = [weights @ np.array(values) / weights.sum(axis=1) for weights in resamples]
            low, high = percentiles(np.concatenate(means), level)
        rows.append(
            {
                "score": score,
                "truth": truth,
                "slice": "all",
                "value": "",
                "rank_correlation": float(np.mean(values)) if values else None,
                "low": low,
                "high": high,
                "n": len(values),
                "n_clusters": n_clusters,
                "reason": reason,
            }
        )
    return pd.DataFrame(rows)
