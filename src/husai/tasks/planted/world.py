"""A planted world and its rows, which are drawn from the seeds when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from husai.errors import InputError
from husai.tasks.planted.config import CircularDictionary, PlantedConfig
from husai.tasks.planted.dictionaries import make_dictionary, unit_rows
from husai.tasks.planted.firing import BLOCK_ROWS, CodeLaw, Codes, Floats, feature_rates

# Spawn keys keep the dictionary's randomness apart from the data's when the seeds are equal.
_WORLD_KEY, _DATA_KEY = 0, 1


@dataclass(frozen=True, eq=False)
class PlantedData:
    """A planted world: the true dictionary, and rows drawn from it on demand.

    Attributes
    ----------
    config
        The parameters of the world.
    dictionary
        The true features, unit rows, float32 ``[n_features, d_in]``.
    bias
        Constant offset of every row, float32 ``[d_in]``.
    planes
        Orthonormal bases of the planes of a circular dictionary, float32 ``[n_planes, 2, d_in]``;
        ``n_planes = 0`` for the others.
    plane_of_feature
        The plane of each feature, −1 for a line, int64 ``[n_features]``.
    parent
        The parent of each feature in the hierarchy, −1 for roots and free features, int64
        ``[n_features]``.
    requested_rates
        Configured probability that a feature fires on a row, float64 ``[n_features]``. None for
        ``zipf_k``, whose inclusion probabilities have no closed form. With a hierarchy the true
        rates may be lower, see :class:`HierarchyConfig`; :meth:`firing_rates` measures them.
    """

    config: PlantedConfig
    dictionary: Floats
    bias: Floats
    planes: Floats
    plane_of_feature: NDArray[np.int64]
    parent: NDArray[np.int64]
    requested_rates: NDArray[np.float64] | None
    _law: CodeLaw = field(repr=False)

    def sample(
        self, n_rows: int, seed: int | None = None, *, start: int = 0
    ) -> tuple[Floats, Codes]:
        """Draw rows ``start … start + n_rows − 1`` of the endless data set of a seed.

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
            When ``n_rows`` is below 1, or ``seed`` or ``start`` below 0.
        """
        if n_rows < 1:
            raise InputError(f"n_rows = {n_rows}: draw at least one row")
        pieces = list(self.stream(n_rows, batch_size=n_rows, seed=seed, start=start))
        return pieces[0]

    def stream(
        self, n_rows: int, *, batch_size: int, seed: int | None = None, start: int = 0
    ) -> Iterator[tuple[Floats, Codes]]:
        """Draw the rows of :meth:`sample` in batches; never more than a batch is in memory.

        Parameters
        ----------
        n_rows, seed, start
            As in :meth:`sample`.
        batch_size
            Rows per batch; the last may be shorter. It does not change the rows.

        Yields
        ------
        rows, codes
            As in :meth:`sample`, ``batch_size`` rows at a time.

        Raises
        ------
        InputError
            When a count is not positive, or ``seed`` or ``start`` is negative.
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
    dictionary, planes = make_dictionary(config, rng)
    bias = np.zeros(config.d_in)
    if config.bias_norm:
        bias = config.bias_norm * unit_rows(rng.standard_normal((1, config.d_in)))[0]
    plane_of_feature = np.full(config.n_features, -1, dtype=np.int64)
    if isinstance(config.dictionary, CircularDictionary):
        per_plane = config.plane_rows()
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
        requested_rates=feature_rates(config),
        _law=CodeLaw(config, rng),
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def _stack(pieces: list[tuple[Floats, Codes]]) -> tuple[Floats, Codes]:
    if len(pieces) == 1:
        return pieces[0]
    rows = np.concatenate([rows for rows, _ in pieces])
    return rows, sp.csr_array(sp.vstack([codes for _, codes in pieces], format="csr"))
