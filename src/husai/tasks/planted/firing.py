"""How planted features fire: which of them, how strongly, and which together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import ndtri

from husai.tasks.planted.config import (
    BernoulliFiring,
    CircularDictionary,
    ConstantMagnitude,
    Copula,
    ExclusiveLayout,
    HalfNormalMagnitude,
    HierarchyConfig,
    LogNormalMagnitude,
    LowRankCopula,
    PlantedConfig,
    RectifiedNormalMagnitude,
    UniformKFiring,
    UniformMagnitude,
    ZipfFiring,
    ZipfKFiring,
    marginals,
)

BLOCK_ROWS = 1024
"""Number of rows drawn from one generator. Changing it changes every data set."""

# Largest share of a latent's variance that a low-rank copula may take (arXiv 2602.14687, code).
_MAX_SHARED_VARIANCE = 0.99

Floats = NDArray[np.float32]
Codes = sp.csr_array[Any, tuple[int, int]]


def feature_rates(config: PlantedConfig) -> NDArray[np.float64] | None:
    """Probability of each feature to fire ``[n_features]``; None without a closed form."""
    rates = marginals(config.firing, config.n_units)
    if rates is None or not isinstance(config.dictionary, CircularDictionary):
        return rates
    n_planes, per_plane = config.dictionary.n_planes, config.plane_rows()
    share = 1.0 if config.dictionary.n_phases is None else 1 / per_plane
    return np.concatenate([np.repeat(rates[:n_planes] * share, per_plane), rates[n_planes:]])


class CodeLaw:
    """Draws blocks of codes, from the copula, spreads and probabilities of one world."""

    def __init__(self, config: PlantedConfig, rng: np.random.Generator) -> None:
        self.config = config
        n = config.n_units
        firing, hierarchy, magnitude = config.firing, config.hierarchy, config.magnitude
        self.probability = marginals(firing, n)
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
        """Draw which units fire on which rows: row and unit, sorted by row, then unit."""
        firing, n = self.config.firing, self.config.n_units
        if isinstance(firing, UniformKFiring | ZipfKFiring):
            score = rng.random((BLOCK_ROWS, n))
            if isinstance(firing, ZipfKFiring):
                # Taking the smallest Exp(1)/weight first samples without replacement
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
        """Draw the standard normal latents of the copula, float32 [BLOCK_ROWS, n_units]."""
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
        """Draw at most one unit per group: one uniform number decides, so the rates are exact."""
        assert self.probability is not None
        n = self.config.n_units
        n_groups = -(-n // group_size)
        # [member, group]: probabilities (0 for missing members), and the unit of each place
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
            # 1 − [0, 1) includes the upper end and excludes an exact zero
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
        """Apply the forest from the roots down: need the parent, keep one child, scale."""
        forest = self.config.hierarchy
        assert forest is not None
        dense = np.zeros((BLOCK_ROWS, self.config.n_features), dtype=np.float32)
        dense[row, unit] = value
        for (above, below), (start, stop) in pairwise(forest.levels()):
            # Because of the breadth-first numbering, the children of a level are one slice
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
        """Mean magnitude of units start … stop, by which a parent's value is divided."""
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
        """Turn units into rows of the dictionary; only for planes do they differ."""
        choice = self.config.dictionary
        if not isinstance(choice, CircularDictionary):
            return row, unit, value
        per_plane = self.config.plane_rows()
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
    """If several children of a node fire, keep one of them at random, in place."""
    row, node = np.nonzero((children > 0).sum(axis=2) > 1)
    crowded = children[row, node]
    score = np.where(crowded > 0, rng.random(crowded.shape), -1.0)
    winner = score.argmax(axis=1)[:, None]
    kept = np.zeros_like(crowded)
    np.put_along_axis(kept, winner, np.take_along_axis(crowded, winner, axis=1), axis=1)
    children[row, node] = kept
