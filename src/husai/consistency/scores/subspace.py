"""The subspace that the data fill, and dictionaries projected into it.

The residual stream of a grokked transformer fills about 19 of its 128 dimensions. The part of a
decoder row outside of these has no effect on the data: it remains from the initialisation and
lowers every score in the full space. So scores are given in both spaces, with their dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from husai.errors import InputError
from husai.matching.match import unit_rows


def activation_covariance(rows: ArrayLike | Iterable[ArrayLike]) -> NDArray[np.float64]:
    """Covariance ``[d, d]`` of activations.

    Parameters
    ----------
    rows
        ``[n, d]``, or an iterable of blocks of rows.

    Raises
    ------
    InputError
        When there are fewer than two rows, different widths, or numbers that are not finite.
    """
    blocks: Iterable[ArrayLike] = [rows] if isinstance(rows, np.ndarray) else rows  # type: ignore[assignment]
    count, total, product = 0, None, None
    for block in blocks:
        # float64: at 1e5 rows a float32 sum of squares loses the small eigenvalues that decide
        # how many dimensions the data fill
        x = np.asarray(block, dtype=np.float64)
        if x.ndim != 2:
            raise InputError(f"activations: a block of shape {x.shape}; give rows [n, d]")
        if not np.isfinite(x).all():
            raise InputError("activations: NaN or infinity; drop or repair those rows")
        if total is None or product is None:
            shift = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
            total, product = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        if x.shape[1] != len(total):
            raise InputError(f"activations: rows of {len(total)} and of {x.shape[1]} numbers")
        x = x - shift  # nearly centred: a large mean² would cost the variance its precision
        count += len(x)
        total += x.sum(axis=0)
        product += x.T @ x
    if total is None or product is None or count < 2:
        raise InputError(f"activations: {count} rows; a covariance needs at least two")
    covariance: NDArray[np.float64] = product / count - np.outer(total, total) / count**2
    return covariance


@dataclass(frozen=True)
class DataSpan:
    """The top principal subspace of the data.

    Attributes
    ----------
    basis
        ``[r, d]`` orthonormal rows.
    variance
        Share of the data's variance inside the subspace.
    """

    basis: NDArray[np.float64]
    variance: float

    @property
    def rank(self) -> int:
        """Dimensions of the subspace."""
        return len(self.basis)

    def project(self, dictionary: ArrayLike) -> NDArray[np.float64]:
        """Coordinates ``[n, r]`` in the subspace of the rows ``[n, d]``, first scaled to norm 1."""
        rows = unit_rows(dictionary)
        if rows.shape[1] != self.basis.shape[1]:
            raise InputError(
                f"dictionary: rows of {rows.shape[1]} numbers, data of {self.basis.shape[1]}"
            )
        return np.asarray(rows @ self.basis.T)

    def inside(self, dictionary: ArrayLike) -> NDArray[np.float64]:
        """Share ``[n]`` of each row's squared norm inside the subspace."""
        return np.square(self.project(dictionary)).sum(axis=1)


def data_span(
    covariance: ArrayLike, *, variance: float = 0.99, rank: int | None = None
) -> DataSpan:
    """Find the top principal subspace of the data.

    Parameters
    ----------
    covariance
        ``[d, d]`` covariance of the activations.
    variance
        Keep the fewest directions that hold this share of the variance.
    rank
        Keep exactly this many directions instead.

    Raises
    ------
    InputError
        When the covariance is not a finite square matrix or is zero, or the variance or rank is
        out of range.
    """
    matrix = np.asarray(covariance, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise InputError(f"covariance: shape {matrix.shape}; give a finite square matrix [d, d]")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    if values[0] <= 0:
        raise InputError("covariance: all zero; the activations do not vary")
    share = np.cumsum(values) / values.sum()
    if rank is None:
        if not 0 < variance <= 1:
            raise InputError(f"variance: {variance}; give a share above 0 and at most 1")
        rank = min(int(np.searchsorted(share, variance - 1e-12)) + 1, len(values))
    if not 1 <= rank <= len(values):
        raise InputError(f"rank: {rank}; give 1 to {len(values)}")
    return DataSpan(np.ascontiguousarray(vectors[:, :rank].T), float(share[rank - 1]))


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


@dataclass(frozen=True)
class DataMetric:
    """The activations' covariance as the metric in which encoders are compared.

    Attributes
    ----------
    root
        ``[d, d]`` the symmetric root Σ^½.
    """

    root: NDArray[np.float64]

    def place(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Move encoder rows ``E [n, d]`` into the data's metric: ``E Σ^½ [n, d]``.

        The cosine of two rows is then the correlation, over the data, of the two pre-activations.

        Raises
        ------
        InputError
            When the dimensions differ.
        """
        matrix = np.asarray(rows, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.root):
            raise InputError(
                f"W_enc: shape {matrix.shape}, covariance of {len(self.root)} dimensions; give the "
                "encoder with one feature per row (W_enc.T)"
            )
        return np.asarray(matrix @ self.root)


def data_metric(covariance: ArrayLike) -> DataMetric:
    """Make the metric of encoders from the covariance ``[d, d]`` of the activations.

    Raises
    ------
    InputError
        When the covariance is not a symmetric, positive semi-definite, non-zero matrix.
    """
    root = covariance_root(covariance)
    # the symmetric root, so that rows stay in the space of the decoder
    lengths = np.linalg.norm(root, axis=1, keepdims=True)
    return DataMetric(np.asarray(root.T @ (root / lengths)))


def encoder_in_data_metric(W_enc: ArrayLike, covariance: ArrayLike) -> NDArray[np.float64]:
    """Encoder rows in the metric of the data: ``E Σ^½ [n, d]``.

    The cosine of two rows is then the correlation over the data of the two pre-activations. Raw
    encoder rows keep their initialisation in directions that carry almost no variance, so that
    two encoders that do the same to every input can have a low cosine (shared fraction .000 with
    raw rows, .4 in this metric in the home study).

    Parameters
    ----------
    W_enc
        ``[n, d]`` encoder, **one feature per row** (``W_enc.T`` of an SAE).
    covariance
        ``[d, d]`` Σ of the activations.

    Raises
    ------
    InputError
        When the covariance is not a symmetric, positive semi-definite, non-zero matrix, or the
        dimensions differ.
    """
    return data_metric(covariance).place(W_enc)
