"""Parameters of a planted world: dictionary, firing, hierarchy, magnitudes, sizes and seeds."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from husai.config import Config, Count, Latents, ModelWidth, Seed


class RandomDictionary(Config):
    """Rows drawn from N(0, I) and normalised (Song et al., arXiv 2505.20254)."""

    kind: Literal["random"] = "random"


class NearOrthogonalDictionary(Config):
    """Rows far from each other: orthonormal if n_features ≤ d_in, else with low coherence.

    The objective is Σ_{i≠j} |d_i · d_j|^exponent on the unit sphere, minimised by Adam. Exponent
    2 is the frame potential (Benedetto & Fickus 2003) and the orthogonalisation of SynthSAEBench
    (arXiv 2602.14687); its cost is n·d², so it can be used for very wide worlds. Larger exponents
    lower the largest cosines more, and come nearer to an equiangular tight frame, at cost n²·d.
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
    """A child's direction has a fixed cosine α to its parent's: d = α·parent + √(1−α²)·fresh.

    ``fresh`` is a random unit vector orthogonal to the parent.

    The tree is the one in :class:`HierarchyConfig`.
    """

    kind: Literal["hierarchical"] = "hierarchical"
    parent_cosine: float = Field(0.5, gt=-1, lt=1, description="cosine of a child to its parent")


class CorrelatedDictionary(Config):
    """Groups of rows around a common direction, with expected cosine ``cosine`` inside a group.

    Row i belongs to group i // group_size; d = √c·centre + √(1−c)·fresh, with ``fresh`` orthogonal
    to ``centre``.
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
    """Gaussian copula in which units of one group have the latent correlation ``correlation``.

    Unit i belongs to group i // group_size.
    """

    kind: Literal["groups"] = "groups"
    group_size: Latents = Field(2, ge=2, description="units in a group")
    correlation: float = Field(0.5, ge=0, lt=1, description="correlation of the Gaussian latents")


Copula = Annotated[LowRankCopula | GroupCopula, Field(discriminator="kind")]

ExclusiveLayout = Literal["strided", "contiguous"]


class UniformKFiring(Config):
    """Exactly k units per row, drawn uniformly without replacement."""

    kind: Literal["uniform_k"] = "uniform_k"
    k: Latents = Field(description="units that fire in a row")


class ZipfKFiring(Config):
    """Exactly k units per row, drawn without replacement with odds ∝ rank^−exponent."""

    kind: Literal["zipf_k"] = "zipf_k"
    k: Latents = Field(description="units that fire in a row")
    exponent: float = Field(1.2, ge=0, description="Zipf exponent")


class _RateFiring(Config):
    """Units that each fire at a rate of their own; which units fire together can be chosen."""

    copula: Copula | None = Field(None, description="co-occurrence; it does not change the rates")
    exclusive_group_size: Latents | None = Field(
        None, ge=2, description="units of a group never fire together; the rates do not change"
    )
    exclusive_layout: ExclusiveLayout = Field(
        "strided",
        description="strided: unit i is in group i mod n_groups, so that the most frequent units "
        "are in different groups; contiguous: unit i is in group i // exclusive_group_size, as in "
        "correlated dictionaries and group copulas",
    )


class BernoulliFiring(_RateFiring):
    """All units fire with the same probability, independently by default."""

    kind: Literal["bernoulli"] = "bernoulli"
    probability: float = Field(gt=0, le=1, description="chance that a unit fires in a row")


class ZipfFiring(_RateFiring):
    """The unit of rank r fires with a probability that falls from p_max to p_min as r^−exponent.

    p_r = p_min + (p_max − p_min)·(r^−a − n^−a)/(1 − n^−a), the law of SynthSAEBench
    (arXiv 2602.14687). Unit 0 has rank 1.
    """

    kind: Literal["zipf"] = "zipf"
    exponent: float = Field(0.5, gt=0, description="Zipf exponent a")
    p_max: float = Field(0.4, gt=0, le=1, description="probability of the most frequent unit")
    p_min: float = Field(5e-4, gt=0, le=1, description="probability of the rarest unit")

    @model_validator(mode="after")
    def _ordered(self) -> ZipfFiring:
        if self.p_min > self.p_max:
            raise ValueError(f"p_min = {self.p_min} exceeds p_max = {self.p_max}; lower it")
        return self


Firing = Annotated[
    UniformKFiring | ZipfKFiring | BernoulliFiring | ZipfFiring, Field(discriminator="kind")
]


class HierarchyConfig(Config):
    """A forest: a child fires only if its parent does (SynthSAEBench, arXiv 2602.14687).

    Features are numbered breadth first: all roots, then their children, and so on; the features
    after the forest are free. With ``compensate`` a child's own probability is raised to
    p_i/p_parent · (1 + Σ_siblings p_j/p_parent), at most 1. This is the published correction. It is
    approximate: the rates are too low if the siblings together are about as likely as the parent.
    """

    n_roots: Latents = Field(description="trees")
    branching: Latents = Field(4, ge=2, description="children of a node")
    depth: int = Field(3, ge=1, le=24, description="levels below the roots")
    mutually_exclusive: bool = Field(True, description="at most one child of a node fires")
    compensate: bool = Field(
        True, description="raise children's probabilities, because they need their parent to fire"
    )
    scale_by_parent: bool = Field(
        True, description="multiply a child's value by its parent's value / the parent's mean"
    )

    @property
    def n_nodes(self) -> int:
        """Features in the forest."""
        return self.n_roots * sum(self.branching**level for level in range(self.depth + 1))

    def levels(self) -> list[tuple[int, int]]:
        """First feature of every level and the first after it, roots first."""
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
            raise ValueError(f"low = {self.low} is not below high = {self.high}; lower it")
        return self


class LogNormalMagnitude(Config):
    """exp(N(mu, sigma²))."""

    kind: Literal["lognormal"] = "lognormal"
    mu: float = Field(0.0, description="mean of the logarithm")
    sigma: float = Field(0.5, gt=0, description="standard deviation of the logarithm")


class RectifiedNormalMagnitude(Config):
    """max(0, N(μ_i, σ_i²)): μ_i linear in the unit's rank, σ_i drawn from a folded normal.

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
    noise_std: float = Field(
        0.0, ge=0, description="standard deviation of the Gaussian noise in each coordinate"
    )
    bias_norm: float = Field(0.0, ge=0, description="norm of the constant offset")
    dictionary_seed: Seed = Field(0, description="seed of the world")
    data_seed: Seed = Field(0, description="seed of the rows, unless sample() gets another one")

    @property
    def n_units(self) -> int:
        """Number of units: planes of a circular dictionary fire as one, other features alone."""
        if isinstance(self.dictionary, CircularDictionary):
            return self.n_features - self.dictionary.n_planes * (self.plane_rows() - 1)
        return self.n_features

    def plane_rows(self) -> int:
        assert isinstance(self.dictionary, CircularDictionary)
        return self.dictionary.n_phases or 2

    @model_validator(mode="after")
    def _fits_together(self) -> PlantedConfig:
        dictionary, firing, hierarchy = self.dictionary, self.firing, self.hierarchy
        if isinstance(dictionary, CircularDictionary):
            if self.d_in < 2:
                raise ValueError(f"d_in = {self.d_in}: a circular dictionary needs at least 2")
            plane_rows = dictionary.n_planes * self.plane_rows()
            if plane_rows > self.n_features:
                raise ValueError(
                    f"n_features = {self.n_features} is less than the {plane_rows} rows of "
                    f"dictionary.n_planes = {dictionary.n_planes} planes; raise it"
                )
            dimensions = 2 * dictionary.n_planes + self.n_features - plane_rows
            if dictionary.orthogonal and dimensions > self.d_in:
                raise ValueError(
                    f"dictionary.orthogonal needs {dimensions} dimensions, d_in = {self.d_in}; "
                    "raise it"
                )
        if isinstance(dictionary, HierarchicalDictionary) and hierarchy is None:
            raise ValueError("dictionary.kind = 'hierarchical' needs a hierarchy; set hierarchy")
        if hierarchy is not None:
            if hierarchy.n_nodes > self.n_features:
                raise ValueError(
                    f"hierarchy has {hierarchy.n_nodes} nodes, n_features = {self.n_features}; "
                    "raise it"
                )
            if isinstance(firing, UniformKFiring | ZipfKFiring):
                raise ValueError(
                    f"firing.kind = '{firing.kind}' fixes how many units fire, which a hierarchy "
                    "cannot keep; use 'bernoulli' or 'zipf'"
                )
            if isinstance(dictionary, CircularDictionary):
                raise ValueError(
                    "a hierarchy cannot be combined with dictionary.kind = 'circular'; remove one"
                )
        if isinstance(firing, UniformKFiring | ZipfKFiring) and firing.k > self.n_units:
            raise ValueError(f"firing.k = {firing.k} exceeds the {self.n_units} units; lower it")
        if isinstance(firing, BernoulliFiring | ZipfFiring) and firing.exclusive_group_size:
            if firing.copula is not None or hierarchy is not None:
                raise ValueError(
                    "firing.exclusive_group_size cannot be combined with a copula or a hierarchy"
                )
            totals = np.bincount(
                exclusive_groups(
                    self.n_units, firing.exclusive_group_size, firing.exclusive_layout
                ),
                weights=marginals(firing, self.n_units),
            )
            if totals.max() > 1 + 1e-12:
                raise ValueError(
                    f"firing: the probabilities of exclusive group {int(totals.argmax())} sum to "
                    f"{totals.max():.3g}, more than 1; lower them or exclusive_group_size"
                )
        return self


def marginals(firing: Firing, n_units: int) -> NDArray[np.float64] | None:
    """Requested probability of every unit; None if there is no closed form."""
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


def exclusive_groups(n_units: int, group_size: int, layout: ExclusiveLayout) -> NDArray[np.int64]:
    """Group of every unit, int64 ``[n_units]``; see ``exclusive_layout`` of the firing laws."""
    units = np.arange(n_units)
    return units // group_size if layout == "contiguous" else units % -(-n_units // group_size)
