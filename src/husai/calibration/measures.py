"""What a consistency score is worth: scores held to planted truth.

Everything here needs the true dictionary, and for the detectors the true codes, so it runs on
planted worlds (``husai.tasks.planted_dictionary``). It answers, for a score that a user without
truth can compute: does it rank dictionaries as truth does, and where does it mislead?
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from husai.consistency.analyses.truth import PlaneRecovery
from husai.consistency.inference.intervals import pair_matrix, pseudo_values
from husai.consistency.inference.seeds import match_all, pair_maps
from husai.consistency.scores.codes import Codes, code_blocks
from husai.consistency.scores.decoder import gt_mcc, mmcs, nearest_features, uniqueness
from husai.errors import InputError
from husai.matching.match import Match

Floats = NDArray[np.float64]

MIN_CLUSTERS = 5
"""Independent clusters below which no bootstrap interval is given."""

_BLOCK_NUMBERS = 1_000_000  # of a table of resamples held at a time: 8 MB

FRR_THRESHOLDS = (0.8, 0.9)
"""Cosines at which a true feature counts as recovered."""


# ---------------------------------------------------------------------------------------------
# One dictionary against the truth
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureRecovery:
    """Which true features a dictionary holds.

    Attributes
    ----------
    similarity
        ``[n_true]``: largest |cosine| of each true feature with any latent.
    latent
        ``[n_true]``: the latent that gives it.
    rate
        FRR: share of true features with ``similarity`` at or above each threshold.
    latent_similarity, feature
        ``[d_sae]``: largest |cosine| of each latent with any true feature, and that feature.
    spurious
        Share of latents below each threshold for every true feature.
    """

    similarity: NDArray[np.float64]
    latent: NDArray[np.int64]
    rate: dict[float, float]
    latent_similarity: NDArray[np.float64]
    feature: NDArray[np.int64]
    spurious: dict[float, float]


def feature_recovery(
    W_dec: ArrayLike,
    truth: ArrayLike,
    *,
    thresholds: Sequence[float] = FRR_THRESHOLDS,
    signed: bool = False,
) -> FeatureRecovery:
    """Feature recovery rate: the share of true features that some latent points along.

    Parameters
    ----------
    W_dec
        ``[d_sae, d]`` dictionary, a feature a row.
    truth
        ``[n_true, d]`` the planted dictionary.
    thresholds
        Cosines at and above which a feature counts.
    signed
        Use the cosine instead of its absolute value.

    Raises
    ------
    InputError
        When an input is not a finite matrix, the dimensions differ, or a threshold is not in
        (0, 1].
    """
    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise InputError(f"thresholds: {threshold}; give numbers above 0 and at most 1")
    near = nearest_features(W_dec, truth, signed=signed)
    return FeatureRecovery(
        similarity=near.b_similarity,
        latent=near.b_index,
        rate={t: float((near.b_similarity >= t).mean()) for t in thresholds},
        latent_similarity=near.a_similarity,
        feature=near.a_index,
        spurious={t: float((near.a_similarity < t).mean()) for t in thresholds},
    )


@dataclass(frozen=True)
class DetectorMetrics:
    """Each latent as a detector of the true feature its decoder row is nearest to.

    Attributes
    ----------
    latents
        A row per latent: ``latent``, ``feature`` (its nearest by |cosine|), ``similarity``,
        ``true_positive``, ``false_positive``, ``false_negative`` (rows), ``precision``,
        ``recall``, ``f1`` (0 where undefined, as published) and ``defined`` (whether the latent
        ever fires).
    features
        A row per true feature: ``feature``, ``latent`` (the one with the best F1 among those
        nearest to it, −1 when none is), ``precision``, ``recall``, ``f1`` (0 when none is),
        ``firing_rate``.
    precision, recall, f1
        Means over latents: SynthSAEBench's numbers (arXiv 2602.14687).
    n_rows
        Rows they were counted on.
    """

    latents: pd.DataFrame
    features: pd.DataFrame
    precision: float
    recall: float
    f1: float
    n_rows: int


def detector_metrics(
    codes: Codes, true_codes: Codes, W_dec: ArrayLike, truth: ArrayLike
) -> DetectorMetrics:
    """Precision, recall and F1 of every latent as a detector of its nearest true feature.

    A latent or true feature fires where its code is not 0. The pairing
    is by |cosine| of decoder rows, many to one (arXiv 2602.14687, §4 and its released code).

    Parameters
    ----------
    codes
        ``[n_rows, d_sae]`` codes of the SAE; dense or sparse, or a function that gives blocks.
    true_codes
        ``[n_rows, n_true]`` planted codes of the same rows, in blocks of the same sizes.
    W_dec, truth
        ``[d_sae, d]`` and ``[n_true, d]``.

    Raises
    ------
    InputError
        When rows, widths or dimensions do not fit together.
    """
    near = nearest_features(W_dec, truth, signed=False)
    d_sae, n_true = len(near.a_index), len(near.b_index)
    hits, fires, seen = np.zeros(d_sae), np.zeros(d_sae), np.zeros(n_true)
    n_rows = 0
    for F, C in _row_blocks(codes, true_codes):
        if F.shape[1] != d_sae or C.shape[1] != n_true:
            raise InputError(
                f"codes: widths {F.shape[1]} and {C.shape[1]}, dictionaries have {d_sae} latents "
                f"and {n_true} true features"
            )
        fired, true = _indicator(F), _indicator(C)
        hits += np.asarray(fired.multiply(true[:, near.a_index]).sum(axis=0)).ravel()
        fires += np.asarray(fired.sum(axis=0)).ravel()
        seen += np.asarray(true.sum(axis=0)).ravel()
        n_rows += F.shape[0]
    if not n_rows:
        raise InputError("codes: no rows; give at least one")
    present = seen[near.a_index]
    precision, recall = _ratio(hits, fires), _ratio(hits, present)
    latents = pd.DataFrame(
        {
            "latent": np.arange(d_sae),
            "feature": near.a_index,
            "similarity": near.a_similarity,
            "true_positive": hits,
            "false_positive": fires - hits,
            "false_negative": present - hits,
            "precision": precision,
            "recall": recall,
            "f1": _ratio(2 * hits, fires + present),
            "defined": fires > 0,
        }
    )
    best = latents.sort_values(["f1", "similarity"], ascending=False).drop_duplicates("feature")
    features = pd.DataFrame({"feature": np.arange(n_true)}).merge(
        best[["feature", "latent", "precision", "recall", "f1"]], how="left", on="feature"
    )
    features["latent"] = features["latent"].fillna(-1).astype(np.int64)
    features = features.fillna({"precision": 0.0, "recall": 0.0, "f1": 0.0})
    features["firing_rate"] = seen / n_rows
    return DetectorMetrics(
        latents=latents,
        features=features,
        precision=float(latents["precision"].mean()),
        recall=float(latents["recall"].mean()),
        f1=float(latents["f1"].mean()),
        n_rows=n_rows,
    )


def _row_blocks(
    codes: Codes, true_codes: Codes
) -> Iterable[tuple[sparse.csr_array, sparse.csr_array]]:
    ours, theirs = code_blocks(codes, "codes"), code_blocks(true_codes, "true_codes")
    while True:
        F, C = next(ours, None), next(theirs, None)
        if F is None and C is None:
            return
        if F is None or C is None or F.shape[0] != C.shape[0]:
            sizes = [0 if block is None else block.shape[0] for block in (F, C)]
            raise InputError(
                f"codes: a block of {sizes[0]} rows meets {sizes[1]} rows of true_codes; "
                "give both for the same rows, in blocks of the same sizes"
            )
        yield F, C


def _indicator(block: sparse.csr_array) -> sparse.csc_array:
    """1.0 where an entry is not zero. SAE codes are never negative, planted ones may be."""
    ones = block.copy()
    ones.data = (block.data != 0).astype(np.float64)
    ones.eliminate_zeros()
    return sparse.csc_array(ones)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def truth_scores(
    W_dec: ArrayLike,
    truth: ArrayLike,
    *,
    codes: Codes | None = None,
    true_codes: Codes | None = None,
) -> dict[str, float]:
    """All scores of one dictionary against the truth, as one flat row of a table.

    ``gt_mcc`` and ``gt_mcc_signed``, ``truth_mmcs`` (truth to dictionary), ``frr_0.8``,
    ``frr_0.9``, ``uniqueness``; with codes also ``precision``, ``recall``, ``f1`` (means over
    latents).

    Parameters
    ----------
    W_dec, truth
        ``[d_sae, d]`` and ``[n_true, d]``.
    codes, true_codes
        As in :func:`detector_metrics`; both or neither.

    Raises
    ------
    InputError
        When inputs do not fit together.
    """
    if (codes is None) != (true_codes is None):
        raise InputError("codes, true_codes: give both or neither")
    recovery = feature_recovery(W_dec, truth)
    row = {
        "gt_mcc": gt_mcc(W_dec, truth),
        "gt_mcc_signed": gt_mcc(W_dec, truth, signed=True),
        "truth_mmcs": mmcs(W_dec, truth).b_to_a,
        "uniqueness": uniqueness(W_dec, truth),
    }
    row |= {f"frr_{threshold}": rate for threshold, rate in recovery.rate.items()}
    if codes is not None and true_codes is not None:
        detector = detector_metrics(codes, true_codes, W_dec, truth)
        row |= {
            "precision": detector.precision,
            "recall": detector.recall,
            "f1": detector.f1,
        }
    return row


# ---------------------------------------------------------------------------------------------
# Seeds against the truth
# ---------------------------------------------------------------------------------------------


Verdict = Literal[
    "stable but wrong", "in step with truth", "truer than stable", "not defined", "not comparable"
]


@dataclass(frozen=True)
class ExcessConsistency:
    """How much more a group of seeds agrees with itself than with the truth.

    Attributes
    ----------
    excess
        Mean PW-MCC minus mean GT-MCC, each corrected for its chance level.
    low, high
        Interval over seeds; None below three seeds.
    verdict
        ``"stable but wrong"`` when the whole interval is above ``margin``: the seeds share
        features that are not the planted ones. ``"truer than stable"`` when it is below
        ``-margin``: each seed finds true features, but not the same ones.
    level, n_seeds
        What it rests on.
    reason
        Why the verdict is "not defined" or "not comparable"; empty otherwise.
    """

    excess: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    level: float
    n_seeds: int
    reason: str = ""


def excess_consistency(
    pw_scores: ArrayLike,
    gt_scores: ArrayLike,
    *,
    n_latents: int | None = None,
    n_true: int | None = None,
    pw_null: float = 0.0,
    gt_null: float = 0.0,
    margin: float = 0.0,
    level: float = 0.95,
) -> ExcessConsistency:
    """Name what a consistency score hides: seeds that agree on something that is not there.

    PW-MCC above GT-MCC means that dictionaries are nearer to one another than to the truth
    (arXiv 2512.02194 prints such a case: stability .572, ground truth .479). Both are corrected
    for chance, ``(score − null)/(1 − null)``, before they are subtracted. With more or fewer
    latents than true features the two are means over different numbers of pairs, and no
    correction makes them comparable: there the share of reproduced latents that are true
    (:func:`reproducibility_as_detector`) serves. Interval: jackknife pseudo-values of the PW-MCC
    minus each seed's own GT-MCC, t with S − 1 degrees of freedom.

    Parameters
    ----------
    pw_scores
        ``[S, S]`` symmetric PW-MCC of every pair of seeds.
    gt_scores
        ``[S]`` GT-MCC of every seed.
    n_latents, n_true
        Width of the dictionaries and number of true features; where they differ the verdict is
        "not comparable". Not given: taken to be equal.
    pw_null, gt_null
        Chance levels of the two (``husai.consistency.null_scores``); 0 compares them as printed.
    margin
        Excess that is called none.
    level
        Confidence level.

    Raises
    ------
    InputError
        When shapes do not fit, a number is not finite, or a null is 1 or above.
    """
    W = pair_matrix(pw_scores, "pw_scores")
    gt = np.asarray(gt_scores, dtype=np.float64)
    if gt.shape != (len(W),) or not np.isfinite(gt).all():
        raise InputError(f"gt_scores: shape {gt.shape}; give one finite number for {len(W)} seeds")
    if len(W) < 2:
        raise InputError("pw_scores: one seed; a pair is needed")
    if not (0 < level < 1):
        raise InputError(f"level: {level}; give a number between 0 and 1")
    for name, null in (("pw_null", pw_null), ("gt_null", gt_null)):
        if not null < 1:
            raise InputError(f"{name}: {null}; a chance level is below 1")
    n = len(W)
    if n_latents != n_true and n_latents is not None and n_true is not None:
        reason = (
            f"PW-MCC is a mean over {n_latents} latents, GT-MCC over "
            f"{min(n_latents, n_true)} pairs of {n_latents} latents and {n_true} true features"
        )
        return ExcessConsistency(None, None, None, "not comparable", level, n, reason)
    W, gt = (W - pw_null) / (1 - pw_null), (gt - gt_null) / (1 - gt_null)
    off = ~np.eye(n, dtype=bool)
    excess = float(W[off].mean() - gt.mean())
    if n < 3:
        reason = f"{n} seeds: an interval needs three"
        return ExcessConsistency(excess, None, None, "not defined", level, n, reason)
    difference = pseudo_values(np.where(off, W, 0.0)) - gt
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(difference.std(ddof=1)) / sqrt(n)
    low, high = excess - half, excess + half
    verdict: Verdict = "in step with truth"
    if low > margin:
        verdict = "stable but wrong"
    elif high < -margin:
        verdict = "truer than stable"
    return ExcessConsistency(excess, low, high, verdict, level, n)


def reproducible_features(
    dictionaries: Sequence[ArrayLike],
    truth: ArrayLike,
    *,
    seeds: Sequence[int] | None = None,
    matches: Mapping[tuple[int, int], Match] | None = None,
) -> pd.DataFrame:
    """Per latent: how well other seeds have it, and how near it is to a true feature.

    Parameters
    ----------
    dictionaries
        One ``[d_sae, d]`` a seed; widths may differ.
    truth
        ``[n_true, d]``.
    seeds
        ``[S]`` what each dictionary is called in the table; its position when not given.
    matches
        Matches of all pairs (:func:`husai.consistency.match_all`) by |cosine|, where they are
        known already.

    Returns
    -------
    pandas.DataFrame
        ``seed``, ``latent``, ``reproducibility`` (mean over the other seeds of the |cosine| to
        its one-to-one partner, 0 where it has none), ``truth_similarity`` (largest |cosine| with
        a true feature) and ``feature`` (which).

    Raises
    ------
    InputError
        When fewer than two dictionaries are given, or inputs do not fit together.
    """
    n = len(dictionaries)
    if n < 2:
        raise InputError("dictionaries: one seed; reproducibility needs two or more")
    names = list(range(n)) if seeds is None else list(seeds)
    if len(set(names)) != n:
        raise InputError(f"seeds: {names}; give a different one for each of {n} dictionaries")
    rows = [np.asarray(dictionary, dtype=np.float64) for dictionary in dictionaries]
    maps = pair_maps(match_all(rows) if matches is None else matches)
    if maps.sizes != tuple(len(W) for W in rows):
        raise InputError(f"matches: of {maps.sizes} features, the dictionaries have others")
    tables = []
    for s, W in enumerate(rows):
        near = nearest_features(W, truth)
        others = [maps.similarity(s, t) for t in range(n) if t != s]
        tables.append(
            pd.DataFrame(
                {
                    "seed": names[s],
                    "latent": np.arange(len(W)),
                    "reproducibility": np.mean(others, axis=0),
                    "truth_similarity": near.a_similarity,
                    "feature": near.a_index,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def reproducibility_as_detector(
    features: pd.DataFrame,
    *,
    reproducible: float = 0.9,
    true: float = 0.9,
    cluster: str | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float | int | str | None]:
    """Treat "this latent comes back in other seeds" as a test for "this latent is true".

    Latents of one group of seeds are one another's partners, and groups of one world share their
    truth: the intervals come from resampling whole clusters (percentiles).

    Parameters
    ----------
    features
        From :func:`reproducible_features`.
    reproducible
        Reproducibility at and above which a latent passes.
    true
        Similarity to the truth at and above which it is true.
    cluster
        Column of what belongs together; no intervals when not given.
    level, n_resamples, seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``precision`` (share of passing latents that are true; one minus it is the share that is
        stable but wrong), ``recall`` (share of true latents that pass), ``auc`` (chance that a
        true latent is more reproducible than one that is not), each with ``_low`` and ``_high``;
        ``rank_correlation`` (Spearman), the counts ``n``, ``n_passing``, ``n_true``,
        ``n_clusters``, and ``reason`` (why there are no intervals; empty otherwise). None where
        not defined.

    Raises
    ------
    InputError
        When a column is missing or the level is not between 0 and 1.
    """
    missing = [c for c in (cluster,) if c is not None and c not in features]
    if missing:
        raise InputError(f"features: columns missing: {', '.join(missing)}")
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    score = features["reproducibility"].to_numpy(dtype=np.float64)
    similarity = features["truth_similarity"].to_numpy(dtype=np.float64)
    passing, is_true = score >= reproducible, similarity >= true
    whole = _detector_shares(score, passing, is_true, np.ones((1, len(score))))
    values = {name: None if np.isnan(v[0]) else float(v[0]) for name, v in whole.items()}
    found: dict[str, float | int | str | None] = {
        **values,
        "rank_correlation": _spearman(score, similarity),
        "n": len(score),
        "n_passing": int(passing.sum()),
        "n_true": int(is_true.sum()),
    }
    code = np.zeros(len(score), dtype=np.int64)
    if cluster is not None:
        code = pd.factorize(features[cluster])[0]
    n_clusters = int(code.max(initial=-1)) + 1
    few = n_clusters < MIN_CLUSTERS
    found |= {"n_clusters": n_clusters, "reason": _too_few(n_clusters) if few else ""}
    drawn: dict[str, Floats] = {name: np.zeros(0) for name in values}
    if not few:
        parts = [
            _detector_shares(score, passing, is_true, weights)
            for weights in _resamples(code, n_resamples, np.random.default_rng(seed))
        ]
        drawn = {name: np.concatenate([part[name] for part in parts]) for name in values}
    for name, value in values.items():
        known = drawn[name][~np.isnan(drawn[name])]
        bounds = _percentiles(known, level) if value is not None and len(known) else (None, None)
        found[f"{name}_low"], found[f"{name}_high"] = bounds
    return found


def _detector_shares(
    score: Floats,
    passing: NDArray[np.bool_],
    is_true: NDArray[np.bool_],
    weights: Floats,
) -> dict[str, Floats]:
    """Precision, recall and AUC with every row of ``weights [R, n]``; NaN where not defined."""
    n_passing, n_true = weights @ passing, weights @ is_true
    n_false = weights.sum(axis=1) - n_true
    both = weights @ (passing & is_true)
    # Mann-Whitney: the true latents' ranks, less the least that they could sum to
    ranks = _midranks(score, weights)
    above = (weights * ranks) @ is_true - n_true * (n_true + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": both / n_passing,
            "recall": both / n_true,
            "auc": above / (n_true * n_false),
        }


# ---------------------------------------------------------------------------------------------
# Scores across settings
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation of a score with the truth, with an interval over clusters.

    Attributes
    ----------
    value, low, high
        None where not defined, with ``reason``.
    n, n_clusters
        Observations, and independent groups of them.
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

    Settings trained on the same rows of the same world are not independent observations: whole
    clusters are resampled.

    Parameters
    ----------
    score, truth
        ``[n]`` the score and the true recovery of each setting.
    cluster
        ``[n]`` what belongs together, for example the draw of a world; every observation by
        itself when not given.
    level
        Confidence level.
    n_resamples, seed
        Of the bootstrap (percentiles).

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
    value = _spearman(x, y)
    n, n_clusters = len(x), int(code.max(initial=-1)) + 1
    if value is None:
        constant = "the score" if len(x) and np.ptp(x) == 0 else "the truth"
        reason = f"{n} observations" if n < 3 else f"{constant} does not vary"
        return RankCorrelation(None, None, None, n, n_clusters, level, reason)
    if n_clusters < MIN_CLUSTERS:
        return RankCorrelation(value, None, None, n, n_clusters, level, _too_few(n_clusters))
    resamples = _resamples(code, n_resamples, np.random.default_rng(seed))
    draws = np.concatenate([_weighted_spearman(x, y, weights) for weights in resamples])
    # draws in which one side is constant say nothing
    low, high = _percentiles(draws[~np.isnan(draws)], level)
    return RankCorrelation(value, low, high, n, n_clusters, level, "")


def _too_few(n_clusters: int) -> str:
    return f"{n_clusters} independent clusters: too few to see their spread"


def _resamples(
    code: NDArray[np.int64], n_resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """How often each observation is in each resample of whole clusters: blocks ``[r, n]``."""
    n_clusters = int(code.max()) + 1
    counts = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_resamples)
    at_once = max(1, _BLOCK_NUMBERS // len(code))
    for start in range(0, n_resamples, at_once):
        yield counts[start : start + at_once, code].astype(np.float64)


def _percentiles(draws: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _midranks(x: Floats, weights: Floats) -> Floats:
    """Ranks ``[R, n]`` of ``x [n]`` in which observation i stands ``weights[r, i]`` times.

    Ties share their mean rank, as in ``scipy.stats.rankdata`` of the repeated observations.
    """
    values, place = np.unique(x, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(values)))
    count = np.add.reduceat(weights[:, order], starts, axis=1)
    rank: Floats = (np.cumsum(count, axis=1) - (count - 1) / 2)[:, place]
    return rank


def _weighted_spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Spearman's correlation with every row of ``weights``; NaN where one side is constant."""
    total = weights.sum(axis=1, keepdims=True)
    a, b = _midranks(x, weights), _midranks(y, weights)
    a -= (weights * a).sum(axis=1, keepdims=True) / total
    b -= (weights * b).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    product = (weights * a * b).sum(axis=1)
    # ranks are multiples of a half: what is constant sums to rounding errors only
    return np.where(scale > 1e-9, product / np.maximum(scale, 1e-9), np.nan)


def _spearman(x: Floats, y: Floats) -> float | None:
    if len(x) < 3:
        return None
    value = float(_weighted_spearman(x, y, np.ones((1, len(x))))[0])
    return None if np.isnan(value) else value


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
    """How well each score ranks settings as truth does, over all of them and within slices.

    Parameters
    ----------
    settings
        A row per setting (world, draw, architecture, sparsity, steps, ...): the scores a user
        without truth can compute, the true recovery, and what to slice by.
    scores
        Columns to calibrate.
    truth
        Column of the true recovery.
    cluster
        Column of what belongs together (:func:`rank_correlation`).
    within
        Columns by whose values to slice, one at a time.
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
    """Does a score rise when the truth does, within one run at several lengths of training?

    Spearman's correlation within every run, and its mean over runs: what differs between worlds,
    widths and architectures cannot bring it about.

    Parameters
    ----------
    settings
        A row per run and length.
    scores
        Columns to calibrate.
    run
        Column of what is the same but for its length; runs of fewer than three lengths, or in
        which a side does not vary, are left out.
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
            value = _spearman(x, y)
            if value is not None:
                values.append(value)
                clusters.append(part[cluster].iloc[0])
        code = pd.factorize(pd.Series(clusters, dtype=object))[0]
        n_clusters = int(code.max(initial=-1)) + 1
        low = high = None
        reason = "" if n_clusters >= MIN_CLUSTERS else _too_few(n_clusters)
        if not values:
            reason = "no run of three lengths in which both vary"
        elif not reason:
            resamples = _resamples(code, n_resamples, np.random.default_rng(seed))
            means = [weights @ np.array(values) / weights.sum(axis=1) for weights in resamples]
            low, high = _percentiles(np.concatenate(means), level)
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


# ---------------------------------------------------------------------------------------------
# The convergence gate
# ---------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class GateCalibration:
    """How often a convergence gate lets through a SAE whose recovery was still to change.

    Attributes
    ----------
    false_pass
        Of the SAEs that passed, the share that was not settled.
    false_hold
        Of the settled SAEs, the share that was held back.
    n
        SAEs.
    tolerance
        Change of recovery that is called none.
    """

    false_pass: ClusteredShare
    false_hold: ClusteredShare
    n: int
    tolerance: float


def gate_calibration(
    passed: ArrayLike,
    recovery: ArrayLike,
    final_recovery: ArrayLike,
    cluster: Sequence[Any],
    *,
    tolerance: float = 0.02,
    level: float = 0.95,
) -> GateCalibration:
    """Compare what a convergence gate says of SAEs with what longer training makes of them.

    A SAE is settled when its true recovery (GT-MCC, say) is within ``tolerance`` of that of the
    same SAE, with the same seeds, trained for far longer. The gate sees no truth, only its loss
    curve.

    Parameters
    ----------
    passed
        ``[n]`` bool: the gate called this SAE converged.
    recovery, final_recovery
        ``[n]`` true recovery of the SAE, and of the same one trained for longer.
    cluster
        ``[n]`` what belongs together, for example the draw of a world.
    tolerance
        Change that is called none.
    level
        Confidence level.

    Raises
    ------
    InputError
        When lengths differ or values are not finite.
    """
    gate = np.asarray(passed, dtype=bool)
    now, end = (np.asarray(v, dtype=np.float64) for v in (recovery, final_recovery))
    if not (gate.shape == now.shape == end.shape == (len(cluster),)):
        raise InputError("passed, recovery, final_recovery, cluster: lengths differ")
    if not np.isfinite([now, end]).all():
        raise InputError("recovery, final_recovery: a value is NaN or infinite")
    settled = np.abs(end - now) <= tolerance
    of_passed = [key for key, through in zip(cluster, gate, strict=True) if through]
    of_settled = [key for key, still in zip(cluster, settled, strict=True) if still]
    return GateCalibration(
        false_pass=clustered_share(~settled[gate], of_passed, level=level),
        false_hold=clustered_share(~gate[settled], of_settled, level=level),
        n=len(gate),
        tolerance=tolerance,
    )


# ---------------------------------------------------------------------------------------------
# Planes
# ---------------------------------------------------------------------------------------------


def axis_recovery_chance(found: PlaneRecovery) -> float:
    """Share of a plane's axes that its latents recover when their phases are chance.

    The phase of a plane's axes is a convention, so a dictionary that holds the plane recovers
    them by luck, the more latents it has there the likelier. The same latents stay in the same
    planes, at the same distance from them (``rho``), and their phases are uniform: one of them is
    at |cos| ≥ t to an axis with probability (2/π)·arccos(t/rho).

    Parameters
    ----------
    found
        The dictionary's recovery of the planes; t is its ``threshold``.

    Returns
    -------
    float
        Mean over planes of 1 − Π(1 − probability), the product over the latents in a plane.
    """
    inside = found.features[found.features["in_plane"]]
    rho = inside["rho"].to_numpy(dtype=np.float64)
    missed = 1 - 2 / np.pi * np.arccos(np.minimum(found.threshold / rho, 1.0))
    planes = found.planes["plane"].to_numpy()
    none = pd.Series(missed).groupby(inside["plane"].to_numpy()).prod()
    return float(1 - none.reindex(planes, fill_value=1.0).mean())
