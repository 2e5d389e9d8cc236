"""The probability that one more seed has a feature, learned from the seeds at hand and checked.

Whether a feature of one SAE was found in seed t is known for every seed t at hand. Leaving t out,
the other seeds say how often and how closely the feature came back; a logistic regression learns
from all features and all t how that predicts t. Applied with all seeds it predicts a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from husai.consistency.inference.seeds import partner_similarity
from husai.errors import InputError
from husai.features.cards import FeatureCards
from husai.features.config import FeaturesConfig

Floats = NDArray[np.float64]

CURVE = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Similarities at which the probability curve is given."""

_RIDGE = 1.0
_SWEEPS = 50
_EDGE = 0.01  # similarities are kept so far from 0 and 1 before their logit is taken


@dataclass(frozen=True)
class ReturnModel:
    """A fitted model of whether a new seed has a feature.

    Attributes
    ----------
    threshold
        |cosine| at which a feature counts as found.
    weights
        ``[4]``: constant, logit of the share of seeds that have it, logit of the mean and of the
        least similarity.
    """

    threshold: float
    weights: Floats

    def probability(self, similarity: ArrayLike) -> Floats:
        """``[n]`` probability for features with ``[n, seeds]`` similarities to their partners."""
        values: Floats = expit(_covariates(similarity, self.threshold) @ self.weights)
        return values


def _covariates(similarity: ArrayLike, threshold: float) -> Floats:
    s = np.asarray(similarity, dtype=np.float64)
    if s.ndim != 2 or not s.shape[1]:
        raise InputError(f"similarity: shape {s.shape}; give a column for each other seed")
    found = (s >= threshold).sum(axis=1)
    share = (found + 0.5) / (s.shape[1] + 1)
    mean, least = (np.clip(x, _EDGE, 1 - _EDGE) for x in (s.mean(axis=1), s.min(axis=1)))
    return np.stack([np.ones(len(s)), logit(share), logit(mean), logit(least)], axis=1)


def fit_return(similarity: Sequence[Floats], threshold: float) -> ReturnModel:
    """Learn how well the other seeds predict one that was left out.

    Parameters
    ----------
    similarity
        For each SAE ``[n_s, S - 1]``: |cosine| of each feature to its partner in every other SAE,
        0 where it has none.
    threshold
        |cosine| at which a feature counts as found.

    Raises
    ------
    InputError
        With fewer than three SAEs: two leave nothing to predict from.
    """
    n_others = min((s.shape[1] for s in similarity), default=0)
    if n_others < 2:
        raise InputError(f"similarity: {n_others + 1} SAEs; a probability needs at least three")
    rows, outcomes = [], []
    for s in similarity:
        for t in range(s.shape[1]):
            rows.append(_covariates(np.delete(s, t, axis=1), threshold))
            outcomes.append(s[:, t] >= threshold)
    return ReturnModel(threshold, _logistic(np.concatenate(rows), np.concatenate(outcomes)))


def _logistic(x: Floats, y: NDArray[np.bool_]) -> Floats:
    """Logistic regression by Newton's method, with a ridge on all weights but the constant.

    The ridge keeps the weights finite when everything comes back, or nothing does.
    """
    ridge = np.full(x.shape[1], _RIDGE)
    ridge[0] = 1e-3
    w = np.zeros(x.shape[1])
    for _ in range(_SWEEPS):
        p = expit(x @ w)
        gradient = x.T @ (y - p) - ridge * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        # a cautious step: far from the optimum a full one can overshoot
        w += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return w


def return_probabilities(
    cards: FeatureCards, config: FeaturesConfig | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Estimate for each feature the probability that one more seed has it.

    Returns
    -------
    features
        ``id``, ``latent``, ``probability`` at ``config.threshold``, and ``probability_0.5`` …,
        the curve over similarity.
    calibration
        From leaving out each SAE in turn: a row per bin of predicted probability, see
        :func:`reliability`, with ``brier`` and ``brier_of_base_rate`` of all of them; empty below
        four SAEs.

    Raises
    ------
    InputError
        With fewer than three SAEs.
    """
    config = config or FeaturesConfig()
    group = cards.group
    own = partner_similarity(group.matches, [len(one.index) for one in group.live])
    thresholds = dict.fromkeys((config.threshold, *CURVE))
    found = {t: fit_return(own, t) for t in thresholds}
    tables = []
    for one, similarity in zip(group.live, own, strict=True):
        curve = np.stack([found[t].probability(similarity) for t in CURVE])
        # a feature found at .9 is found at .8
        curve = np.minimum.accumulate(curve, axis=0)
        tables.append(
            pd.DataFrame(
                {
                    "id": one.record.id,
                    "latent": one.index,
                    "probability": found[config.threshold].probability(similarity),
                    **{f"probability_{t}": curve[i] for i, t in enumerate(CURVE)},
                }
            )
        )
    return pd.concat(tables, ignore_index=True), left_out_calibration(own, config.threshold)


def left_out_calibration(similarity: Sequence[Floats], threshold: float) -> pd.DataFrame:
    """Train on all SAEs but one, predict that one, for each in turn: see :func:`reliability`."""
    n = len(similarity)
    if n < 4:
        return pd.DataFrame()
    probability, outcome = [], []
    for new in range(n):
        kept = [s for s in range(n) if s != new]
        # columns are the other seeds in order: that of seed t in SAE s is t, less one after s
        known = [np.delete(similarity[s], new - (new > s), axis=1) for s in kept]
        model = fit_return(known, threshold)
        for s, own in zip(kept, known, strict=True):
            probability.append(model.probability(own))
            outcome.append(similarity[s][:, new - (new > s)] >= threshold)
    return reliability(np.concatenate(probability), np.concatenate(outcome))


def reliability(probability: ArrayLike, outcome: ArrayLike, n_bins: int = 10) -> pd.DataFrame:
    """Compare predicted probabilities with what happened.

    Returns
    -------
    pandas.DataFrame
        A row per bin that holds a prediction: ``low``, ``high``, ``n``, ``predicted`` (mean),
        ``happened`` (share); and in every row ``brier`` (mean squared error of the probability,
        Brier 1950) and ``brier_of_base_rate``, that of predicting the overall share for all.

    Raises
    ------
    InputError
        When there is none, or one is outside [0, 1].
    """
    p = np.asarray(probability, dtype=np.float64)
    y = np.asarray(outcome, dtype=np.float64)
    if not len(p) or p.shape != y.shape or p.min() < 0 or p.max() > 1:
        raise InputError(f"probability: shape {p.shape}, outcomes {y.shape}; give one for each")
    at = np.minimum((p * n_bins).astype(np.int64), n_bins - 1)
    n = np.bincount(at, minlength=n_bins)
    filled = np.flatnonzero(n)
    return pd.DataFrame(
        {
            "low": filled / n_bins,
            "high": (filled + 1) / n_bins,
            "n": n[filled],
            "predicted": np.bincount(at, p, minlength=n_bins)[filled] / n[filled],
            "happened": np.bincount(at, y, minlength=n_bins)[filled] / n[filled],
            "brier": float(np.mean((p - y) ** 2)),
            "brier_of_base_rate": float(y.mean() * (1 - y.mean())),
        }
    )
