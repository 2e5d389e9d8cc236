"""What a set of activations looks like: norms, variance and effective rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from husai.activations.rows import SPLITS, Activations


def principal_directions(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """Give the principal directions of the rows and the variance along each.

    Parameters
    ----------
    values
        ``[n_rows, d]``.

    Returns
    -------
    variances
        ``[d]``, descending, the eigenvalues of the covariance (divided by ``n_rows``).
    directions
        ``[d, d]``, row i belongs to ``variances[i]``; orthonormal.
    mean
        ``[d]``.
    """
    # float64: the smallest eigenvalues are many orders below the largest
    rows = np.asarray(values, dtype=np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    return np.clip(variances[::-1], 0.0, None), vectors.T[::-1].copy(), mean


def activation_statistics(activations: Activations) -> dict[str, str | int | float]:
    r"""Describe activations: shape, norms, effective rank, dimensions for 99 % of the variance.

    The effective rank is that of Roy & Vetterli (2007), :math:`\exp(H(p))` with ``H`` the
    Shannon entropy in nats of the covariance's eigenvalues normalised to sum to one. The
    participation ratio :math:`(\sum \lambda)^2 / \sum \lambda^2` stands beside it, since
    publications use either.

    Returns
    -------
    dict
        ``hook_name``, ``position``, rows in all and by split, ``d_in``, ``mean_norm`` (mean
        Euclidean norm of the rows), ``norm_of_mean``, ``total_variance`` (sum over dimensions),
        ``effective_rank_entropy``, ``participation_ratio``, ``dims_99_variance``.
    """
    values = activations.values.numpy()
    variances, _, mean = principal_directions(values)
    total = float(variances.sum())
    shares = variances / total if total > 0 else np.zeros_like(variances)
    positive = shares[shares > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    counts = {
        f"rows_{name}": int((activations.split == index).sum()) for index, name in enumerate(SPLITS)
    }
    return {
        "hook_name": activations.hook_name,
        "position": activations.position,
        "rows": len(values),
        **counts,
        "d_in": values.shape[1],
        "mean_norm": float(np.linalg.norm(values.astype(np.float64), axis=1).mean()),
        "norm_of_mean": float(np.linalg.norm(mean)),
        "total_variance": total,
        "effective_rank_entropy": float(np.exp(entropy)) if total > 0 else 0.0,
        "participation_ratio": float(1.0 / (shares**2).sum()) if total > 0 else 0.0,
        "dims_99_variance": int(np.searchsorted(np.cumsum(shares), 0.99) + 1) if total > 0 else 0,
    }
