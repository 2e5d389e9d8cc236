"""References: random dictionaries that keep one chosen property of the real ones.

A score has to be compared with the score of dictionaries that have only a known property in
common. Each reference here is one choice of this property: it draws any number of dictionaries
that share it and nothing else. :func:`score_reference` makes the null of a score from a reference.

``benchmarks/null_calibration.py`` measures on planted worlds which reference is a fair null.
Claims should rest on the permuted reference. The data-aware one is not a fair null for SAE
dictionaries, since their spectrum is flatter than that of the data: dictionaries that share half
of their features can score below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.vq import kmeans2

from husai.consistency.config import ComparisonConfig
from husai.consistency.inference.nulls import (
    NullDistribution,
    distribution,
    random_dictionary,
)
from husai.consistency.inference.permuted import PermutedPool, pooled
from husai.consistency.scores.decoder import SHARED_THRESHOLD, shared_fraction
from husai.consistency.scores.pair import dictionary_pair
from husai.consistency.scores.registry import known_scores
from husai.consistency.scores.subspace import covariance_root
from husai.errors import InputError
from husai.matching.match import unit_rows
from husai.threads import worker_pool

Rows = NDArray[np.float64]
T = TypeVar("T")
Draw = Callable[[np.random.Generator, Sequence[int]], list[Rows]]


@dataclass(frozen=True)
class Reference:
    """A distribution of random dictionaries.

    Attributes
    ----------
    kind
        Its name: ``"isotropic"``, ``"permuted"``, ``"data_aware"``, ``"phase"``, ``"data_rows"``,
        ``"kmeans"`` or ``"init"``.
    keeps
        What its dictionaries have in common with the real ones, in words.
    d
        Dimensions.
    independent
        Whether draws are independent. Those from a few given dictionaries are not, and give no
        p-value.
    """

    kind: str
    keeps: str
    d: int
    independent: bool
    _draw: Draw = field(repr=False)

    def draw(self, rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        """Draw one dictionary ``[n, d]`` of unit rows for each of the ``sizes``.

        Raises
        ------
        InputError
            When a size is below 1, or the reference cannot make so many features.
        """
        if not sizes or min(sizes) < 1:
            raise InputError(f"sizes: {list(sizes)}; give at least one size of at least 1")
        return self._draw(rng, sizes)


def isotropic(d: int) -> Reference:
    """Directions uniform on the sphere in ``d`` dimensions: only the sizes are kept.

    Real dictionaries score far above it; it only shows that chance is not 0.
    """
    if d < 1:
        raise InputError(f"d: {d}; give at least 1")

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        return [random_dictionary(n, d, rng) for n in sizes]

    return Reference("isotropic", "the number of features and dimensions", d, True, draw)


def data_aware(covariance: ArrayLike) -> Reference:
    """Gaussian directions with the covariance ``[d, d]`` of the activations.

    Raises
    ------
    InputError
        When the covariance is not symmetric, positive semi-definite and non-zero.
    """
    root = covariance_root(covariance)

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        return [random_dictionary(n, root.shape[1], rng, root) for n in sizes]

    return Reference("data_aware", "the spectrum of the activations", root.shape[1], True, draw)


def permuted(dictionaries: Sequence[ArrayLike]) -> Reference:
    """Permute the coordinates of the seeds' own features: spectrum and marginals are kept.

    The seeds' unit rows are pooled, ``[N, d]``, and written in the principal axes of their second
    moment. In each axis the N coordinates are permuted across features, independently of the
    other axes, and get random signs; the rows are renormalised and divided among the dictionaries
    that are drawn (Horn 1965, parallel analysis, for directions). This removes the features: which
    coordinates belong together. Renormalising flattens the spectrum, and a flatter spectrum makes
    chance too low (by .02 where the spectrum is steep), so the axes are first weighted such that
    the drawn rows have the second moment of the pool.

    With few features the axes fit them too well and the null is too high: with 16 features per
    dictionary, give it many seeds. The random signs remove a mean direction of all features; this
    matters only for signed scores.

    Parameters
    ----------
    dictionaries
        ``[n_s, d]`` decoders of the seeds compared; rows of zeros are left out.

    Raises
    ------
    InputError
        When none is given, dimensions differ, or every row is zero.
    """
    pool = PermutedPool(dictionaries)

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        return [decoder for decoder, _ in pool.draw(rng, sizes)]

    return Reference(
        "permuted",
        "the spectrum and the marginals of the seeds' own features",
        pool.basis.shape[1],
        True,
        draw,
    )


def phase(dictionaries: Sequence[ArrayLike], planes: ArrayLike) -> Reference:
    """Rotate the seeds' own dictionaries inside known planes, each plane by a random angle.

    Only the phases in the planes change. Everything else is kept: which planes have features, how
    many and how evenly, and the parts outside the planes. So a score above this reference says
    that seeds agree on phases too; a score at its level may still mean full agreement on planes.

    Two dictionaries of one draw come from two *different* seeds, if there are two.

    Parameters
    ----------
    dictionaries
        ``[n_s, d]`` decoders of the seeds; a drawn dictionary has at most as many features.
    planes
        ``[n_planes, 2, d]``, linearly independent; they need not be orthogonal to one another.

    Raises
    ------
    InputError
        When shapes do not fit or the planes are not independent.
    """
    rows = [unit_rows(one, f"dictionary {i}") for i, one in enumerate(dictionaries)]
    pooled(dictionaries)
    axes = np.asarray(planes, dtype=np.float64)
    d = rows[0].shape[1]
    if axes.ndim != 3 or axes.shape[1:] != (2, d) or not np.isfinite(axes).all():
        raise InputError(f"planes: shape {axes.shape}; give finite [n_planes, 2, {d}]")
    flat = axes.reshape(-1, d)
    if np.linalg.matrix_rank(flat, tol=1e-6 * np.linalg.norm(flat, 2)) < len(flat):
        raise InputError(
            f"planes: {len(axes)} planes are not independent in {d} dimensions; give the key "
            "frequencies only"
        )
    # the dual basis gives the coordinates in planes that are not orthogonal
    dual = np.linalg.pinv(flat)

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        order = rng.permutation(len(rows))
        drawn = []
        for at, n in enumerate(sizes):
            source = rows[order[at % len(rows)]]
            if n > len(source):
                raise InputError(f"sizes: {n} features asked for, the dictionary has {len(source)}")
            chosen = source if n == len(source) else source[rng.permutation(len(source))[:n]]
            angle = rng.uniform(0, 2 * np.pi, len(axes))
            pairs = (chosen @ dual).reshape(n, -1, 2)
            turned = np.stack(
                [
                    np.cos(angle) * pairs[..., 0] - np.sin(angle) * pairs[..., 1],
                    np.sin(angle) * pairs[..., 0] + np.cos(angle) * pairs[..., 1],
                ],
                axis=-1,
            )
            drawn.append(unit_rows(chosen + (turned - pairs).reshape(n, -1) @ flat))
        return drawn

    return Reference("phase", "everything but the phases inside the known planes", d, True, draw)


def data_rows(rows: ArrayLike) -> Reference:
    """Centred rows of the data as features: the agreement of two samples of the data.

    Agreement at this level needs no training (arXiv 2606.02061 finds that the stability of
    archetypal SAEs comes from shared initialisation).

    Parameters
    ----------
    rows
        ``[N, d]`` activations.

    Raises
    ------
    InputError
        When they are not a finite matrix, or no row differs from the mean.
    """
    centred = _centred(rows)

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        if max(sizes) > len(centred):
            raise InputError(f"sizes: {max(sizes)} features asked for, {len(centred)} data rows")
        return [unit_rows(centred[rng.choice(len(centred), n, replace=False)]) for n in sizes]

    return Reference("data_rows", "the data, as a sample of its rows", centred.shape[1], True, draw)


def kmeans(
    rows: ArrayLike, n: int, *, n_runs: int = 6, iterations: int = 20, seed: int = 0
) -> Reference:
    """Centroids of the centred data, by k-means from different starts.

    It shows how far a simple clustering of the same data agrees with itself. Runs are costly, so
    ``n_runs`` are made here and each draw takes different ones of them; the draws are therefore
    not independent.

    Parameters
    ----------
    rows
        ``[N, d]`` activations.
    n
        Number of centroids.
    n_runs
        Number of runs; each starts from other rows of the data.
    iterations
        Lloyd's iterations in a run.
    seed
        Seed of the starts.

    Raises
    ------
    InputError
        When the rows are not a finite matrix, or there are fewer than ``n`` of them.
    """
    centred = _centred(rows)
    if not 1 <= n <= len(centred) or n_runs < 2:
        raise InputError(
            f"n, n_runs: {n} centroids of {len(centred)} rows in {n_runs} runs; give at most as "
            "many centroids as rows and at least two runs"
        )
    fitted = []
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        start = centred[rng.choice(len(centred), n, replace=False)]
        # a cluster without rows keeps its last centroid
        centroids, _ = kmeans2(centred, start, iter=iterations, minit="matrix", missing="warn")
        fitted.append(np.asarray(centroids, dtype=np.float64))
    return given(fitted, "kmeans", "the data, as clustered by k-means")


def given(dictionaries: Sequence[ArrayLike], kind: str, keeps: str) -> Reference:
    """Given dictionaries: the initialisations of the SAEs, or the SAEs of a baseline.

    ``given(inits, "init", "the initial weights")`` with the SAEs' initial decoders gives the
    agreement before training. Each draw takes different ones of them at random.

    Parameters
    ----------
    dictionaries
        At least two ``[n_s, d]``.
    kind, keeps
        As in :class:`Reference`.

    Raises
    ------
    InputError
        When fewer than two are given or their dimensions differ.
    """
    if len(dictionaries) < 2:
        raise InputError(f"dictionaries: {len(dictionaries)} given; a pair needs at least two")
    rows = [unit_rows(one, f"dictionary {i}") for i, one in enumerate(dictionaries)]
    d = pooled(dictionaries).shape[1]

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        if len(sizes) > len(rows):
            raise InputError(f"sizes: {len(sizes)} dictionaries asked for, {len(rows)} are given")
        chosen = [rows[i] for i in rng.permutation(len(rows))[: len(sizes)]]
        if any(len(one) < n for one, n in zip(chosen, sizes, strict=True)):
            raise InputError(f"sizes: {list(sizes)} asked for, given {[len(one) for one in rows]}")
        return [
            one if len(one) == n else one[rng.permutation(len(one))[:n]]
            for one, n in zip(chosen, sizes, strict=True)
        ]

    return Reference(kind, keeps, d, False, draw)


def _centred(rows: ArrayLike) -> Rows:
    x = np.asarray(rows, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputError(f"rows: shape {x.shape}; give a finite matrix of activations [n, d]")
    x = x - x.mean(axis=0)
    scale = float(np.linalg.norm(x, axis=1).max(initial=0.0))
    x = x[np.linalg.norm(x, axis=1) > 1e-9 * scale] if scale > 0 else x[:0]
    if not len(x):
        raise InputError("rows: all equal; the activations do not vary")
    return x


def score_reference(
    reference: Reference,
    sizes: tuple[int, int],
    *,
    scores: Sequence[str] = ("pw_mcc",),
    signed: bool = False,
    n_draws: int = 200,
    seed: int = 0,
    workers: int = 1,
    rank: int | None = None,
) -> dict[str, NullDistribution]:
    """Score pairs drawn from a reference; returns the null of each score by name.

    Draw ``t`` depends only on ``seed`` and ``t``, so the values are the same for any ``workers``.
    The smallest possible p-value is ``1 / (1 + n_draws)``: .005 at the default, .024 at 40.

    Parameters
    ----------
    reference
        The distribution of the dictionaries.
    sizes
        Numbers of features of the two dictionaries.
    scores
        Names of scores of decoders; one that is not defined for these sizes is left out.
    signed
        Use the cosine itself instead of its absolute value.
    n_draws, seed
        Pairs drawn, and their seed.
    workers
        Threads.
    rank
        Dimensions of the subspaces that ``"subspace_overlap"`` compares.

    Raises
    ------
    InputError
        On an unknown score, fewer than one draw, or sizes that the reference cannot make.
    """
    wanted = known_scores(list(scores))
    config = ComparisonConfig(subspace_rank=rank)

    def one(t: int) -> list[float | None]:
        a, b = reference.draw(np.random.default_rng([seed, t]), sizes)
        pair = dictionary_pair(a, b, (signed,), config=config)
        return [score.of(pair, signed).value for score in wanted]

    values = _each(one, n_draws, workers)
    found = {}
    for column, score in enumerate(wanted):
        of_score = [row[column] for row in values]
        null = distribution(reference.kind, score, signed, of_score, reference.independent)
        if null is not None:
            found[score.name] = null
    return found


def _each(one: Callable[[int], T], n_draws: int, workers: int) -> list[T]:
    if n_draws < 1:
        raise InputError(f"n_draws: {n_draws}; give at least 1")
    with worker_pool(workers) as pool:  # assignments and products release the GIL
        return list(pool.map(one, range(n_draws)))


def joint_null(
    decoders: Sequence[ArrayLike],
    encoders: Sequence[ArrayLike],
    *,
    threshold: float = SHARED_THRESHOLD,
    signed: bool = True,
    n_draws: int = 200,
    seed: int = 0,
    workers: int = 1,
) -> NullDistribution:
    """Null of the shared fraction: the score of permuted SAEs, decoder and encoder together.

    A feature is shared when decoder *and* encoder have the same partner, both at the threshold or
    above. Each SAE is permuted as in :func:`permuted`, decoder and encoder together (see
    :class:`PermutedPool`). With decoders alone the null would be far higher.

    Parameters
    ----------
    decoders
        ``[n_s, d]`` decoders of the seeds.
    encoders
        ``[n_s, d]``, **one feature per row**: from
        :func:`~husai.consistency.scores.subspace.encoder_in_data_metric`, or raw rows when there
        are no activations.
    threshold, signed
        As in :func:`~husai.consistency.scores.decoder.shared_fraction`.
    n_draws, seed, workers
        As in :func:`score_reference`.

    Raises
    ------
    InputError
        When shapes do not fit.
    """
    pool = PermutedPool(decoders, encoders)
    sizes = (int(np.shape(decoders[0])[0]), int(np.shape(decoders[-1])[0]))

    def one(t: int) -> float:
        (dec_a, enc_a), (dec_b, enc_b) = pool.draw(np.random.default_rng([seed, t]), sizes)
        assert enc_a is not None
        assert enc_b is not None
        return shared_fraction(
            dec_a, enc_a, dec_b, enc_b, signed=signed, threshold=threshold
        ).fraction

    values = np.array(_each(one, n_draws, workers), dtype=np.float64)
    return NullDistribution("permuted", "shared_fraction", signed, values)
