"""What a consistency score is worth: scores held to planted truth.

Everything here needs the true dictionary, and for the detectors the true codes, so it runs on
planted worlds (``husai.tasks.planted_dictionary``). It answers, for a score that a user without
truth can compute: does it rank dictionaries as truth does, and where does it mislead?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from husai.consistency.codes import Codes, code_blocks
from husai.consistency.matching import match_features
from husai.consistency.scores import gt_mcc, mmcs, nearest_features, uniqueness
from husai.consistency.statistics import pair_matrix, pseudo_values
from husai.errors import InputError

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


Verdict = Literal["stable but wrong", "in step with truth", "truer than stable", "not defined"]


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
    """

    excess: float
    low: float | None
    high: float | None
    verdict: Verdict
    level: float
    n_seeds: int


def excess_consistency(
    pw_scores: ArrayLike,
    gt_scores: ArrayLike,
    *,
    pw_null: float = 0.0,
    gt_null: float = 0.0,
    margin: float = 0.0,
    level: float = 0.95,
) -> ExcessConsistency:
    """Name what a consistency score hides: seeds that agree on something that is not there.

    PW-MCC above GT-MCC means that dictionaries are nearer to one another than to the truth
    (arXiv 2512.02194 prints such a case: stability .572, ground truth .479). The two scores have
    different chance levels when there are more or fewer true features than latents, so both are
    corrected, ``(score − null)/(1 − null)``, before they are subtracted. Interval: jackknife
    pseudo-values of the PW-MCC minus each seed's own GT-MCC, t with S − 1 degrees of freedom.

    Parameters
    ----------
    pw_scores
        ``[S, S]`` symmetric PW-MCC of every pair of seeds.
    gt_scores
        ``[S]`` GT-MCC of every seed.
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
    W, gt = (W - pw_null) / (1 - pw_null), (gt - gt_null) / (1 - gt_null)
    n = len(W)
    off = ~np.eye(n, dtype=bool)
    excess = float(W[off].mean() - gt.mean())
    if n < 3:
        return ExcessConsistency(excess, None, None, "not defined", level, n)
    difference = pseudo_values(np.where(off, W, 0.0)) - gt
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(difference.std(ddof=1)) / sqrt(n)
    low, high = excess - half, excess + half
    verdict: Verdict = "in step with truth"
    if low > margin:
        verdict = "stable but wrong"
    elif high < -margin:
        verdict = "truer than stable"
    return ExcessConsistency(excess, low, high, verdict, level, n)


def reproducible_features(dictionaries: Sequence[ArrayLike], truth: ArrayLike) -> pd.DataFrame:
    """Per latent: how well other seeds have it, and how near it is to a true feature.

    Parameters
    ----------
    dictionaries
        One ``[d_sae, d]`` a seed; widths may differ.
    truth
        ``[n_true, d]``.

    Returns
    -------
    pandas.DataFrame
        ``seed`` (position), ``latent``, ``reproducibility`` (mean over the other seeds of the
        |cosine| to its one-to-one partner, 0 where it has none), ``truth_similarity`` (largest
        |cosine| with a true feature) and ``feature`` (which).

    Raises
    ------
    InputError
        When fewer than two dictionaries are given, or inputs do not fit together.
    """
    if len(dictionaries) < 2:
        raise InputError("dictionaries: one seed; reproducibility needs two or more")
    rows = [np.asarray(dictionary, dtype=np.float64) for dictionary in dictionaries]
    sums = [np.zeros(len(W)) for W in rows]
    for s in range(len(rows)):
        for t in range(s + 1, len(rows)):
            match = match_features(rows[s], rows[t])
            sums[s][match.a_index] += match.similarity
            sums[t][match.b_index] += match.similarity
    tables = []
    for s, W in enumerate(rows):
        near = nearest_features(W, truth)
        tables.append(
            pd.DataFrame(
                {
                    "seed": s,
                    "latent": np.arange(len(W)),
                    "reproducibility": sums[s] / (len(rows) - 1),
                    "truth_similarity": near.a_similarity,
                    "feature": near.a_index,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def reproducibility_as_detector(
    features: pd.DataFrame, *, reproducible: float = 0.9, true: float = 0.9
) -> dict[str, float | int | None]:
    """Treat "this latent comes back in other seeds" as a test for "this latent is true".

    Parameters
    ----------
    features
        From :func:`reproducible_features`.
    reproducible
        Reproducibility at and above which a latent passes.
    true
        Similarity to the truth at and above which it is true.

    Returns
    -------
    dict
        ``precision`` (share of passing latents that are true; one minus it is the share that is
        stable but wrong), ``recall`` (share of true latents that pass), ``auc`` (chance that a
        true latent is more reproducible than one that is not), ``rank_correlation`` (Spearman),
        and the counts ``n``, ``n_passing``, ``n_true``. None where not defined.
    """
    score = features["reproducibility"].to_numpy(dtype=np.float64)
    similarity = features["truth_similarity"].to_numpy(dtype=np.float64)
    passing, is_true = score >= reproducible, similarity >= true
    both = int((passing & is_true).sum())
    n_passing, n_true, n = int(passing.sum()), int(is_true.sum()), len(score)
    auc = None
    if 0 < n_true < n:
        ranks = stats.rankdata(score)
        auc = float((ranks[is_true].sum() - n_true * (n_true + 1) / 2) / (n_true * (n - n_true)))
    return {
        "precision": both / n_passing if n_passing else None,
        "recall": both / n_true if n_true else None,
        "auc": auc,
        "rank_correlation": _spearman(score, similarity),
        "n": n,
        "n_passing": n_passing,
        "n_true": n_true,
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

    Checkpoints of one training run are not independent observations, nor are settings that share
    their SAEs: whole clusters are resampled.

    Parameters
    ----------
    score, truth
        ``[n]`` the score and the true recovery of each setting.
    cluster
        ``[n]`` what belongs together, for example the world and architecture of a run; every
        observation by itself when not given.
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
    members = [np.flatnonzero(code == c) for c in range(int(code.max(initial=-1)) + 1)]
    value = _spearman(x, y)
    n, n_clusters = len(x), len(members)
    if value is None:
        reason = "fewer than three observations, or one side does not vary"
        return RankCorrelation(None, None, None, n, n_clusters, level, reason)
    if n_clusters < 5:
        reason = f"{n_clusters} independent clusters: too few to see their spread"
        return RankCorrelation(value, None, None, n, n_clusters, level, reason)
    draws = _cluster_bootstrap(x, y, members, n_resamples, np.random.default_rng(seed))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return RankCorrelation(value, float(low), float(high), n, n_clusters, level, "")


def _cluster_bootstrap(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    members: list[NDArray[np.int64]],
    n_resamples: int,
    rng: np.random.Generator,
) -> list[float]:
    """Spearman's correlation of resampled clusters; draws in which one side is constant drop."""
    n_clusters = len(members)
    draws = []
    for _ in range(n_resamples):
        chosen = rng.integers(n_clusters, size=n_clusters)
        index = np.concatenate([members[c] for c in chosen])
        drawn = _spearman(x[index], y[index])
        if drawn is not None:
            draws.append(drawn)
    return draws


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    if len(x) < 3:
        return None
    a, b = stats.rankdata(x), stats.rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    scale = sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else None


def calibrate_scores(
    settings: pd.DataFrame,
    scores: Sequence[str],
    *,
    truth: str = "gt_mcc",
    cluster: str = "run",
    within: Sequence[str] = (),
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each score ranks settings as truth does, over all of them and within slices.

    Parameters
    ----------
    settings
        A row per setting (world, architecture, sparsity, step, ...): the scores a user without
        truth can compute, the true recovery, and what to slice by.
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
        ``score``, ``slice`` ("all" or a column of ``within``), ``value`` of that column,
        ``rank_correlation``, ``low``, ``high``, ``n``, ``n_clusters``, ``reason``.

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


# ---------------------------------------------------------------------------------------------
# The convergence gate
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateCalibration:
    """How often a convergence gate lets through a SAE whose recovery was still to change.

    Attributes
    ----------
    false_pass_rate, low, high
        Of the checkpoints that passed, the share that was not settled; Wilson interval on SAEs
        (checkpoints of one SAE count as one observation). None when none passed.
    false_hold_rate
        Of the settled checkpoints, the share that was held back. None when none was settled.
    n_checkpoints, n_passed, n_saes_passed
        Counts.
    tolerance
        Change of recovery that is called none.
    """

    false_pass_rate: float | None
    low: float | None
    high: float | None
    false_hold_rate: float | None
    n_checkpoints: int
    n_passed: int
    n_saes_passed: int
    tolerance: float


def gate_calibration(
    passed: ArrayLike,
    recovery: ArrayLike,
    final_recovery: ArrayLike,
    sae: Sequence[Any],
    *,
    tolerance: float = 0.02,
    level: float = 0.95,
) -> GateCalibration:
    """Compare what a convergence gate says at a checkpoint with what came after it.

    A checkpoint is settled when its true recovery (GT-MCC, say) is within ``tolerance`` of that
    of the same SAE trained on to the end. The gate sees no truth, only its loss curve.

    Parameters
    ----------
    passed
        ``[n]`` bool: the gate called this checkpoint converged.
    recovery, final_recovery
        ``[n]`` true recovery now, and of the same SAE at its end.
    sae
        ``[n]`` which SAE a checkpoint belongs to.
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
    if not (gate.shape == now.shape == end.shape == (len(sae),)):
        raise InputError("passed, recovery, final_recovery, sae: lengths differ")
    if not np.isfinite([now, end]).all():
        raise InputError("recovery, final_recovery: a value is NaN or infinite")
    settled = np.abs(end - now) <= tolerance
    n_passed = int(gate.sum())
    false_hold = float((~gate[settled]).mean()) if settled.any() else None
    if not n_passed:
        return GateCalibration(None, None, None, false_hold, len(gate), 0, 0, tolerance)
    rate = float((~settled[gate]).mean())
    n_saes = len({key for key, through in zip(sae, gate, strict=True) if through})
    # Wilson's interval with SAEs for observations: the checkpoints of one move together
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (rate + z**2 / (2 * n_saes)) / (1 + z**2 / n_saes)
    spread = rate * (1 - rate) / n_saes + (z / (2 * n_saes)) ** 2
    half = z * sqrt(spread) / (1 + z**2 / n_saes)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return GateCalibration(rate, low, high, false_hold, len(gate), n_passed, n_saes, tolerance)
