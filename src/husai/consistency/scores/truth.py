"""Scores of one SAE against the truth: which true features it has, and how well it detects them.

In a prepared pair side A is the SAE and side B the true dictionary with the true codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from husai.consistency.scores.codes import Codes, paired_blocks
from husai.consistency.scores.decoder import distinct_share
from husai.consistency.scores.pair import Nearest, PreparedPair, nearest_features
from husai.consistency.scores.score import COSINE, DRAWN, Need, Score, Value
from husai.errors import InputError

FRR_THRESHOLDS = (0.8, 0.9)
"""Cosines at which a true feature counts as recovered."""


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
        Share of latents whose similarity to every true feature is below each threshold.
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
        ``[d_sae, d]`` dictionary, one feature per row.
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

    A latent or true feature fires where its code is not 0. Each latent is paired with the true
    feature of largest |cosine|, many to one (arXiv 2602.14687, §4 and its released code).

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
    return _detectors(codes, true_codes, nearest_features(W_dec, truth, signed=False))


def _detectors(codes: Codes, true_codes: Codes, near: Nearest) -> DetectorMetrics:
    d_sae, n_true = len(near.a_index), len(near.b_index)
    hits, fires, seen = np.zeros(d_sae), np.zeros(d_sae), np.zeros(n_true)
    n_rows = 0
    for F, C in paired_blocks(codes, true_codes, ("codes", "true_codes")):
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


def _indicator(block: sparse.csr_array) -> sparse.csc_array:
    """1.0 where an entry is not zero. SAE codes are never negative, planted ones may be."""
    ones = block.copy()
    ones.data = (block.data != 0).astype(np.float64)
    ones.eliminate_zeros()
    return sparse.csc_array(ones)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _detector(pair: PreparedPair) -> DetectorMetrics:
    def count() -> DetectorMetrics:
        if pair.a.codes is None or pair.b.codes is None:
            raise InputError("codes, true_codes: give both")
        return _detectors(pair.a.codes.codes, pair.b.codes.codes, pair.nearest(False))

    return pair.once("detector", count)


def _recovered(pair: PreparedPair, threshold: float) -> float:
    return float((pair.nearest(False).b_similarity >= threshold).mean())


_DIRECTIONS: frozenset[Need] = frozenset({"decoder", "truth"})
_DETECTORS: frozenset[Need] = frozenset({"decoder", "codes", "truth"})

TRUTH_SCORES: tuple[Score, ...] = (
    Score(
        "gt_mcc",
        "GT-MCC",
        "mean similarity of the best one-to-one match of the SAE with the truth (arXiv 2505.20254)",
        _DIRECTIONS,
        lambda pair, signed: pair.matches[signed].mean,
        signed_bounds=COSINE,
        nulls=DRAWN,
    ),
    Score(
        "truth_mmcs",
        "MMCS from truth to SAE",
        "mean similarity of each true feature to its nearest latent",
        _DIRECTIONS,
        lambda pair, signed: float(pair.nearest(signed).b_similarity.mean()),
        signs=(False,),
        nulls=DRAWN,
    ),
    Score(
        "truth_uniqueness",
        "uniqueness against the truth",
        "number of different true features that are the nearest of some latent, divided by the "
        "number of latents (arXiv 2602.14687)",
        _DIRECTIONS,
        lambda pair, signed: distinct_share(pair.nearest(signed).a_index),
        signs=(False,),
        nulls=DRAWN,
    ),
    *(
        Score(
            f"frr_{threshold}",
            f"features recovered at {threshold}",
            f"share of true features with a latent at |cosine| {threshold} or above",
            _DIRECTIONS,
            lambda pair, _, threshold=threshold: _recovered(pair, threshold),  # type: ignore[misc]
            signs=(False,),
            nulls=DRAWN,
        )
        for threshold in FRR_THRESHOLDS
    ),
    *(
        Score(
            name,
            "F1" if name == "f1" else name,
            f"mean {name} of each latent as a detector of its nearest true feature "
            "(arXiv 2602.14687)",
            _DETECTORS,
            lambda pair, _, name=name: Value(getattr(_detector(pair), name)),  # type: ignore[misc]
            signs=(False,),
            nulls=(),
        )
        for name in ("precision", "recall", "f1")
    ),
)
"""Entries of the registry that need the truth."""
