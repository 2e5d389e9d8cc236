"""Chance levels: what a score is worth on dictionaries that share nothing.

A maximum over many candidates is large by chance alone (matched |cosine| .304 between random
dictionaries of 2,048 features in 128 dimensions), so every score stands beside its null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.consistency.scores.decoder import PAIR_SCORES, DictionaryPair, signed_and_absolute
from husai.errors import InputError
from husai.threads import worker_pool

NullKind = Literal["isotropic", "data_aware"]


@dataclass(frozen=True)
class NullDistribution:
    """Scores of pairs that share nothing, and what they say about an observed score.

    Attributes
    ----------
    kind
        ``"isotropic"``, ``"data_aware"``, ``"init"``, ``"untrained"`` or the caller's own word.
    score
        Name of the score.
    signed
        Whether the score used the cosine itself.
    values
        ``[n]`` float64: the score of each null pair.
    independent
        Whether the values are independent draws. Pairs of the same few initialisations are not,
        and give no p-value.
    perfect
        The score of two identical dictionaries: 1 for a similarity, 0 for a distance.
    """

    kind: str
    score: str
    signed: bool
    values: NDArray[np.float64]
    independent: bool = True
    perfect: float = 1.0

    @property
    def mean(self) -> float:
        """Mean of the null."""
        return float(self.values.mean())

    @property
    def sd(self) -> float | None:
        """Standard deviation of one pair's null score; None for a single value."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else None

    @property
    def informative(self) -> bool:
        """Whether chance falls short of the perfect score and leaves something to correct."""
        return abs(self.perfect - self.mean) >= 1e-12

    def corrected(self, score: float) -> float:
        """``(score - null) / (perfect - null)``: 0 at chance, 1 at identity, negative below."""
        if not self.informative:
            raise InputError(
                f"{self.score}: its {self.kind} null is the perfect score already; "
                "a corrected score is not defined"
            )
        return (score - self.mean) / (self.perfect - self.mean)

    def p_value(self, score: float) -> float | None:
        """One-sided Monte Carlo p-value of a score better than chance.

        ``(1 + #{null at least as good}) / (1 + n)`` (Phipson & Smyth 2010): never 0, and at
        least ``1 / (1 + n)``. The null is one pair's; a mean over several pairs varies less, so
        for it the p-value is conservative. None where the null's values are not independent.
        """
        if not self.independent:
            return None
        as_good = self.values >= score if self.perfect > self.mean else self.values <= score
        return float((1 + as_good.sum()) / (1 + len(self.values)))

    def z(self, score: float) -> float | None:
        """Standardised effect ``(score - null mean) / null sd``.

        None where the sd is 0, or comes from a few values that are not independent.
        """
        return (score - self.mean) / self.sd if self.sd and self.independent else None


def random_dictionary(
    n: int, d: int, rng: np.random.Generator, root: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Draw ``[n, d]`` unit rows: uniform on the sphere, or with a covariance given by its root.

    Parameters
    ----------
    n, d
        Features and dimensions.
    rng
        Generator.
    root
        ``[r, d]`` with ``root.T @ root`` the covariance, from :func:`covariance_root`.
    """
    rows = rng.standard_normal((n, d if root is None else len(root)))
    if root is not None:
        rows = rows @ root
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def covariance_root(covariance: ArrayLike) -> NDArray[np.float64]:
    """Return ``[r, d]`` with ``root.T @ root = covariance``; ``r`` is its rank.

    Raises
    ------
    InputError
        When the covariance is not a square, symmetric, positive semi-definite, non-zero matrix.
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"covariance: shape {matrix.shape}; give a square matrix [d, d]")
    if not np.isfinite(matrix).all():
        raise InputError("covariance: it holds NaN or infinity; compute it from finite rows")
    scale = float(np.abs(matrix).max(initial=0.0))
    if scale == 0.0:
        raise InputError("covariance: all zero; the activations do not vary")
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-6 * scale):
        raise InputError("covariance: it is not symmetric")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -1e-6 * values[-1]:
        raise InputError(f"covariance: eigenvalue {values[0]:.3g} is negative")
    keep = values > 1e-12 * values[-1]
    root: NDArray[np.float64] = np.sqrt(values[keep])[:, None] * vectors[:, keep].T
    return root


def null_scores(
    n_a: int,
    n_b: int,
    d: int,
    *,
    kind: NullKind = "isotropic",
    scores: Sequence[str] = ("pw_mcc", "mmcs"),
    signed: bool = False,
    covariance: ArrayLike | None = None,
    n_draws: int = 40,
    seed: int = 0,
    workers: int = 1,
    rank: int | None = None,
) -> dict[str, NullDistribution]:
    """Score independent pairs of random dictionaries.

    Draw ``t`` depends on ``seed`` and ``t`` alone, so the values are the same for any ``workers``.

    Parameters
    ----------
    n_a, n_b, d
        Features of the two dictionaries and their dimension.
    kind
        ``"isotropic"``: directions uniform on the sphere. ``"data_aware"``: directions drawn with
        the covariance of the activations; anisotropic data raise chance a lot.
    scores
        Names from ``PAIR_SCORES``.
    signed
        Use the cosine itself instead of its absolute value.
    covariance
        ``[d, d]`` covariance of the activations; needed by ``"data_aware"``.
    n_draws
        Independent pairs. The least p-value is ``1 / (1 + n_draws)``.
    seed
        Seed of the draws.
    workers
        Threads.
    rank
        Dimensions of the subspaces that ``"subspace_overlap"`` compares.

    Returns
    -------
    dict
        By name; a score that is not defined for these sizes is left out.

    Raises
    ------
    InputError
        On an unknown kind or score, sizes below 1, or a covariance that is missing or unfit.
    """
    draw = _sampler(n_a, n_b, d, kind, covariance, n_draws, seed, scores)

    def one(t: int) -> list[float | None]:
        pair = DictionaryPair(*draw(t), signed=signed, rank=rank)
        return [PAIR_SCORES[name].compute(pair) for name in scores]

    with worker_pool(workers) as pool:  # assignments and products release the GIL
        values = list(pool.map(one, range(n_draws)))
    return _defined(kind, signed, scores, values, independent=True)


def null_scores_of_both_signs(
    n_a: int,
    n_b: int,
    d: int,
    *,
    kind: NullKind = "isotropic",
    scores: Sequence[str] = ("pw_mcc", "mmcs"),
    covariance: ArrayLike | None = None,
    n_draws: int = 40,
    seed: int = 0,
    workers: int = 1,
    rank: int | None = None,
) -> dict[bool, dict[str, NullDistribution]]:
    """The nulls of :func:`null_scores` for ``signed`` True and False, from the same draws.

    Half the work of two calls: one pass of products serves both matches.

    Raises
    ------
    InputError
        As :func:`null_scores`.
    """
    draw = _sampler(n_a, n_b, d, kind, covariance, n_draws, seed, scores)

    def one(t: int) -> list[list[float | None]]:
        pairs = signed_and_absolute(*draw(t), rank=rank)
        return [[PAIR_SCORES[name].compute(pair) for name in scores] for pair in pairs]

    with worker_pool(workers) as pool:
        values = list(pool.map(one, range(n_draws)))
    return {
        sign: _defined(kind, sign, scores, [both[at] for both in values], independent=True)
        for at, sign in enumerate((True, False))
    }


_Dictionaries = tuple[NDArray[np.float64], NDArray[np.float64]]


def _sampler(
    n_a: int,
    n_b: int,
    d: int,
    kind: str,
    covariance: ArrayLike | None,
    n_draws: int,
    seed: int,
    scores: Sequence[str],
) -> Callable[[int], _Dictionaries]:
    """Check what a null is asked for; return the function that makes its draw ``t``."""
    if kind not in get_args(NullKind):
        raise InputError(f"kind: {kind!r} is not a null; choose from {get_args(NullKind)}")
    _known(scores)
    if min(n_a, n_b, d, n_draws) < 1:
        raise InputError(f"sizes: n_a {n_a}, n_b {n_b}, d {d}, n_draws {n_draws}; give at least 1")
    root = None
    if kind == "data_aware":
        if covariance is None:
            raise InputError("covariance: the data-aware null needs the activations' covariance")
        root = covariance_root(covariance)
        if root.shape[1] != d:
            raise InputError(f"covariance: of {root.shape[1]} dimensions, dictionaries of {d}")

    def draw(t: int) -> _Dictionaries:
        rng = np.random.default_rng([seed, t])
        return random_dictionary(n_a, d, rng, root), random_dictionary(n_b, d, rng, root)

    return draw


def _known(scores: Sequence[str]) -> None:
    unknown = [name for name in scores if name not in PAIR_SCORES]
    if unknown:
        raise InputError(f"scores: {unknown} are not known; choose from {sorted(PAIR_SCORES)}")


def _defined(
    kind: str,
    signed: bool,
    scores: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    independent: bool,
) -> dict[str, NullDistribution]:
    """Gather ``values[draw][score]``, leaving out scores that some draw does not define."""
    found = {}
    for column, name in enumerate(scores):
        defined = [row[column] for row in values if row[column] is not None]
        if len(defined) == len(values):
            found[name] = NullDistribution(
                kind,
                name,
                signed,
                np.array(defined, dtype=np.float64),
                independent,
                PAIR_SCORES[name].perfect,
            )
    return found


def null_between(
    dictionaries: Sequence[ArrayLike],
    kind: str,
    *,
    scores: Sequence[str] = ("pw_mcc", "mmcs"),
    signed: bool = False,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> dict[str, NullDistribution]:
    """Score pairs of given dictionaries as a null: initialisations, SAEs of an untrained model.

    With ``kind="init"`` and the SAEs' own initial decoders it says how much agreement was there
    before training (a shared deterministic init buys agreement for nothing, arXiv 2606.02061);
    with ``kind="untrained"`` and SAEs trained on an untrained transformer it says how much the
    data and the method alone give (arXiv 2501.17727).

    Parameters
    ----------
    dictionaries
        At least two of ``[n_s, d]``.
    kind
        Name of the null.
    scores, signed
        As in :func:`null_scores`.
    pairs
        Which to score; all pairs by default.

    Raises
    ------
    InputError
        When fewer than two are given, or they do not fit together.
    """
    if len(dictionaries) < 2:
        raise InputError(f"dictionaries: {len(dictionaries)} given; a null needs at least a pair")
    _known(scores)
    chosen = list(combinations(range(len(dictionaries)), 2)) if pairs is None else list(pairs)
    values = []
    for i, j in chosen:
        pair = DictionaryPair(dictionaries[i], dictionaries[j], signed=signed)
        values.append([PAIR_SCORES[name].compute(pair) for name in scores])
    return _defined(kind, signed, scores, values, independent=False)
