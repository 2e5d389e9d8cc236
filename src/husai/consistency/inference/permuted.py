"""The permuted null, on which claims rest: features permuted coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError
from husai.matching.match import unit_rows

Rows = NDArray[np.float64]


def pooled(dictionaries: Sequence[ArrayLike]) -> Rows:
    """All rows of the dictionaries at unit norm, ``[N, d]``, without rows of zeros."""
    if not len(dictionaries):
        raise InputError("dictionaries: none given; give the seeds' decoders")
    rows = [unit_rows(one, f"dictionary {i}") for i, one in enumerate(dictionaries)]
    if len({one.shape[1] for one in rows}) > 1:
        raise InputError(
            f"dictionaries: they have {sorted({one.shape[1] for one in rows})} dimensions; "
            "give dictionaries of one space"
        )
    pool = np.concatenate(rows)
    pool = pool[pool.any(axis=1)]
    if not len(pool):
        raise InputError("dictionaries: every row is zero; there is no direction to permute")
    return pool


class PermutedPool:
    """The features of all seeds in their principal axes, from which permuted ones are drawn.

    Parameters
    ----------
    decoders
        ``[n_s, d]``; rows of zeros are left out.
    encoders
        ``[n_s, d]`` of the same features, or None. They are permuted **with** their decoders, by
        the same permutations and signs in the decoders' axes, so that in each coordinate encoder
        and decoder still belong to one trained feature.

    Attributes
    ----------
    basis
        ``[r, d]`` axes; the whole space when there are encoders, since these may lie outside the
        span of the decoders.

    Raises
    ------
    InputError
        When shapes do not fit or every row is zero.
    """

    def __init__(
        self, decoders: Sequence[ArrayLike], encoders: Sequence[ArrayLike] | None = None
    ) -> None:
        pool = pooled(decoders)
        # all d axes; with d rows or more the thin decomposition has them without a [N, N] matrix
        all_axes = encoders is not None and len(pool) < pool.shape[1]
        _, singular, axes = np.linalg.svd(pool, full_matrices=all_axes)
        rank = int((singular > 1e-9 * singular[0]).sum())
        self.basis: Rows = axes if encoders is not None else axes[:rank]
        sides = [pool]
        if encoders is not None:
            if [np.shape(one) for one in decoders] != [np.shape(one) for one in encoders]:
                raise InputError(
                    "encoders: their shapes differ from the decoders'; give one feature per row"
                )
            live = np.concatenate([np.asarray(one).any(axis=1) for one in decoders])
            rows = np.concatenate([unit_rows(one, "encoder") for one in encoders])
            sides.append(rows[live])
        coordinates = [rows @ self.basis.T for rows in sides]
        self._sides = np.stack([(rows * _axis_weights(rows)).T for rows in coordinates])

    def draw(
        self, rng: np.random.Generator, sizes: Sequence[int]
    ) -> list[tuple[Rows, Rows | None]]:
        """Draw decoder and encoder ``[n, d]`` (or None) of unit rows for each ``n`` in sizes."""
        mixed = _permute_axes(self._sides, rng, sum(sizes))
        cuts = np.cumsum(sizes)[:-1]
        decoders, *encoders = (np.split(unit_rows(side.T @ self.basis), cuts) for side in mixed)
        return list(zip(decoders, encoders[0] if encoders else [None] * len(sizes), strict=True))


def _permute_axes(coordinates: Rows, rng: np.random.Generator, n: int) -> Rows:
    """Draw ``[sides, r, n]`` from ``[sides, r, N]``: each axis permuted by itself, random signs."""
    _, r, total = coordinates.shape
    axes = np.arange(r)[:, None]
    blocks = []
    while n > 0:
        # an axis is a row here, contiguous in memory: several times faster than columns
        order = rng.permuted(np.broadcast_to(np.arange(total), (r, total)), axis=1)[:, :n]
        signs = 2.0 * rng.integers(0, 2, size=(order.shape[1], r)) - 1.0
        mixed = np.stack([side[axes, order] for side in coordinates])
        mixed *= signs.T
        blocks.append(mixed)
        n -= order.shape[1]
    return np.concatenate(blocks, axis=2)


def _axis_weights(coordinates: Rows, n_rows: int = 4096, iterations: int = 8) -> Rows:
    """``[r]``: weights with which permuted, renormalised rows keep the spectrum.

    Found by iteration: each axis is weighted up by the share of energy that it lacks. Two or
    three rounds are enough to reach the noise of ``n_rows`` permuted rows.
    """
    rows = _permute_axes(coordinates.T[None], np.random.default_rng(0), n_rows)[0].T
    wanted = np.square(coordinates).mean(axis=0)
    wanted = wanted / wanted.sum()
    weights = np.ones(coordinates.shape[1])
    for _ in range(iterations):
        energy = np.square(rows * weights)
        got = (energy / np.maximum(energy.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
        weights *= np.sqrt(wanted / np.maximum(got, 1e-300))
    return weights
