"""Geometry of one dictionary (neighbours, dimensions, clusters) and sparsity of its codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from husai.consistency.scores.codes import Codes, code_blocks, code_moments
from husai.errors import InputError
from husai.matching.match import unit_rows

# Numbers in a block of cosines (64 MB of float64), and the widest dictionary for which the n × n
# distances are made (512 MB).
_BLOCK_NUMBERS = 8_000_000
MAX_CLUSTERED = 8192


def neighbours(
    dictionary: ArrayLike, n_neighbours: int = 5, *, signed: bool = False
) -> pd.DataFrame:
    """Find each feature's nearest other features in the same dictionary.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature per row.
    n_neighbours
        How many neighbours; fewer when the dictionary is smaller.
    signed
        Use the cosine itself instead of its absolute value.

    Returns
    -------
    pandas.DataFrame
        ``feature``, ``rank`` (1 is nearest), ``neighbour``, ``cosine`` (with its sign).

    Raises
    ------
    InputError
        When the dictionary is not a finite matrix of at least two rows, or ``n_neighbours`` is
        below 1.
    """
    rows = unit_rows(dictionary)
    n = len(rows)
    if n < 2 or n_neighbours < 1:
        raise InputError(
            f"dictionary: {n} features, n_neighbours {n_neighbours}; give at least 2 and 1"
        )
    m = min(n_neighbours, n - 1)
    found, cosines = np.empty((n, m), dtype=np.int64), np.empty((n, m))
    step = max(1, _BLOCK_NUMBERS // n)
    for start in range(0, n, step):
        cosine = rows[start : start + step] @ rows.T
        at = np.arange(len(cosine))
        similarity = cosine.copy() if signed else np.abs(cosine)
        similarity[at, at + start] = -np.inf
        best = np.argpartition(-similarity, m - 1, axis=1)[:, :m]
        order = np.argsort(-np.take_along_axis(similarity, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        found[start : start + len(cosine)] = best
        cosines[start : start + len(cosine)] = np.take_along_axis(cosine, best, 1)
    return pd.DataFrame(
        {
            "feature": np.repeat(np.arange(n), m),
            "rank": np.tile(np.arange(1, m + 1), n),
            "neighbour": found.ravel(),
            "cosine": cosines.ravel(),
        }
    )


@dataclass(frozen=True)
class EffectiveDimension:
    """How many dimensions the directions of a dictionary fill.

    Attributes
    ----------
    participation_ratio
        ``(Σλ)² / Σλ²`` of the eigenvalues λ.
    entropy_rank
        ``exp(H)``, H the Shannon entropy in nats of ``λ / Σλ`` (Roy & Vetterli 2007).
    dims_99
        Fewest directions that hold 99 % of ``Σλ``.
    centred
        Whether λ are eigenvalues of the covariance of the unit rows, or (False) of their second
        moment.
    eigenvalues
        ``[d]`` descending.
    """

    participation_ratio: float
    entropy_rank: float
    dims_99: int
    centred: bool
    eigenvalues: NDArray[np.float64]


def effective_dimension(dictionary: ArrayLike, *, centred: bool = True) -> EffectiveDimension:
    """Measure how many dimensions a dictionary's unit rows fill; zero rows are left out.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature per row.
    centred
        Whether to subtract the mean of the rows first.

    Raises
    ------
    InputError
        When the dictionary is not a finite matrix, or its rows do not vary.
    """
    rows = unit_rows(dictionary)
    rows = rows[rows.any(axis=1)]
    if centred and len(rows):
        rows = rows - rows.mean(axis=0)
    values = np.clip(np.linalg.eigvalsh(rows.T @ rows)[::-1], 0.0, None)
    total = float(values.sum())
    if not len(rows) or total <= 1e-12 * max(1, len(rows)):
        raise InputError("dictionary: its rows do not vary; give different directions")
    shares = values / total
    positive = shares[shares > 0]
    return EffectiveDimension(
        participation_ratio=float(1 / np.square(shares).sum()),
        entropy_rank=float(np.exp(-(positive * np.log(positive)).sum())),
        dims_99=min(int(np.searchsorted(np.cumsum(shares), 0.99 - 1e-12)) + 1, len(values)),
        centred=centred,
        eigenvalues=values / len(rows),
    )


@dataclass(frozen=True)
class FeatureClusters:
    """Hierarchical clusters of a dictionary's features.

    Attributes
    ----------
    labels
        ``[n]`` cluster of each feature, 0 for the largest.
    order
        ``[n]`` features in the tree's leaf order, for a heat map in which clusters are blocks.
    linkage
        scipy's linkage matrix.
    table
        A row per cluster: ``cluster``, ``size``, ``mean_similarity`` within it.
    """

    labels: NDArray[np.int64]
    order: NDArray[np.int64]
    linkage: NDArray[np.float64]
    table: pd.DataFrame


def cluster_features(
    dictionary: ArrayLike, *, similarity: float = 0.7, signed: bool = False
) -> FeatureClusters:
    """Cluster features by direction: average linkage, cut at a similarity.

    Hierarchical clustering needs no number of clusters, uses cosine distances directly, and has no
    random start, so that clusters of two seeds differ only by their features. Average linkage, and
    not single linkage, which would join all features along a circle into one chain.

    Parameters
    ----------
    dictionary
        ``[n, d]``, one feature per row, n at most 8,192 (memory for n² distances).
    similarity
        Two clusters with a mean similarity below this are not joined.
    signed
        Use the cosine itself instead of its absolute value.

    Raises
    ------
    InputError
        When the dictionary is not a finite matrix of 2 to 8,192 rows.
    """
    rows = unit_rows(dictionary)
    n = len(rows)
    if not 2 <= n <= MAX_CLUSTERED:
        raise InputError(f"dictionary: {n} features; clustering takes 2 to {MAX_CLUSTERED}")
    cosine = rows @ rows.T
    close = cosine if signed else np.abs(cosine)
    distance = np.clip(1 - (close + close.T) / 2, 0.0, None)
    np.fill_diagonal(distance, 0.0)
    linkage = hierarchy.linkage(squareform(distance, checks=False), method="average")
    raw = hierarchy.fcluster(linkage, t=1 - similarity, criterion="distance")
    names, sizes = np.unique(raw, return_counts=True)
    by_size = np.argsort(-sizes, kind="stable")
    rename = np.empty(names.max() + 1, dtype=np.int64)
    rename[names[by_size]] = np.arange(len(names))
    labels = rename[raw]
    table = []
    for cluster in range(len(names)):
        own = np.flatnonzero(labels == cluster)
        block = close[np.ix_(own, own)]
        pairs = len(own) * (len(own) - 1)
        table.append(
            {
                "cluster": cluster,
                "size": len(own),
                "mean_similarity": float((block.sum() - np.trace(block)) / pairs) if pairs else 1.0,
            }
        )
    order = hierarchy.leaves_list(linkage).astype(np.int64)
    return FeatureClusters(labels, order, linkage, pd.DataFrame(table))


@dataclass(frozen=True)
class SparsityPattern:
    """How an SAE's latents fire.

    Attributes
    ----------
    latents
        A row per latent: ``latent``, ``firing_rate``, ``mean_active`` (mean over rows on which it
        fires), ``max_active``; 0 for latents that never fire.
    l0_counts
        ``[d_sae + 1]``: how many rows have 0, 1, 2, ... latents that fire.
    histogram, edges
        ``[bins]`` number of activations by size, and ``[bins + 1]`` edges of the bins, evenly
        spaced in the logarithm.
    n_rows, n_dead
        Number of rows, and of latents that never fire on them.
    """

    latents: pd.DataFrame
    l0_counts: NDArray[np.int64]
    histogram: NDArray[np.int64]
    edges: NDArray[np.float64]
    n_rows: int
    n_dead: int


def sparsity_pattern(codes: Codes, *, n_bins: int = 60) -> SparsityPattern:
    """Describe densities, L0 and activation sizes of one SAE's codes, in two passes of blocks.

    Parameters
    ----------
    codes
        Codes ``[rows, d_sae]``: array, sparse, or a function that returns row blocks.
    n_bins
        Number of bins of activation size.

    Raises
    ------
    InputError
        When there is no row or a block is not a finite matrix.
    """
    moments = code_moments(codes)
    n = len(moments.fires)
    l0 = np.zeros(n + 1, dtype=np.int64)
    largest = np.zeros(n)
    low, high = np.inf, 0.0
    for block in code_blocks(codes):
        sizes = np.abs(block.data[block.data != 0])
        if len(sizes):
            low, high = min(low, float(sizes.min())), max(high, float(sizes.max()))
            largest = np.maximum(largest, np.asarray(abs(block).max(axis=0).todense()).ravel())
        nonzero = np.add.reduceat(np.r_[block.data != 0, False], block.indptr[:-1])
        nonzero[np.diff(block.indptr) == 0] = 0  # reduceat gives an empty row the next row's value
        l0 += np.bincount(nonzero, minlength=n + 1)
    edges = np.geomspace(max(low, high * 1e-8), high, n_bins + 1) if high else np.arange(2.0)
    if high:
        edges[-1] = high
    histogram = np.zeros(len(edges) - 1, dtype=np.int64)
    for block in code_blocks(codes):
        sizes = np.abs(block.data[block.data != 0])
        histogram += np.histogram(np.clip(sizes, edges[0], edges[-1]), edges)[0]
    fires = np.maximum(moments.fires, 1)
    latents = pd.DataFrame(
        {
            "latent": np.arange(n),
            "firing_rate": moments.firing_rate,
            "mean_active": moments.total / fires,
            "max_active": largest,
        }
    )
    dead = int((moments.fires == 0).sum())
    return SparsityPattern(latents, l0, histogram, edges, moments.n_rows, dead)


@dataclass(frozen=True)
class Coactivation:
    """Which latents of one SAE fire together.

    Attributes
    ----------
    latents
        ``[m]`` the latents compared: those that fire, the most frequent first.
    jaccard
        ``[m, m]`` rows on which both fire over rows on which at least one does.
    log_ratio
        ``[m, m]`` log2 of the observed over the expected rate of firing together (pointwise
        mutual information in bits); 0 where they never fire together.
    together
        ``[m, m]`` number of rows on which both fire.
    """

    latents: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    log_ratio: NDArray[np.float64]
    together: NDArray[np.int64]


def coactivation(codes: Codes, *, max_latents: int = 2048) -> Coactivation:
    """Count which latents fire on the same rows.

    Parameters
    ----------
    codes
        Codes ``[rows, d_sae]``.
    max_latents
        Compare only this many latents, the most frequent (memory: their square).

    Raises
    ------
    InputError
        When no latent fires.
    """
    moments = code_moments(codes)
    order = np.argsort(-moments.fires, kind="stable")
    chosen = order[: min(max_latents, int((moments.fires > 0).sum()))]
    if not len(chosen):
        raise InputError("codes: no latent fires on these rows")
    together: Any = np.zeros((len(chosen), len(chosen)), dtype=np.int64)
    for block in code_blocks(codes):
        part = block[:, chosen]
        fires = sparse.csr_array(
            ((part.data != 0).astype(np.int64), part.indices, part.indptr), part.shape
        )
        together += (fires.T @ fires).toarray()
    own = moments.fires[chosen]
    either = own[:, None] + own[None, :] - together
    expected = np.outer(own, own) / moments.n_rows
    log_ratio = np.zeros(together.shape)
    np.log2(together / expected, out=log_ratio, where=together > 0)
    return Coactivation(chosen, together / either, log_ratio, together)
