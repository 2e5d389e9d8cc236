"""Similarity of two spaces whose features are not matched: subspace overlap, CKA and SVCCA."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg

from husai.consistency.scores.rows import unit_pair
from husai.errors import InputError
from husai.matching.match import unit_rows

# The largest number of principal directions that SVCCA compares.
SVCCA_DIRECTIONS = 512


def dictionary_directions(dictionary: ArrayLike, rank: int) -> NDArray[np.float64]:
    """Top right singular directions ``[rank, d]`` of a dictionary's centred unit rows.

    Raises
    ------
    InputError
        When the rank is below 1 or above what the centred rows span.
    """
    rows = unit_rows(dictionary)
    rows = rows - rows.mean(axis=0)
    limit = min(len(rows) - 1, rows.shape[1])
    if not 1 <= rank <= limit:
        raise InputError(
            f"rank: {rank}; {len(rows)} centred rows of {rows.shape[1]} numbers have at most "
            f"{limit} directions"
        )
    # of the d × d product, since a dictionary has many more rows than dimensions
    _, directions = np.linalg.eigh(rows.T @ rows)
    return np.asarray(directions[:, ::-1][:, :rank].T)


def subspace_overlap(A: ArrayLike, B: ArrayLike, rank: int) -> float:
    """Overlap ``||U_A U_Bᵀ||_F² / r`` of the top-r subspaces of two centred dictionaries.

    1 when they agree, ``r / d`` by chance: always show the two together (arXiv 2606.12138).

    Parameters
    ----------
    A, B
        ``[n_a, d]`` and ``[n_b, d]``; rows are features, normalised and centred here.
    rank
        Dimensions ``r`` of the subspaces.

    Raises
    ------
    InputError
        When the rank does not fit, an input is not a finite matrix, or the dimensions differ.
    """
    rows_a, rows_b = unit_pair(A, B)
    product = dictionary_directions(rows_a, rank) @ dictionary_directions(rows_b, rank).T
    return float(np.square(product).sum() / rank)


def cka_from_products(
    xy: NDArray[np.float64], xx: NDArray[np.float64], yy: NDArray[np.float64]
) -> float | None:
    """Linear CKA ``||XᵀY||_F² / (||XᵀX||_F ||YᵀY||_F)`` from centred products.

    Kornblith et al. 2019, arXiv 1905.00414, eq. 5. None when one side does not vary.
    """
    scale = float(np.linalg.norm(xx) * np.linalg.norm(yy))
    return float(np.square(xy).sum() / scale) if scale > 0 else None


def svcca_from_products(
    xy: NDArray[np.float64],
    xx: NDArray[np.float64],
    yy: NDArray[np.float64],
    *,
    n_rows: int,
    variance: float = 0.99,
) -> float | None:
    """Mean canonical correlation between the top principal components of two sides.

    Each side keeps the components that hold ``variance`` of its variance, at most
    ``SVCCA_DIRECTIONS`` (512) of them; the mean is over ``min(r_x, r_y)`` canonical correlations
    (Raghu et al. 2017, arXiv 1706.05806).

    Parameters
    ----------
    xy, xx, yy
        Centred products ``XᵀY [n_x, n_y]``, ``XᵀX`` and ``YᵀY``.
    n_rows
        Number of samples that were summed.
    variance
        Share of variance to keep, in (0, 1].

    Returns
    -------
    float or None
        None when one side does not vary, or ``n_rows <= r_x + r_y``.
    """
    return svcca_from_whitening(xy, whitening(xx, variance), whitening(yy, variance), n_rows)


def svcca_from_whitening(
    xy: NDArray[np.float64],
    whiten_x: NDArray[np.float64] | None,
    whiten_y: NDArray[np.float64] | None,
    n_rows: int,
) -> float | None:
    """Compute :func:`svcca_from_products` from the whitening of each side, if it is known."""
    if whiten_x is None or whiten_y is None or n_rows <= len(whiten_x) + len(whiten_y):
        return None
    product = whiten_x @ xy @ whiten_y.T
    if len(product) > product.shape[1]:
        product = product.T
    # Eigenvalues of the smaller square are several times faster than singular values; squaring
    # loses 1e-8 of a correlation, which does not matter for a mean correlation.
    squared = np.linalg.eigvalsh(product @ product.T)
    return float(np.sqrt(np.clip(squared, 0.0, 1.0)).mean())


def whitening(
    product: NDArray[np.float64], variance: float, max_directions: int = SVCCA_DIRECTIONS
) -> NDArray[np.float64] | None:
    """Whitening ``[r, n]`` of the top components of ``XᵀX [n, n]``; None when it is zero.

    The top components are the fewest that hold the share ``variance`` of the variance, but at
    most ``max_directions``.
    """
    if not 0 < variance <= 1:
        raise InputError(f"variance: {variance}; give a share above 0 and at most 1")
    n = len(product)
    total = float(np.trace(product))
    if total <= 0:
        return None
    # the top components only: a wide SAE's whole spectrum takes three times as long
    first = max(0, n - max_directions)
    if first:
        values, vectors = linalg.eigh(product, subset_by_index=(first, n - 1))
    else:  # for all of them the divide-and-conquer solver takes two thirds of the time
        values, vectors = np.linalg.eigh(product)
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    rank = min(int(np.searchsorted(np.cumsum(values) / total, variance - 1e-12)) + 1, len(values))
    # smaller components are rounding errors, which whitening would turn into correlations
    rank = max(1, min(rank, int((values > 1e-10 * values[0]).sum())))
    return np.asarray(vectors[:, :rank].T / np.sqrt(values[:rank])[:, None])
