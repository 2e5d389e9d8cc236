"""Codes (the activations of an SAE's latents on given rows) and their sums over the rows.

Codes are ``[rows, d_sae]``: an array, a scipy sparse matrix, or a function that returns an
iterable of row blocks (each an array or sparse), so that the codes of all SAEs need not be in
memory at once. Two SAEs' codes must be of the same rows in the same order and the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from husai.errors import InputError

Block: TypeAlias = "NDArray[Any] | sparse.csr_array | sparse.csc_array | sparse.coo_array"
Codes: TypeAlias = "Block | Callable[[], Iterable[Block]]"

_BLOCK_ROWS = 4096


def code_blocks(codes: Codes, name: str = "codes") -> Iterator[sparse.csr_array]:
    """Yield the rows in blocks, sparse and in float64.

    A variance over 1e5 and more rows is a small difference of large sums of squares. In float32
    the variance of latents that seldom fire would be lost.

    Raises
    ------
    InputError
        When a block is not a finite matrix, or two blocks have different widths.
    """
    width = None
    if callable(codes):
        blocks: Iterable[Block] = codes()
    else:
        given: Any = codes
        whole: Any = sparse.csr_array(given) if hasattr(given, "tocsr") else np.asarray(given)
        if whole.ndim != 2:
            raise InputError(f"{name}: shape {whole.shape}; give [rows, d_sae]")
        blocks = (whole[i : i + _BLOCK_ROWS] for i in range(0, whole.shape[0], _BLOCK_ROWS))
    for block in blocks:
        if len(block.shape) != 2:
            raise InputError(f"{name}: a block of shape {block.shape}; give [rows, d_sae]")
        matrix = sparse.csr_array(block).astype(np.float64)
        if width is not None and matrix.shape[1] != width:
            raise InputError(f"{name}: blocks of {width} and {matrix.shape[1]} latents")
        width = matrix.shape[1]
        if not np.isfinite(matrix.data).all():
            raise InputError(f"{name}: NaN or infinity among the codes")
        yield matrix


def paired_blocks(
    a: Codes, b: Codes, names: tuple[str, str] = ("codes of A", "codes of B")
) -> Iterator[tuple[sparse.csr_array, sparse.csr_array]]:
    """Yield blocks of the same rows of two SAEs, or of an SAE and the truth.

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows.
    names
        Their names in an error message.

    Raises
    ------
    InputError
        When rows or blocks do not correspond, or a block is not a finite matrix.
    """
    for one, other in zip_longest(code_blocks(a, names[0]), code_blocks(b, names[1])):
        if one is None or other is None or one.shape[0] != other.shape[0]:
            rows = [0 if block is None else block.shape[0] for block in (one, other)]
            raise InputError(
                f"{names[0]}: a block has {rows[0]} rows, the same block of {names[1]} has "
                f"{rows[1]}; encode the same activation rows, in the same order and blocks"
            )
        yield one, other


def sparse_codes(blocks: Iterable[NDArray[Any]]) -> sparse.csr_array:
    """Stack dense blocks ``[rows, d_sae]`` into one sparse float32 matrix of their non-zeros."""
    parts = [sparse.csr_array(np.asarray(block, dtype=np.float32)) for block in blocks]
    if not parts:
        raise InputError("codes: no rows; give at least one block")
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


@dataclass(frozen=True)
class CodeMoments:
    """Sums over rows of one SAE's codes, in float64.

    Attributes
    ----------
    n_rows
        Number of rows.
    total, squares
        ``[n]`` sum and sum of squares.
    fires
        ``[n]`` number of rows on which the latent is not zero.
    """

    n_rows: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    fires: NDArray[np.int64]

    @property
    def firing_rate(self) -> NDArray[np.float64]:
        """``[n]`` share of rows on which the latent is not zero."""
        return self.fires / self.n_rows

    @property
    def l0(self) -> float:
        """Mean number of latents that fire on a row."""
        return float(self.fires.sum() / self.n_rows)

    @property
    def scatter(self) -> NDArray[np.float64]:
        """``[n]`` centred sum of squares; exactly 0 for a latent that does not vary."""
        value = self.squares - self.total**2 / self.n_rows
        return np.where(value > 1e-12 * self.squares, value, 0.0)


class MomentSums:
    """Accumulate :class:`CodeMoments`."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: list[NDArray[Any]] | None = None

    def add(self, block: sparse.csr_array) -> None:
        """Add the rows of a block."""
        self.rows += block.shape[0]
        fires = sparse.csr_array((block.data != 0, block.indices, block.indptr), block.shape)
        sums = [
            np.asarray(block.sum(axis=0)).ravel(),
            np.asarray(block.power(2).sum(axis=0)).ravel(),
            np.asarray(fires.sum(axis=0, dtype=np.int64)).ravel(),
        ]
        self.sums = (
            sums if self.sums is None else [x + y for x, y in zip(self.sums, sums, strict=True)]
        )

    def moments(self, name: str) -> CodeMoments:
        """Return the sums of all blocks; ``name`` is the name of the codes in an error."""
        if self.sums is None or not self.rows:
            raise InputError(f"{name}: no rows; encode at least one activation row")
        return CodeMoments(self.rows, *self.sums)


def code_moments(codes: Codes) -> CodeMoments:
    """Sum one SAE's codes over rows.

    Raises
    ------
    InputError
        When there is no row or a block is not a finite matrix.
    """
    adder = MomentSums()
    for block in code_blocks(codes):
        adder.add(block)
    return adder.moments("codes")


@dataclass(frozen=True)
class CrossMoments:
    """Moments of two SAEs' codes and their product ``Σ_rows a bᵀ`` ``[n_a, n_b]``."""

    a: CodeMoments
    b: CodeMoments
    product: NDArray[np.float64]

    @property
    def covariance(self) -> NDArray[np.float64]:
        """``[n_a, n_b]`` centred product, not divided by the number of rows."""
        return self.product - np.outer(self.a.total, self.b.total) / self.a.n_rows

    @property
    def correlation(self) -> NDArray[np.float64]:
        """``[n_a, n_b]`` Pearson correlation; 0 where a latent does not vary."""
        scale = np.sqrt(np.outer(self.a.scatter, self.b.scatter))
        result = np.zeros_like(scale)
        np.divide(self.covariance, scale, out=result, where=scale > 0)
        return np.clip(result, -1.0, 1.0)


def cross_moments(a: Codes, b: Codes) -> CrossMoments:
    """Sum two SAEs' codes and their product over the same rows.

    Parameters
    ----------
    a, b
        Codes ``[rows, n_a]`` and ``[rows, n_b]`` of the same rows.

    Raises
    ------
    InputError
        When rows or blocks do not correspond.
    """
    adder_a, adder_b = MomentSums(), MomentSums()
    product = None
    for one, other in paired_blocks(a, b):
        adder_a.add(one)
        adder_b.add(other)
        block = (one.T @ other).toarray()
        product = block if product is None else product + block
    moments = adder_a.moments("codes of A"), adder_b.moments("codes of B")
    assert product is not None
    return CrossMoments(*moments, product)


def whole_codes(codes: Codes) -> sparse.csr_array:
    """Return all rows in one sparse float64 matrix ``[rows, d_sae]``.

    Raises
    ------
    InputError
        When there is no row or a block is not a finite matrix.
    """
    blocks = list(code_blocks(codes))
    if not blocks:
        raise InputError("codes: no rows; encode at least one activation row")
    return sparse.csr_array(sparse.vstack(blocks, format="csr"))


def shuffle_rows(codes: Codes, rng: np.random.Generator) -> sparse.csr_array:
    """Permute the rows, for the null in which two SAEs get unrelated inputs."""
    whole = whole_codes(codes)
    return sparse.csr_array(whole[rng.permutation(whole.shape[0])])
