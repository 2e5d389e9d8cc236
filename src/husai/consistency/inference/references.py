"""References: random dictionaries that keep a named part of what the real ones hold.

A score says something once it stands beside what it would be if only *this* were shared. Each
reference here is one choice of *this*: it draws any number of dictionaries that keep it and share
nothing else. :func:`score_reference` turns a reference into the null of a score.

Which one a claim rests on is not a matter of taste: ``benchmarks/null_calibration.py`` measures
them on planted worlds. The permuted reference is the one to claim against. The data-aware one is
not a fair null for SAE dictionaries, whose spectrum is flatter than the data's: half-shared
dictionaries can score below it.
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
    """A law of random dictionaries.

    Attributes
    ----------
    kind
        Its name: ``"isotropic"``, ``"permuted"``, ``"data_aware"``, ``"phase"``, ``"data_rows"``,
        ``"kmeans"`` or ``"init"``.
    keeps
        What its dictionaries have in common with the real ones, in words for a reader.
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
    """Directions uniform on the sphere: keep the sizes and nothing else.

    Far below any real dictionary; it shows only that chance is not 0.
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
    """Permute the coordinates of the seeds' own features: keep spectrum and marginals.

    The seeds' unit rows are pooled, ``[N, d]``, and written in the principal axes of their second
    moment. In each axis the N coordinates are permuted across features, independently of the
    other axes, and get random signs; the rows are renormalised and dealt to the dictionaries
    drawn (Horn 1965, parallel analysis, for directions). What is lost is which coordinates go
    together, that is, the features. Renormalising flattens the spectrum, and a flatter spectrum
    makes chance too low (by .02 where it is steep), so the axes are weighted first such that the
    rows drawn have the pool's second moment.

    With few features the axes fit them too well and the null is too high: at 16 features a
    dictionary give it many seeds. The random signs lose a mean direction that all features may
    lean to: it counts for a signed score only.

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
    """Turn the seeds' own dictionaries inside known planes, each plane by an angle of its own.

    Each dictionary drawn is one of the seeds' with every plane rotated by a random angle. All
    that a frequency's phase does not touch is kept: which planes are filled, by how many features
    and how evenly, and what lies outside the planes. So a score above it says that seeds agree on
    phases too; one at its level may still be full agreement about planes.

    Two dictionaries of one draw are turned copies of two *different* seeds where there are two.

    Parameters
    ----------
    dictionaries
        ``[n_s, d]``, all of one size when sizes of a draw are theirs.
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
    # coordinates in planes that are not orthogonal come from the dual basis
    dual = np.linalg.pinv(flat)

    def draw(rng: np.random.Generator, sizes: Sequence[int]) -> list[Rows]:
        order = rng.permutation(len(rows))
        drawn = []
        for at, n in enumerate(sizes):
            source = rows[order[at % len(rows)]]
            if n > len(source):
                raise InputError(
                    f"sizes: {n} features asked for, the dictionary turned has {len(source)}"
                )
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
    """Centred rows of the data as features: what two samples of the data agree on.

    Agreement at this level needs no training (arXiv 2606.02061: the stability of archetypal SAEs
    is shared initialisation).

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

    What the simplest way to cluster the same data agrees on. Runs are costly, so ``n_runs`` are
    made here and a draw takes different ones: the draws are not independent.

    Parameters
    ----------
    rows
        ``[N, d]`` activations.
    n
        Centroids.
    n_runs
        Runs, each from rows of the data drawn with its own seed.
    iterations
        Lloyd's iterations a run.
    seed
        Of the starts.

    Raises
    ------
    InputError
        When the rows are unfit, or there are fewer than ``n`` of them.
    """
    centred = _centred(rows)
    if not 1 <= n <= len(centred) or n_runs < 2:
        raise InputError(
            f"n: {n} centroids of {len(centred)} rows in {n_runs} runs; give at most as many "
            "centroids as rows and at least two runs"
        )
    fitted = []
    for run in range(n_runs):
        rng = np.random.default_rng([seed, run])
        start = centred[rng.choice(len(centred), n, replace=False)]
        # a cluster that empties keeps its last centroid
        centroids, _ = kmeans2(centred, start, iter=iterations, minit="matrix", missing="warn")
        fitted.append(np.asarray(centroids, dtype=np.float64))
    return given(fitted, "kmeans", "the data, as clustered by k-means")


def given(dictionaries: Sequence[ArrayLike], kind: str, keeps: str) -> Reference:
    """Dictionaries that are given: the SAEs' initialisations, or those of a baseline.

    For the SAEs' own initial decoders, ``given(inits, "init", "the initial weights")``: how much
    agreement was there before training. A draw takes different ones at random.

    Parameters
    ----------
    dictionaries
        At least two ``[n_s, d]``.
    kind, keeps
        As in :class:`Reference`.

    Raises
    ------
    InputError
        When fewer than two are given or they do not fit together.
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
    """Score pairs drawn from a reference: the null of each score.

    Draw ``t`` depends on ``seed`` and ``t`` alone, so values are the same for any ``workers``. The
    least p-value is ``1 / (1 + n_draws)``: .005 at the default, .024 at 40.

    Parameters
    ----------
    reference
        The law of the dictionaries.
    sizes
        Features of the two.
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
        On an unknown score, no draw, or sizes the reference cannot make.
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
        defined = [row[column] for row in values]
        if all(value is not None for value in defined):
            found[score.name] = NullDistribution(
                reference.kind,
                score.name,
                signed,
                np.array(defined, dtype=np.float64),
                reference.independent,
                score.perfect,
            )
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
    """Null of the shared fraction: the joint event, on permuted SAEs.

    A feature is shared when decoder *and* encoder name the same partner, both at the threshold or
    above. Each SAE drawn is permuted as in :func:`permuted`, decoder and encoder together (see
    :class:`PermutedPool`), so that only which coordinates go together is lost. The decoder's half
    alone is far higher and is not this null.

    Parameters
    ----------
    decoders
        ``[n_s, d]``, the seeds'.
    encoders
        ``[n_s, d]``, **one feature per row**: from
        :func:`~husai.consistency.scores.subspace.encoder_in_data_metric`, or raw rows when there
        are no activations.
    threshold, signed
        Those of the score beside which it stands.
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
