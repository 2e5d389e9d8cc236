"""Spearman's rank correlation of two measures of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEAST_OBSERVATIONS = 4
"""With three, two independent measures have a correlation of 1 or −1 in a third of all cases."""


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's correlation over the observations for which both measures are known.

    Parameters
    ----------
    x, y
        ``[n]``; NaN where a measure is not known.

    Returns
    -------
    float
        NaN when fewer than four observations are known, or one measure does not vary.
    """
    both = np.stack([np.asarray(values, dtype=np.float64) for values in (x, y)])
    both = both[:, ~np.isnan(both).any(axis=0)]
    if both.shape[1] < LEAST_OBSERVATIONS or (np.ptp(both, axis=1) == 0).any():
        return float("nan")
    return float(stats.spearmanr(both[0], both[1]).statistic)
