"""Excess consistency: how much more the seeds of a group agree with one another than with the
truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from husai.consistency.inference.intervals import pair_matrix, pseudo_values
from husai.errors import InputError

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
        Interval over seeds; None with fewer than three seeds.
    verdict
        ``"stable but wrong"`` when the whole interval is above ``margin``: the seeds share
        features that are not the planted ones. ``"truer than stable"`` when it is below
        ``-margin``: each seed finds true features, but not the same ones. ``"in step with
        truth"`` otherwise.
    level, n_seeds
        Confidence level, and number of seeds.
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
    """Find seeds that agree with one another on features that are not true.

    PW-MCC above GT-MCC means that dictionaries are nearer to one another than to the truth
    (arXiv 2512.02194 reports such a case: stability .572, ground truth .479). Both are corrected
    for chance, ``(score − null)/(1 − null)``, before they are subtracted. With more or fewer
    latents than true features the two are means over different numbers of pairs, and no
    correction makes them comparable: then use the share of reproduced latents that are true
    (:func:`~husai.calibration.detectors.reproducibility_as_detector`). The interval comes from
    jackknife pseudo-values of the PW-MCC minus each seed's own GT-MCC, t with S − 1 degrees of
    freedom.

    Parameters
    ----------
    pw_scores
        ``[S, S]`` symmetric PW-MCC of every pair of seeds.
    gt_scores
        ``[S]`` GT-MCC of every seed.
    n_latents, n_true
        Width of the dictionaries and number of true features; if they differ, the verdict is
        "not comparable". Taken as equal when not given.
    pw_null, gt_null
        Means of the nulls of the two (``husai.consistency.null_scores``); with 0 they are not
        corrected.
    margin
        Largest excess that counts as none.
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
        raise InputError("pw_scores: one seed; give at least two")
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
