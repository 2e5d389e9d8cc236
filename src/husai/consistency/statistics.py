"""Statistics in which the seeds are the sample.

Ten pair scores of five SAEs are not ten observations: pairs that share a seed move together. The
mean of the pair scores is a U-statistic of the seeds, and its spread is estimated over them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from husai.errors import InputError

IntervalMethod = Literal["jackknife", "bootstrap"]


@dataclass(frozen=True)
class SeedInterval:
    """The mean score of a pair of seeds, with an interval over seeds.

    Attributes
    ----------
    mean
        Mean over pairs; None when there is no pair.
    low, high, se
        Ends of the interval and the standard error; None when not defined.
    level
        Confidence level.
    n_seeds, n_pairs
        What it rests on.
    method
        ``"jackknife"`` or ``"bootstrap"``.
    reason
        Why something is None; empty when all is defined.
    """

    mean: float | None
    low: float | None
    high: float | None
    se: float | None
    level: float
    n_seeds: int
    n_pairs: int
    method: str
    reason: str

    @property
    def defined(self) -> bool:
        """Whether the interval is defined."""
        return self.low is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a flat dictionary."""
        return asdict(self)


def pair_matrix(scores: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    """Check a symmetric matrix ``[S, S]`` of pair scores; its diagonal is not looked at.

    Raises
    ------
    InputError
        When it is not square, not symmetric, or a score off the diagonal is not finite.
    """
    W = np.array(scores, dtype=np.float64)
    if W.ndim != 2 or W.shape[0] != W.shape[1] or W.shape[0] < 1:
        raise InputError(f"{name}: shape {W.shape}; give a square matrix, seeds by seeds")
    off = ~np.eye(len(W), dtype=bool)
    if not np.isfinite(W[off]).all():
        raise InputError(f"{name}: a pair score is NaN or infinite; leave that seed out")
    if not np.allclose(W[off], W.T[off], rtol=0, atol=1e-9):
        raise InputError(f"{name}: not symmetric; average the two directions first")
    np.fill_diagonal(W, 0.0)
    return W


def seed_interval(
    scores: ArrayLike,
    *,
    level: float = 0.95,
    method: IntervalMethod = "jackknife",
    bounds: tuple[float, float] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> SeedInterval:
    """Interval over seeds for the mean pair score.

    ``"jackknife"``: leave one seed (all its pairs) out; ``se² = (S-1)/S Σ_s (U_(s) - Ū)²`` with
    the t quantile of S-1 degrees of freedom (Arvesen 1969 for U-statistics). Exact when seeds
    differ in quality, ``W_st = μ + a_s + a_t``; too wide, never too narrow, when pairs carry noise
    of their own. ``"bootstrap"`` resamples seeds and takes percentiles over pairs of different
    seeds: it is too narrow with few seeds and is there to show it.

    Parameters
    ----------
    scores
        ``[S, S]`` symmetric pair scores; the diagonal is ignored.
    level
        Confidence level in (0, 1).
    method
        ``"jackknife"`` (default) or ``"bootstrap"``.
    bounds
        Cut the interval to what the score can be, for example ``(0, 1)``.
    n_resamples, seed
        Of the bootstrap.

    Returns
    -------
    SeedInterval
        With ``reason`` instead of an interval below three seeds.

    Raises
    ------
    InputError
        When the matrix, the level or the method is unfit.
    """
    if not 0 < level < 1:
        raise InputError(f"level: {level}; give a number between 0 and 1")
    if method not in get_args(IntervalMethod):
        raise InputError(f"method: {method!r} is not known; choose from {get_args(IntervalMethod)}")
    W = pair_matrix(scores)
    n = len(W)
    n_pairs = n * (n - 1) // 2
    if n < 3:
        reason = (
            "one seed: no pair to compare"
            if n == 1
            else "two seeds make one pair: its spread over seeds cannot be seen"
        )
        mean = float(W[0, 1]) if n == 2 else None
        return SeedInterval(mean, None, None, None, level, n, n_pairs, method, reason)
    total = W.sum() / 2
    mean = float(total / n_pairs)
    if method == "jackknife":
        without = (total - W.sum(axis=1)) / ((n - 1) * (n - 2) / 2)
        se = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
        half = float(stats.t.ppf((1 + level) / 2, n - 1)) * se
        low, high = mean - half, mean + half
    else:
        means = _bootstrap_means(W, n_resamples, np.random.default_rng(seed))
        se = float(means.std(ddof=1))
        low, high = (float(v) for v in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return SeedInterval(mean, low, high, se, level, n, n_pairs, method, "")


def _bootstrap_means(
    W: NDArray[np.float64], n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean pair score of resampled seeds, over pairs of different seeds."""
    n = len(W)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    counts = counts[(counts > 0).sum(axis=1) > 1]  # one seed n times holds no pair
    weighted = np.einsum("rs,st,rt->r", counts, W, counts)
    means: NDArray[np.float64] = weighted / (
        counts.sum(axis=1) ** 2 - np.square(counts).sum(axis=1)
    )
    return means
