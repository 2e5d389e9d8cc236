"""Planted dictionaries: synthetic activations whose true features are known.

A planted world is a dictionary of unit rows and a law by which they fire. Rows of data are

    x = Σ_i c_i d_i + bias + noise

with sparse coefficients c (the *codes*). Everything random is drawn from two seeds:
``dictionary_seed`` fixes the world (dictionary, bias, co-occurrence, magnitude parameters) and
``data_seed`` the rows. Rows are generated in blocks of :data:`BLOCK_ROWS`, each from a generator
of its own, so that a stream of any batch size equals the same rows held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import ndtri

from husai.config import Config, Count, Latents, ModelWidth, Seed
from husai.errors import InputError

BLOCK_ROWS = 1024
"""Rows drawn from one generator. Changing it changes every data set."""

# Spawn keys keep the dictionary's randomness apart from the data's when the seeds are equal.
_WORLD_KEY, _DATA_KEY = 0, 1
# Largest share of a latent's variance that a low-rank copula may take (arXiv 2602.14687, code).
_MAX_SHARED_VARIANCE = 0.99

Floats = NDArray[np.float32]
Codes = sp.csr_array[Any, tuple[int, int]]


# ---------------------------------------------------------------------------------------------
# What a world is made of
# ---------------------------------------------------------------------------------------------


class RandomDictionary(Config):
    """Rows drawn from N(0, I) and normalised (Song et al., arXiv 2505.20254)."""

    kind: Literal["random"] = "random"


class NearOrthogonalDictionary(Config):
    """Rows spread out: orthonormal when n_features ≤ d_in, else optimised to low coherence.

    The objective is Σ_{i≠j} |d_i · d_j|^exponent on the unit sphere, minimised by Adam. Exponent
    2 is the frame potential (Benedetto & Fickus 2003) and the orthogonalisation of SynthSAEBench
    (arXiv 2602.14687); its cost is n·d², so that it serves very wide worlds. Larger exponents
    press on the largest cosines and come nearer to an equiangular tight frame, at cost n²·d.
    """

    kind: Literal["near_orthogonal"] = "near_orthogonal"
    exponent: int = Field(8, ge=2, le=16, multiple_of=2, description="power of the cosines")
    n_steps: Count = Field(300, description="optimiser steps")
    learning_rate: float = Field(0.01, gt=0, description="Adam's step size")


class CircularDictionary(Config):
    """Two-dimensional features: circles in planes, then ordinary lines.

    The first rows belong to ``n_planes`` planes. With ``n_phases`` unset a plane has two rows, an
    orthonormal basis, and fires at a phase uniform on the circle: its codes are r·cos φ and
    r·sin φ, signed. With ``n_phases`` set a plane has that many rows, evenly spaced on the circle,
    and one of them fires. All other rows are lines.
    """

    kind: Literal["circular"] = "circular"
    n_planes: Latents = Field(description="planes in the dictionary")
    n_phases: Latents | None = Field(
        None, ge=3, description="points on each circle; unset = uniform"
    )
    orthogonal: bool = Field(False, description="planes and lines mutually orthogonal")


class HierarchicalDictionary(Config):
    """A child's direction leans on its parent's: d = α·parent + √(1−α²)·fresh ⊥ parent.

    The tree is the one in :class:`HierarchyConfig`.
    """

    kind: Literal["hierarchical"] = "hierarchical"
    parent_cosine: float = Field(0.5, gt=-1, lt=1, description="cosine of a child to its parent")


class CorrelatedDictionary(Config):
    """Groups of rows around a common direction, with expected cosine ``cosine`` inside a group.

    Row i belongs to group i // group_size; d = √c·centre + √(1−c)·fresh ⊥ centre.
    """

    kind: Literal["correlated"] = "correlated"
    group_size: Latents = Field(2, ge=2, description="rows in a group")
    cosine: float = Field(0.5, ge=0, lt=1, description="expected cosine inside a group")


Dictionary = Annotated[
    RandomDictionary
    | NearOrthogonalDictionary
    | CircularDictionary
    | HierarchicalDictionary
    | CorrelatedDictionary,
    Field(discriminator="kind"),
]


class LowRankCopula(Config):
    """Gaussian copula with correlation F Fᵀ + diagonal, F ~ N(0, scale²) of shape [n, rank].

    The co-occurrence of SynthSAEBench (arXiv 2602.14687).
    """

    kind: Literal["low_rank"] = "low_rank"
    rank: Latents = Field(25, description="columns of the factor")
    scale: float = Field(0.1, ge=0, description="standard deviation of the factor's entries")


class GroupCopula(Config):
    """Gaussian copula in which units of one group share latent correlation ``correlation``.

    Unit i belongs to group i // group_size.
    """

    kind: Literal["groups"] = "groups"
    group_size: Latents = Field(2, ge=2, description="units in a group")
    correlation: float = Field(0.5, ge=0, lt=1, description="correlation of the Gaussian latents")


Copula = Annotated[LowRankCopula | GroupCopula, Field(discriminator="kind")]

ExclusiveLayout = Literal["strided", "contiguous"]


class UniformKFiring(Config):
    """Exactly k units a row, drawn uniformly without replacement."""

    kind: Literal["uniform_k"] = "uniform_k"
    k: Latents = Field(description="units that fire in a row")


class ZipfKFiring(Config):
    """Exactly k units a row, drawn one after another without replacement, odds ∝ rank^−exponent."""

    kind: Literal["zipf_k"] = "zipf_k"
    k: Latents = Field(description="units that fire in a row")
    exponent: float = Field(1.2, ge=0, description="Zipf exponent")


class BernoulliFiring(Config):
    """Units fire with one probability, independently unless told otherwise."""

    kind: Literal["bernoulli"] = "bernoulli"
    probability: float = Field(gt=0, le=1, description="chance that a unit fires in a row")
    copula: Copula | None = Field(None, description="co-occurrence; the rates stay as asked")
    exclusive_group_size: Latents | None = Field(
        None, ge=2, description="units of a group never fire together; the rates stay as asked"
    )
    exclusive_layout: ExclusiveLayout = Field(
        "strided",
        description="strided: unit i in group i mod n_groups, so that the commonest units are in "
        "different groups; contiguous: unit i in group i // exclusive_group_size, as in correlated "
        "dictionaries and group copulas",
    )


class ZipfFiring(Config):
    """Unit of rank r fires with a probability that falls from p_max to p_min as r^−exponent.

    p_r = p_min + (p_max − p_min)·(r^−a − n^−a)/(1 − n^−a), the law of SynthSAEBench
    (arXiv 2602.14687). Unit 0 has rank 1.
    """

    kind: Literal["zipf"] = "zipf"
    exponent: float = Field(0.5, gt=0, description="Zipf exponent a")
    p_max: float = Field(0.4, gt=0, le=1, description="probability of the commonest unit")
    p_min: float = Field(5e-4, gt=0, le=1, description="probability of the rarest unit")
    copula: Copula | None = Field(None, description="co-occurrence; the rates stay as asked")
    exclusive_group_size: Latents | None = Field(
        None, ge=2, description="units of a group never fire together; the rates stay as asked"
    )
    exclusive_layout: ExclusiveLayout = Field(
        "strided",
        description="strided: unit i in group i mod n_groups, so that the commonest units are in "
        "different groups; contiguous: unit i in group i // exclusive_group_size, as in correlated "
        "dictionaries and group copulas",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ZipfFiring:
        if self.p_min > self.p_max:
            raise ValueError(f"p_min = {self.p_min} exceeds p_max = {self.p_max}")
        return self


Firing = Annotated[
    UniformKFiring | ZipfKFiring | BernoulliFiring | ZipfFiring, Field(discriminator="kind")
]


class HierarchyConfig(Config):
    """A forest: a child fires only when its parent does (SynthSAEBench, arXiv 2602.14687).

    Features are numbered breadth first: all roots, then their children, and so on; features past
    the forest are free. With ``compensate`` a child's own probability is raised to
    p_i/p_parent · (1 + Σ_siblings p_j/p_parent), capped at 1, which is the published correction:
    approximate, and short of the asked rates where siblings crowd their parent.
    """

    n_roots: Latents = Field(description="trees")
    branching: Latents = Field(4, ge=2, description="children of a node")
    depth: int = Field(3, ge=1, le=24, description="levels below the roots")
    mutually_exclusive: bool = Field(True, description="at most one child of a node fires")
    compensate: bool = Field(True, description="raise children's probabilities for the tree")
    scale_by_parent: bool = Field(True, description="child × parent's value / parent's mean")

    @property
    def n_nodes(self) -> int:
        """Features in the forest."""
        return self.n_roots * sum(self.branching**level for level in range(self.depth + 1))

    def levels(self) -> list[tuple[int, int]]:
        """First and past-the-last feature of every level, roots first."""
        bounds, start, width = [], 0, self.n_roots
        for _ in range(self.depth + 1):
            bounds.append((start, start + width))
            start, width = start + width, width * self.branching
        return bounds


class HalfNormalMagnitude(Config):
    """|N(0, scale²)| (Song et al., arXiv 2505.20254)."""

    kind: Literal["half_normal"] = "half_normal"
    scale: float = Field(1.0, gt=0, description="standard deviation before folding")


class ConstantMagnitude(Config):
    """The same value whenever a unit fires."""

    kind: Literal["constant"] = "constant"
    value: float = Field(1.0, gt=0, description="the value")


class UniformMagnitude(Config):
    """Uniform on (low, high]."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, description="lower end")
    high: float = Field(1.0, gt=0, description="upper end")

    @model_validator(mode="after")
    def _ordered(self) -> UniformMagnitude:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        return self


class LogNormalMagnitude(Config):
    """exp(N(mu, sigma²))."""

    kind: Literal["lognormal"] = "lognormal"
    mu: float = Field(0.0, description="mean of the logarithm")
    sigma: float = Field(0.5, gt=0, description="standard deviation of the logarithm")


class RectifiedNormalMagnitude(Config):
    """max(0, N(μ_i, σ_i²)): μ_i linear in the unit's rank, σ_i a folded normal of its own.

    The magnitudes of SynthSAEBench (arXiv 2602.14687).
    """

    kind: Literal["rectified_normal"] = "rectified_normal"
    mean_first: float = Field(5.0, gt=0, description="mean of the first unit")
    mean_last: float = Field(4.0, gt=0, description="mean of the last unit")
    std_mean: float = Field(0.5, ge=0, description="σ_i = |N(std_mean, std_std²)|")
    std_std: float = Field(0.5, ge=0, description="σ_i = |N(std_mean, std_std²)|")


Magnitude = Annotated[
    HalfNormalMagnitude
    | ConstantMagnitude
    | UniformMagnitude
    | LogNormalMagnitude
    | RectifiedNormalMagnitude,
    Field(discriminator="kind"),
]


class PlantedConfig(Config):
    """A planted world and the seeds of its dictionary and data."""

    n_features: Latents = Field(description="rows of the dictionary")
    d_in: ModelWidth = Field(description="dimension of the activations")
    dictionary: Dictionary = RandomDictionary()
    firing: Firing
    hierarchy: HierarchyConfig | None = Field(None, description="a forest over the features")
    magnitude: Magnitude = HalfNormalMagnitude()
    noise_std: float = Field(0.0, ge=0, description="isotropic Gaussian noise, a coordinate")
    bias_norm: float = Field(0.0, ge=0, description="norm of the constant offset")
    dictionary_seed: Seed = Field(0, description="seed of the world")
    data_seed: Seed = Field(0, description="seed of the rows, unless sample() is given one")

    @property
    def n_units(self) -> int:
        """Things that fire as one: a plane of a circular dictionary, otherwise a feature."""
        if isinstance(self.dictionary, CircularDictionary):
            return self.n_features - self.dictionary.n_planes * (self._plane_rows() - 1)
        return self.n_features

    def _plane_rows(self) -> int:
        assert isinstance(self.dictionary, CircularDictionary)
        return self.dictionary.n_phases or 2

    @model_validator(mode="after")
    def _fits_together(self) -> PlantedConfig:
        dictionary, firing, hierarchy = self.dictionary, self.firing, self.hierarchy
        if isinstance(dictionary, CircularDictionary):
            if self.d_in < 2:
                raise ValueError(f"d_in = {self.d_in}: a circular dictionary needs at least 2")
            plane_rows = dictionary.n_planes * self._plane_rows()
            if plane_rows > self.n_features:
                raise ValueError(
                    f"n_features = {self.n_features} is fewer than the {plane_rows} rows of "
                    f"dictionary.n_planes = {dictionary.n_planes} planes"
                )
            dimensions = 2 * dictionary.n_planes + self.n_features - plane_rows
            if dictionary.orthogonal and dimensions > self.d_in:
                raise ValueError(
                    f"dictionary.orthogonal needs {dimensions} dimensions, d_in = {self.d_in}"
                )
        if isinstance(dictionary, HierarchicalDictionary) and hierarchy is None:
            raise ValueError("dictionary.kind = 'hierarchical' needs a hierarchy")
        if hierarchy is not None:
            if hierarchy.n_nodes > self.n_features:
                raise ValueError(
                    f"hierarchy has {hierarchy.n_nodes} nodes, n_features = {self.n_features}"
                )
            if isinstance(firing, UniformKFiring | ZipfKFiring):
                raise ValueError(
                    f"firing.kind = '{firing.kind}' fixes how many units fire, which a hierarchy "
                    "cannot keep; use 'bernoulli' or 'zipf'"
                )
            if isinstance(dictionary, CircularDictionary):
                raise ValueError("hierarchy and dictionary.kind = 'circular' exclude each other")
        if isinstance(firing, UniformKFiring | ZipfKFiring) and firing.k > self.n_units:
            raise ValueError(f"firing.k = {firing.k} exceeds the {self.n_units} units")
        if isinstance(firing, BernoulliFiring | ZipfFiring) and firing.exclusive_group_size:
            if firing.copula is not None or hierarchy is not None:
                raise ValueError(
                    "firing.exclusive_group_size cannot be combined with a copula or a hierarchy"
                )
            totals = np.bincount(
                _exclusive_groups(
                    self.n_units, firing.exclusive_group_size, firing.exclusive_layout
                ),
                weights=_marginals(firing, self.n_units),
            )
            if totals.max() > 1 + 1e-12:
                raise ValueError(
                    f"firing: the probabilities of exclusive group {int(totals.argmax())} sum to "
                    f"{totals.max():.3g}, more than 1; lower them or exclusive_group_size"
                )
        return self


# ---------------------------------------------------------------------------------------------
# The world and its rows
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PlantedData:
    """A planted world: the true dictionary, and rows drawn from it on demand.

    Attributes
    ----------
    config
        What the world was made from.
    dictionary
        The true features, unit rows, float32 ``[n_features, d_in]``.
    bias
        Constant offset of every row, float32 ``[d_in]``.
    planes
        Orthonormal bases of the planes of a circular dictionary, float32 ``[n_planes, 2, d_in]``;
        ``n_planes = 0`` for the others.
    plane_of_feature
        Plane that a feature lies in, −1 for a line, int64 ``[n_features]``.
    parent
        Parent of a feature in the hierarchy, −1 for roots and free features, int64
        ``[n_features]``.
    requested_rates
        Chance that a feature fires in a row as asked for, float64 ``[n_features]``. None for
        ``zipf_k``, whose inclusion probabilities have no closed form. A hierarchy may fall short
        of it, see :class:`HierarchyConfig`; :meth:`firing_rates` measures.
    """

    config: PlantedConfig
    dictionary: Floats
    bias: Floats
    planes: Floats
    plane_of_feature: NDArray[np.int64]
    parent: NDArray[np.int64]
    requested_rates: NDArray[np.float64] | None
    _law: _Law = field(repr=False)

    def sample(
        self, n_rows: int, seed: int | None = None, *, start: int = 0
    ) -> tuple[Floats, Codes]:
        """Rows ``start … start + n_rows`` of the endless data set of a seed, held in memory.

        Parameters
        ----------
        n_rows
            Rows to draw.
        seed
            Seed of the data; ``config.data_seed`` by default.
        start
            First row, so that for example training and evaluation rows of one seed are disjoint.

        Returns
        -------
        rows
            Activations, float32 ``[n_rows, d_in]``.
        codes
            True coefficients, sparse float32 ``[n_rows, n_features]``;
            ``rows = codes @ dictionary + bias + noise``.

        Raises
        ------
        InputError
            ``n_rows`` below 1, or ``seed`` or ``start`` below 0.
        """
        if n_rows < 1:
            raise InputError(f"n_rows = {n_rows}: at least one row must be drawn")
        pieces = list(self.stream(n_rows, batch_size=n_rows, seed=seed, start=start))
        return pieces[0]

    def stream(
        self, n_rows: int, *, batch_size: int, seed: int | None = None, start: int = 0
    ) -> Iterator[tuple[Floats, Codes]]:
        """The rows of :meth:`sample` in batches, without ever holding more than a batch.

        Parameters
        ----------
        n_rows, seed, start
            As in :meth:`sample`.
        batch_size
            Rows a batch; the last may be shorter. It does not change the rows.

        Yields
        ------
        rows, codes
            As in :meth:`sample`, ``batch_size`` rows at a time.

        Raises
        ------
        InputError
            A count that is not positive, or a negative ``seed`` or ``start``.
        """
        seed = self.config.data_seed if seed is None else seed
        for name, value, least in (
            ("n_rows", n_rows, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("start", start, 0),
        ):
            if value < least:
                raise InputError(f"{name} = {value}: must be at least {least}")
        return self._batches(n_rows, batch_size, seed, start)

    def _batches(
        self, n_rows: int, batch_size: int, seed: int, start: int
    ) -> Iterator[tuple[Floats, Codes]]:
        held: list[tuple[Floats, Codes]] = []
        n_held, at, stop = 0, start, start + n_rows
        while at < stop:
            block = at // BLOCK_ROWS
            rows, codes = self._block(seed, block)
            first, last = at - block * BLOCK_ROWS, min(stop - block * BLOCK_ROWS, BLOCK_ROWS)
            while first < last:
                take = min(last - first, batch_size - n_held)
                held.append((rows[first : first + take], codes[first : first + take]))
                first, n_held, at = first + take, n_held + take, at + take
                if n_held == batch_size or at == stop:
                    yield _stack(held)
                    held, n_held = [], 0

    def _block(self, seed: int, block: int) -> tuple[Floats, Codes]:
        rng = _generator(seed, _DATA_KEY, block)
        codes = self._law.codes(rng)
        rows = np.asarray(codes @ self.dictionary, dtype=np.float32)
        rows += self.bias
        if self.config.noise_std:
            noise = rng.standard_normal(rows.shape, dtype=np.float32)
            rows += np.float32(self.config.noise_std) * noise
        return rows, codes

    def firing_rates(self, n_rows: int, seed: int | None = None) -> NDArray[np.float64]:
        """Share of the first ``n_rows`` rows in which each feature fires, ``[n_features]``."""
        counts = np.zeros(self.config.n_features, dtype=np.int64)
        for _, codes in self.stream(n_rows, batch_size=BLOCK_ROWS, seed=seed):
            counts += np.bincount(codes.indices, minlength=len(counts))
        return counts / n_rows


def planted_dictionary(config: PlantedConfig) -> PlantedData:
    """Make a planted world.

    Parameters
    ----------
    config
        The world: dictionary, firing law, magnitudes, noise, bias and seeds.

    Returns
    -------
    PlantedData
        The true dictionary and a source of rows.
    """
    rng = _generator(config.dictionary_seed, _WORLD_KEY, 0)
    dictionary, planes = _make_dictionary(config, rng)
    bias = np.zeros(config.d_in)
    if config.bias_norm:
        bias = config.bias_norm * _unit(rng.standard_normal((1, config.d_in)))[0]
    plane_of_feature = np.full(config.n_features, -1, dtype=np.int64)
    if isinstance(config.dictionary, CircularDictionary):
        per_plane = config._plane_rows()
        n_planes = config.dictionary.n_planes
        plane_of_feature[: n_planes * per_plane] = np.repeat(np.arange(n_planes), per_plane)
    parent = np.full(config.n_features, -1, dtype=np.int64)
    if config.hierarchy is not None:
        for (above, _), (start, stop) in pairwise(config.hierarchy.levels()):
            parent[start:stop] = above + np.arange(stop - start) // config.hierarchy.branching
    return PlantedData(
        config=config,
        dictionary=dictionary.astype(np.float32),
        bias=bias.astype(np.float32),
        planes=planes.astype(np.float32),
        plane_of_feature=plane_of_feature,
        parent=parent,
        requested_rates=_feature_rates(config),
        _law=_Law(config, rng),
    )


# ---------------------------------------------------------------------------------------------
# Named worlds
# ---------------------------------------------------------------------------------------------


def song_world(n_features: int = 16, d_in: int = 8, k: int = 3, **fields: Any) -> PlantedConfig:
    """The synthetic world of Song et al. (arXiv 2505.20254): Gaussian rows, uniform k, |N(0,1)|.

    Parameters
    ----------
    n_features, d_in, k
        Size; the defaults are the paper's matched regime.
    **fields
        Further fields of :class:`PlantedConfig`, for example seeds.
    """
    firing = UniformKFiring(k=k)
    return PlantedConfig(n_features=n_features, d_in=d_in, firing=firing, **fields)


def osae_world(**fields: Any) -> PlantedConfig:
    """The toy of ordered SAEs (arXiv 2512.02194): d = 80, K = 100, 5 of them a row by Zipf 1.2."""
    firing = ZipfKFiring(k=5, exponent=1.2)
    return PlantedConfig(n_features=100, d_in=80, firing=firing, **fields)


def synth_sae_bench_world(
    n_features: int = 16_384, d_in: int = 768, **fields: Any
) -> PlantedConfig:
    """The SynthSAEBench-16k world, or the same world scaled down.

    Definition from the released code of arXiv 2602.14687 (repository
    ``decoderesearch/synth-sae-bench-experiments``, ``create_synth_bench_16k_model.py``): Zipf
    0.5 from 0.4 to 5e-4, 128 trees of branching 4 and depth 3 with exclusive children, rank-25
    copula of scale 0.1, means 5 → 4, spreads |N(0.5, 0.5²)|, bias of norm 0.5, frame potential
    minimised for 100 steps at 3e-4. The law is theirs; the draw is not, since their generator is
    another.

    Parameters
    ----------
    n_features, d_in
        Size. One tree for every 128 features, as in the original; at least one.
    **fields
        Further fields of :class:`PlantedConfig`, for example seeds.
    """
    return PlantedConfig(
        n_features=n_features,
        d_in=d_in,
        dictionary=NearOrthogonalDictionary(exponent=2, n_steps=100, learning_rate=3e-4),
        firing=ZipfFiring(exponent=0.5, p_max=0.4, p_min=5e-4, copula=LowRankCopula()),
        hierarchy=HierarchyConfig(n_roots=max(1, n_features // 128)),
        magnitude=RectifiedNormalMagnitude(),
        bias_norm=0.5,
        **fields,
    )


# ---------------------------------------------------------------------------------------------
# Dictionaries
# ---------------------------------------------------------------------------------------------


def welch_bound(n_features: int, d_in: int) -> float:
    """Least coherence, max_{i≠j} |d_i · d_j|, that n unit rows in d dimensions can have.

    √((n − d)/(d(n − 1))) for n > d, else 0 (Welch 1974).
    """
    if n_features <= d_in:
        return 0.0
    return float(np.sqrt((n_features - d_in) / (d_in * (n_features - 1))))


def _make_dictionary(
    config: PlantedConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n, d, choice = config.n_features, config.d_in, config.dictionary
    planes = np.zeros((0, 2, d))
    if isinstance(choice, CircularDictionary):
        return _circular(config, choice, rng)
    rows = _unit(rng.standard_normal((n, d)))
    if isinstance(choice, NearOrthogonalDictionary):
        rows = np.linalg.qr(rows.T)[0].T if n <= d else _spread(rows, choice)
    elif isinstance(choice, CorrelatedDictionary):
        group = np.arange(n) // choice.group_size
        centres = _unit(rng.standard_normal((group[-1] + 1, d)))[group]
        rows = _lean(rows, centres, np.sqrt(choice.cosine))
    elif isinstance(choice, HierarchicalDictionary):
        assert config.hierarchy is not None
        for (above, _), (start, stop) in pairwise(config.hierarchy.levels()):
            parents = rows[above + np.arange(stop - start) // config.hierarchy.branching]
            rows[start:stop] = _lean(rows[start:stop], parents, choice.parent_cosine)
    return rows, planes


def _circular(
    config: PlantedConfig, choice: CircularDictionary, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    d, n_planes, per_plane = config.d_in, choice.n_planes, config._plane_rows()
    n_lines = config.n_features - n_planes * per_plane
    if choice.orthogonal:
        frame = np.linalg.qr(rng.standard_normal((d, 2 * n_planes + n_lines)))[0].T
        planes, lines = frame[: 2 * n_planes].reshape(n_planes, 2, d), frame[2 * n_planes :]
    else:
        planes = np.linalg.qr(rng.standard_normal((n_planes, d, 2)))[0].transpose(0, 2, 1)
        lines = _unit(rng.standard_normal((n_lines, d)))
    if choice.n_phases is None:
        on_planes = planes
    else:
        angle = 2 * np.pi * np.arange(per_plane) / per_plane
        on_planes = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ planes
    return np.concatenate([on_planes.reshape(-1, d), lines]), planes


def _spread(rows: NDArray[Any], choice: NearOrthogonalDictionary) -> NDArray[np.float64]:
    """Lower Σ_{i≠j} |d_i·d_j|^p by Adam on the sphere; Adam needs the gradient to a factor only."""
    n, p = len(rows), choice.exponent
    # Single precision halves the time and loses nothing: this only has to go downhill
    rows = rows.astype(np.float32)
    mean, square = np.zeros_like(rows), np.zeros_like(rows)
    block = max(1, 2**24 // n)  # rows of the Gram matrix at a time: 64 MB
    for step in range(1, choice.n_steps + 1):
        gradient = np.empty_like(rows)
        if p == 2:
            # Σ_j (d_i·d_j) d_j through the d × d frame operator, the row itself taken out
            gradient[:] = rows @ (rows.T @ rows) - rows
        else:
            for start in range(0, n, block):
                cosine = rows[start : start + block] @ rows.T
                cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = 0.0
                gradient[start : start + block] = _odd_power(cosine, p - 1) @ rows
        # Only the part along the sphere vanishes at the optimum
        gradient -= np.sum(gradient * rows, axis=1, keepdims=True) * rows
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = (mean / (1 - 0.9**step)) / (
            np.sqrt(square / (1 - 0.999**step)) + np.float32(1e-30)
        )
        rows = _unit(rows - choice.learning_rate * update)
    return _unit(rows.astype(np.float64))


def _odd_power(x: NDArray[Any], power: int) -> NDArray[Any]:
    """x**power by multiplication: ten times the speed of ``**`` with such an exponent."""
    square, result = x * x, x.copy()
    for _ in range(power // 2):
        result *= square
    return result


def _lean(
    fresh: NDArray[np.float64], towards: NDArray[np.float64], cosine: float
) -> NDArray[np.float64]:
    """Unit rows at the given cosine to unit rows ``towards``, otherwise in direction ``fresh``."""
    across = fresh - np.sum(fresh * towards, axis=1, keepdims=True) * towards
    norm = np.linalg.norm(across, axis=1, keepdims=True)
    if (norm < 1e-8).any():
        raise InputError(
            f"d_in = {fresh.shape[1]}: too few dimensions for rows that lean on others"
        )
    return cosine * towards + np.sqrt(1 - cosine**2) * across / norm


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------
# Firing
# ---------------------------------------------------------------------------------------------


def _marginals(firing: Firing, n_units: int) -> NDArray[np.float64] | None:
    """Requested probability of every unit; None where there is no closed form."""
    if isinstance(firing, UniformKFiring):
        return np.full(n_units, firing.k / n_units)
    if isinstance(firing, BernoulliFiring):
        return np.full(n_units, firing.probability)
    if isinstance(firing, ZipfFiring):
        if n_units == 1:
            return np.array([firing.p_max])
        weight = np.arange(1, n_units + 1) ** -firing.exponent
        share = (weight - weight[-1]) / (1 - weight[-1])
        return firing.p_min + (firing.p_max - firing.p_min) * share
    return None


def _exclusive_groups(n_units: int, group_size: int, layout: ExclusiveLayout) -> NDArray[np.int64]:
    """Group of every unit, int64 ``[n_units]``; see ``exclusive_layout`` of the firing laws."""
    units = np.arange(n_units)
    return units // group_size if layout == "contiguous" else units % -(-n_units // group_size)


def _feature_rates(config: PlantedConfig) -> NDArray[np.float64] | None:
    rates = _marginals(config.firing, config.n_units)
    if rates is None or not isinstance(config.dictionary, CircularDictionary):
        return rates
    n_planes, per_plane = config.dictionary.n_planes, config._plane_rows()
    share = 1.0 if config.dictionary.n_phases is None else 1 / per_plane
    return np.concatenate([np.repeat(rates[:n_planes] * share, per_plane), rates[n_planes:]])


class _Law:
    """Draws a block of codes. Holds what the world's seed fixed: copula, spreads, probabilities."""

    def __init__(self, config: PlantedConfig, rng: np.random.Generator) -> None:
        self.config = config
        n = config.n_units
        firing, hierarchy, magnitude = config.firing, config.hierarchy, config.magnitude
        self.probability = _marginals(firing, n)
        if hierarchy is not None and hierarchy.compensate:
            assert self.probability is not None
            self.probability = _compensated(self.probability, hierarchy)
        copula = firing.copula if isinstance(firing, BernoulliFiring | ZipfFiring) else None
        self.factor: Floats | None = None
        if isinstance(copula, LowRankCopula):
            self.factor = _low_rank_factor(copula, n, rng)
        if copula is not None:
            assert self.probability is not None
            self.cut = -ndtri(self.probability).astype(np.float32)
        self.mean: Floats | None = None
        self.std: Floats | None = None
        if isinstance(magnitude, RectifiedNormalMagnitude):
            self.mean = np.linspace(magnitude.mean_first, magnitude.mean_last, n, dtype=np.float32)
            spread = rng.normal(magnitude.std_mean, magnitude.std_std, n)
            self.std = np.abs(spread).astype(np.float32)

    def codes(self, rng: np.random.Generator) -> Codes:
        """Draw the codes of :data:`BLOCK_ROWS` rows."""
        row, unit = self._fired(rng)
        value = self._magnitudes(rng, unit)
        if self.config.hierarchy is not None:
            row, unit, value = self._grow(rng, row, unit, value)
        row, feature, value = self._to_features(rng, row, unit, value)
        keep = value != 0
        row, feature, value = row[keep], feature[keep], value[keep]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=BLOCK_ROWS))])
        shape = (BLOCK_ROWS, self.config.n_features)
        return sp.csr_array((value, feature, bounds), shape=shape)

    def _fired(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and unit of everything that fires, sorted by row, then unit."""
        firing, n = self.config.firing, self.config.n_units
        if isinstance(firing, UniformKFiring | ZipfKFiring):
            score = rng.random((BLOCK_ROWS, n))
            if isinstance(firing, ZipfKFiring):
                # Smallest Exp(1)/weight first is successive sampling without replacement
                # (Efraimidis & Spirakis 2006)
                score = -np.log1p(-score) * np.arange(1, n + 1) ** firing.exponent
            chosen = np.argpartition(score, firing.k - 1, axis=1)[:, : firing.k]
            row = np.repeat(np.arange(BLOCK_ROWS), firing.k)
            return row, np.sort(chosen, axis=1).ravel()
        assert self.probability is not None
        if firing.exclusive_group_size:
            return self._exclusive(rng, firing.exclusive_group_size, firing.exclusive_layout)
        if firing.copula is not None:
            fired = self._latents(rng, firing.copula) > self.cut
        else:
            fired = rng.random((BLOCK_ROWS, n)) < self.probability
        row, unit = np.nonzero(fired)
        return row, unit

    def _latents(self, rng: np.random.Generator, copula: Copula) -> Floats:
        """Standard normal latents of the copula, float32 [BLOCK_ROWS, n_units]."""
        n = self.config.n_units
        latent = rng.standard_normal((BLOCK_ROWS, n), dtype=np.float32)
        if isinstance(copula, LowRankCopula):
            assert self.factor is not None
            shared = rng.standard_normal((BLOCK_ROWS, copula.rank), dtype=np.float32)
            latent *= np.sqrt(1 - np.sum(self.factor**2, axis=1))
            latent += shared @ self.factor.T
            return latent
        group = np.arange(n) // copula.group_size
        shared = rng.standard_normal((BLOCK_ROWS, int(group[-1]) + 1), dtype=np.float32)
        latent *= np.float32(np.sqrt(1 - copula.correlation))
        latent += np.float32(np.sqrt(copula.correlation)) * shared[:, group]
        return latent

    def _exclusive(
        self, rng: np.random.Generator, group_size: int, layout: ExclusiveLayout
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One uniform draw a group decides which of its units fires, if any: rates stay exact."""
        assert self.probability is not None
        n = self.config.n_units
        n_groups = -(-n // group_size)
        # [member, group] with absent members at probability 0; the unit of each place
        places = np.arange(group_size * n_groups)
        units = (
            places.reshape(n_groups, group_size).T
            if layout == "contiguous"
            else places.reshape(group_size, n_groups)
        )
        probability = np.zeros(len(places))
        probability[:n] = self.probability
        table = probability[units]
        ends = np.cumsum(table, axis=0)
        draw = rng.random((BLOCK_ROWS, 1, n_groups))
        inside = (draw < ends) & (draw >= ends - table)
        fired = np.zeros((BLOCK_ROWS, len(places)), dtype=bool)
        fired[:, units.ravel()] = inside.reshape(BLOCK_ROWS, -1)
        row, unit = np.nonzero(fired[:, :n])
        return row, unit

    def _magnitudes(self, rng: np.random.Generator, unit: NDArray[np.int64]) -> Floats:
        choice, size = self.config.magnitude, len(unit)
        if isinstance(choice, ConstantMagnitude):
            return np.full(size, choice.value, dtype=np.float32)
        if isinstance(choice, UniformMagnitude):
            # 1 − [0, 1) keeps the upper end in and an exact zero out
            return (choice.high - (choice.high - choice.low) * rng.random(size)).astype(np.float32)
        normal = rng.standard_normal(size, dtype=np.float32)
        if isinstance(choice, HalfNormalMagnitude):
            return np.float32(choice.scale) * np.abs(normal)
        if isinstance(choice, LogNormalMagnitude):
            return np.exp(np.float32(choice.mu) + np.float32(choice.sigma) * normal)
        assert self.mean is not None
        assert self.std is not None
        return np.maximum(self.mean[unit] + self.std[unit] * normal, 0)

    def _grow(
        self,
        rng: np.random.Generator,
        row: NDArray[np.int64],
        unit: NDArray[np.int64],
        value: Floats,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """Apply the forest from the roots down: gate by the parent, keep one child, scale."""
        forest = self.config.hierarchy
        assert forest is not None
        dense = np.zeros((BLOCK_ROWS, self.config.n_features), dtype=np.float32)
        dense[row, unit] = value
        for (above, below), (start, stop) in pairwise(forest.levels()):
            # Breadth-first numbering makes the children of a level one contiguous slice
            parents = dense[:, above:below, None]
            children = dense[:, start:stop].reshape(BLOCK_ROWS, below - above, forest.branching)
            children = children * (parents > 0)
            if forest.mutually_exclusive:
                _keep_one(children, rng)
            if forest.scale_by_parent:
                children *= parents / self._typical(above, below)[:, None]
            dense[:, start:stop] = children.reshape(BLOCK_ROWS, stop - start)
        row, unit = np.nonzero(dense)
        return row, unit, dense[row, unit]

    def _typical(self, start: int, stop: int) -> Floats:
        """Mean magnitude of units start … stop, the scale against which a parent is strong."""
        if self.mean is not None:
            return self.mean[start:stop]
        choice = self.config.magnitude
        if isinstance(choice, ConstantMagnitude):
            mean = choice.value
        elif isinstance(choice, UniformMagnitude):
            mean = (choice.low + choice.high) / 2
        elif isinstance(choice, LogNormalMagnitude):
            mean = float(np.exp(choice.mu + choice.sigma**2 / 2))
        else:
            assert isinstance(choice, HalfNormalMagnitude)
            mean = choice.scale * float(np.sqrt(2 / np.pi))
        return np.full(stop - start, mean, dtype=np.float32)

    def _to_features(
        self,
        rng: np.random.Generator,
        row: NDArray[np.int64],
        unit: NDArray[np.int64],
        value: Floats,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """From units to rows of the dictionary; they differ for planes only."""
        choice = self.config.dictionary
        if not isinstance(choice, CircularDictionary):
            return row, unit, value
        per_plane = self.config._plane_rows()
        on_plane = unit < choice.n_planes
        feature = np.where(on_plane, unit * per_plane, unit + choice.n_planes * (per_plane - 1))
        if choice.n_phases is not None:
            feature[on_plane] += rng.integers(per_plane, size=int(on_plane.sum()))
            return row, feature, value
        angle = 2 * np.pi * rng.random(len(unit))
        copies = 1 + on_plane.astype(np.int64)
        first = np.cumsum(copies) - copies
        row, feature = np.repeat(row, copies), np.repeat(feature, copies)
        spread = np.repeat(value, copies)
        spread[first[on_plane]] = (value * np.cos(angle))[on_plane]
        spread[first[on_plane] + 1] = (value * np.sin(angle))[on_plane]
        feature[first[on_plane] + 1] += 1
        return row, feature, spread


def _compensated(probability: NDArray[np.float64], forest: HierarchyConfig) -> NDArray[np.float64]:
    """The published correction of children's probabilities, see :class:`HierarchyConfig`."""
    raised = probability.copy()
    for (above, below), (start, stop) in pairwise(forest.levels()):
        ratio = probability[start:stop].reshape(-1, forest.branching)
        ratio = ratio / probability[above:below, None]
        crowd = ratio.sum(axis=1, keepdims=True) - ratio if forest.mutually_exclusive else 0.0
        raised[start:stop] = np.minimum(ratio * (1 + crowd), 1).ravel()
    return raised


def _low_rank_factor(copula: LowRankCopula, n: int, rng: np.random.Generator) -> Floats:
    factor = copula.scale * rng.standard_normal((n, copula.rank))
    largest = float(np.sum(factor**2, axis=1).max())
    if largest > _MAX_SHARED_VARIANCE:
        factor *= np.sqrt(_MAX_SHARED_VARIANCE / largest)
    return factor.astype(np.float32)


def _keep_one(children: Floats, rng: np.random.Generator) -> None:
    """Where several children of a node fire, keep one of them at random, in place."""
    row, node = np.nonzero((children > 0).sum(axis=2) > 1)
    crowded = children[row, node]
    score = np.where(crowded > 0, rng.random(crowded.shape), -1.0)
    winner = score.argmax(axis=1)[:, None]
    kept = np.zeros_like(crowded)
    np.put_along_axis(kept, winner, np.take_along_axis(crowded, winner, axis=1), axis=1)
    children[row, node] = kept


# ---------------------------------------------------------------------------------------------
# Small tools
# ---------------------------------------------------------------------------------------------


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _stack(pieces: list[tuple[Floats, Codes]]) -> tuple[Floats, Codes]:
    if len(pieces) == 1:
        return pieces[0]
    rows = np.concatenate([rows for rows, _ in pieces])
    return rows, sp.csr_array(sp.vstack([codes for _, codes in pieces], format="csr"))
