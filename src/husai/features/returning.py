"""Estimate the probability that a new seed has a feature, and check it on seeds left out.

For each feature of one SAE it is known in which of the other seeds it was found. When one of them
is left out, the rest say how often and how closely the feature is found. A logistic regression
learns, from all features and all seeds left out, how this predicts the seed left out. Applied to
all seeds it predicts a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from husai.consistency.inference.intervals import mean_interval
from husai.consistency.inference.seeds import partner_similarity
from husai.errors import InputError
from husai.features.cards import FeatureCards
from husai.features.config import FeaturesConfig

Floats = NDArray[np.float64]

CURVE = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of |cosine| at which the probability is estimated."""

_LEAST_KNOWN, _LEAST_NEW = 3, 2
_RIDGE = 1.0
_SWEEPS = 50
_EDGE = 0.01  # similarities are clipped to this distance from 0 and 1, so that the logit is finite


@dataclass(frozen=True)
class ReturnModel:
    """A fitted model of whether a new seed has a feature.

    Attributes
    ----------
    threshold
        Least |cosine| at which a feature counts as found.
    weights
        ``[4]`` weights of the constant, of the logit of the share of seeds that have the feature,
        and of the logits of the mean and of the least similarity.
    """

    threshold: float
    weights: Floats

    def probability(self, similarity: ArrayLike) -> Floats:
        """Return ``[n]`` probabilities of features with ``[n, seeds]`` partner similarities."""
        values: Floats = expit(_covariates(similarity, self.threshold) @ self.weights)
        return values


def _covariates(similarity: ArrayLike, threshold: float) -> Floats:
    s = np.asarray(similarity, dtype=np.float64)
    if s.ndim != 2 or not s.shape[1]:
        raise InputError(f"similarity: shape {s.shape}; give one column for each other seed")
    found = (s >= threshold).sum(axis=1)
    share = (found + 0.5) / (s.shape[1] + 1)
    mean, least = (np.clip(x, _EDGE, 1 - _EDGE) for x in (s.mean(axis=1), s.min(axis=1)))
    return np.stack([np.ones(len(s)), logit(share), logit(mean), logit(least)], axis=1)


def fit_return(similarity: Sequence[Floats], threshold: float) -> ReturnModel:
    """Learn how the other seeds predict a seed that is left out.

    Parameters
    ----------
    similarity
        For each SAE ``[n_s, S - 1]``: |cosine| of each feature to its partner in every other SAE,
        0 where it has none.
    threshold
        Least |cosine| at which a feature counts as found.

    Raises
    ------
    InputError
        With fewer than three SAEs: with two, no seed is left to predict from.
    """
    n_others = min((s.shape[1] for s in similarity), default=0)
    if n_others < 2:
        raise InputError(f"similarity: {n_others + 1} SAEs; at least three are needed")
    rows, outcomes = [], []
    for s in similarity:
        for t in range(s.shape[1]):
            rows.append(_covariates(np.delete(s, t, axis=1), threshold))
            outcomes.append(s[:, t] >= threshold)
    return ReturnModel(threshold, _logistic(np.concatenate(rows), np.concatenate(outcomes)))


def _logistic(x: Floats, y: NDArray[np.bool_]) -> Floats:
    """Fit a logistic regression by Newton's method, with a ridge penalty.

    The penalty keeps the weights finite when all features are found, or none. On the constant it
    is almost zero.
    """
    ridge = np.full(x.shape[1], _RIDGE)
    ridge[0] = 1e-3
    w = np.zeros(x.shape[1])
    for _ in range(_SWEEPS):
        p = expit(x @ w)
        gradient = x.T @ (y - p) - ridge * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        # the step is bounded: far from the optimum a full Newton step can go too far
        w += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    return w


def return_probabilities(
    cards: FeatureCards, config: FeaturesConfig | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Estimate for each feature the probability that a new seed has it.

    Parameters
    ----------
    cards
        Cards of three SAEs or more.
    config
        ``threshold`` is used.

    Returns
    -------
    features
        ``id``, ``latent``, ``probability`` at ``config.threshold``, and ``probability_0.5`` …
        ``probability_0.9``, the probabilities at the thresholds of :data:`CURVE`.
    calibration
        Predictions of each SAE from the others against what was found in it: a row per bin of
        predicted probability, see :func:`reliability`; empty below four SAEs.

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
        # a feature found at |cosine| .9 is also found at .8, so the curve must not rise
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
    """Predict each SAE from all others, and compare with what was found: see :func:`reliability`.

    Parameters
    ----------
    similarity, threshold
        As for :func:`fit_return`.

    Returns
    -------
    pandas.DataFrame
        Empty below four SAEs.
    """
    n = len(similarity)
    if n < 4:
        return pd.DataFrame()
    probability, outcome = [], []
    for new in range(n):
        kept = [s for s in range(n) if s != new]
        # SAE s has a column for each other seed, in order: seed t is in column t - (t > s)
        known = [np.delete(similarity[s], new - (new > s), axis=1) for s in kept]
        model = fit_return(known, threshold)
        for s, own in zip(kept, known, strict=True):
            probability.append(model.probability(own))
            outcome.append(similarity[s][:, new - (new > s)] >= threshold)
    return reliability(np.concatenate(probability), np.concatenate(outcome))


def new_seed_calibration(
    similarity: Sequence[Floats],
    n_known: int,
    thresholds: Sequence[float],
    level: float = 0.95,
) -> pd.DataFrame:
    """Train on the first seeds and predict the others, which the model has never seen.

    Parameters
    ----------
    similarity
        As for :func:`fit_return`, of all SAEs.
    n_known
        SAEs that are trained on: at least three, with at least two left.
    thresholds
        |cosine| at which a feature counts as found, a model each.
    level
        Of the intervals.

    Returns
    -------
    pandas.DataFrame
        :func:`reliability` at each ``threshold``, with ``brier_low``, ``brier_high``: a Student's
        t interval over the new seeds, each of which has a Brier score of its own.

    Raises
    ------
    InputError
        When too few SAEs are known or new.
    """
    n_new = len(similarity) - n_known
    if n_known < _LEAST_KNOWN or n_new < _LEAST_NEW:
        raise InputError(
            f"similarity: {n_known} SAEs known and {n_new} new; give at least {_LEAST_KNOWN} and "
            f"{_LEAST_NEW}"
        )
    # the columns of SAE s are the others in order: those of the known ones come first
    known = [one[:, : n_known - 1] for one in similarity[:n_known]]
    new = [one[:, n_known - 1 :] for one in similarity[:n_known]]
    tables = []
    for threshold in thresholds:
        model = fit_return(known, threshold)
        p = np.concatenate([model.probability(one) for one in known])
        y = np.concatenate(new) >= threshold
        brier = np.square(p[:, None] - y).mean(axis=0)
        ends = mean_interval(brier, level=level, bounds=(0.0, 1.0))
        table = reliability(np.repeat(p, n_new), y.ravel())
        tables.append(table.assign(threshold=threshold, brier_low=ends.low, brier_high=ends.high))
    return pd.concat(tables, ignore_index=True)


def reliability(probability: ArrayLike, outcome: ArrayLike, n_bins: int = 10) -> pd.DataFrame:
    """Compare predicted probabilities with what happened.

    Parameters
    ----------
    probability
        ``[n]`` predictions from 0 to 1.
    outcome
        ``[n]`` whether it happened.
    n_bins
        Number of bins of equal width.

    Returns
    -------
    pandas.DataFrame
        A row per bin with at least one prediction: ``low``, ``high``, ``n``, ``predicted`` (mean),
        ``happened`` (share). Every row also has ``brier`` (mean squared error of the probability,
        Brier 1950) and ``brier_of_base_rate``, the same when the overall share is predicted for
        all.

    Raises
    ------
    InputError
        When there is no prediction, one is outside [0, 1], or the shapes differ.
    """
    p = np.asarray(probability, dtype=np.float64)
    y = np.asarray(outcome, dtype=np.float64)
    if not len(p) or p.shape != y.shape or p.min() < 0 or p.max() > 1:
        raise InputError(
            f"probability: shape {p.shape}, outcomes {y.shape}; give one outcome for each "
            "probability from 0 to 1"
        )
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
