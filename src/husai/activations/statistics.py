"""Statistics of activations: norms, variance and effective rank."""

from __future__ import annotations

import numpy as np
import pandas as pd

from husai.activations.rows import SPLITS, Activations, load_all
from husai.storage import TensorFiles


def activation_statistics(activations: Activations) -> dict[str, str | int | float]:
    r"""Describe activations: shape, norms, effective rank, dimensions for 99 % of the variance.

    The effective rank is that of Roy & Vetterli (2007), :math:`\exp(H(p))` with ``H`` the
    Shannon entropy in nats of the covariance's eigenvalues normalised to sum to one. The
    participation ratio :math:`(\sum \lambda)^2 / \sum \lambda^2` is given too, because papers
    use one or the other.

    Returns
    -------
    dict
        ``hook_name``, ``position``, ``model`` (trained or untrained), rows in all and by split,
        ``d_in``, ``mean_norm`` (mean Euclidean norm of the rows), ``norm_of_mean``,
        ``total_variance`` (sum over dimensions),
        ``entropy_rank``, ``participation_ratio``, ``dims_99_variance``.
    """
    # float64: the smallest eigenvalues are many orders below the largest
    values = activations.values.numpy().astype(np.float64)
    spectrum = np.linalg.eigvalsh(np.cov(values, rowvar=False, bias=True))
    variances = np.clip(np.atleast_1d(spectrum)[::-1], 0.0, None)
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
        "model": "trained" if activations.trained else "untrained",
        "rows": len(values),
        **counts,
        "d_in": values.shape[1],
        "mean_norm": float(np.linalg.norm(values, axis=1).mean()),
        "norm_of_mean": float(np.linalg.norm(values.mean(axis=0))),
        "total_variance": total,
        "entropy_rank": float(np.exp(entropy)) if total > 0 else 0.0,
        "participation_ratio": float(1.0 / (shares**2).sum()) if total > 0 else 0.0,
        "dims_99_variance": int(np.searchsorted(np.cumsum(shares), 0.99) + 1) if total > 0 else 0,
    }


def statistics_table(activations: TensorFiles) -> pd.DataFrame:
    """Make a table of :func:`activation_statistics`, with a row for each hook and position."""
    return pd.DataFrame([activation_statistics(rows) for rows in load_all(activations)])
