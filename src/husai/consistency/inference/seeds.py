"""Many seeds together: paths, trees, cycles, and one alignment of all of them.

``W`` is the symmetric matrix of pair scores, ``W[s, t] = PW-MCC(s, t)``. Matches are given for
pairs ``s < t``; the other direction is the inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import minimum_spanning_tree

from husai.consistency.inference.intervals import pair_matrix
from husai.errors import InputError
from husai.matching.match import Match, match_features

# Held-Karp keeps 2^S · S numbers and takes 2^S · S² steps: 4 MB and well under a second at 15.
EXACT_SEEDS = 15

Matches = Mapping[tuple[int, int], Match]


@dataclass(frozen=True)
class SeedPath:
    """An ordering of seeds along which consecutive scores are as high as they can be.

    Attributes
    ----------
    order
        Seeds in path order.
    mean
        Mean consecutive score along the path.
    method
        ``"exact"`` (Held-Karp) or ``"greedy"`` (nearest neighbour from every start, then 2-opt).
    greedy_order, greedy_mean
        The greedy path, found in either case.
    gap
        Exact minus greedy mean. Past ``EXACT_SEEDS``, an upper bound: the maximum spanning tree's
        mean minus the greedy path's, as a path is a spanning tree.
    pair_mean
        Plain mean over all pairs. The path's mean is at least that, by selection.
    random_order_mean, random_order_sd
        Path mean over random orders of the seeds (labels permuted): mean and sd.
    selected_mean, selected_sd
        Mean and sd of the best greedy path after the pair scores were dealt to the pairs at
        random: what selection alone makes of such numbers.
    p_value
        Share of those at least as good as the greedy path, ``(1 + #) / (1 + n)``.
    """

    order: tuple[int, ...]
    mean: float
    method: str
    greedy_order: tuple[int, ...]
    greedy_mean: float
    gap: float
    pair_mean: float
    random_order_mean: float
    random_order_sd: float
    selected_mean: float
    selected_sd: float
    p_value: float

    def __str__(self) -> str:
        """One line with the gap, the plain mean and the null."""
        bound = "" if self.method == "exact" else " at most"
        return (
            f"{self.method} path {self.mean:.4f} (greedy {self.greedy_mean:.4f}, "
            f"gap{bound} {self.gap:.4f}); plain mean of pairs {self.pair_mean:.4f}; best path of "
            f"shuffled scores {self.selected_mean:.4f} ± {self.selected_sd:.4f}, "
            f"p = {self.p_value:.3f}"
        )


def seed_path(scores: ArrayLike, *, n_null: int = 200, seed: int = 0) -> SeedPath:
    """Order the seeds so that the mean of consecutive pair scores is greatest.

    Exact by dynamic programming to 15 seeds (Held & Karp 1962), greedy with 2-opt beyond. This is
    the roadmap's "greedy travelling salesman"; it has nothing to do with ground truth.

    Parameters
    ----------
    scores
        ``[S, S]`` symmetric pair scores, S >= 2; the diagonal is ignored.
    n_null
        Random orders and shuffled score matrices behind the nulls.
    seed
        Seed of the nulls.

    Raises
    ------
    InputError
        When the matrix is unfit or holds fewer than two seeds.
    """
    W = pair_matrix(scores)
    n = len(W)
    if n < 2:
        raise InputError("scores: one seed has no path; give at least two")
    if n_null < 1:
        raise InputError(f"n_null: {n_null}; give at least 1")
    greedy = _greedy_path(W)
    greedy_mean = _path_mean(W, greedy)
    if n <= EXACT_SEEDS:
        best, method = _held_karp(W), "exact"
        gap = max(0.0, _path_mean(W, best) - greedy_mean)
    else:
        best, method = greedy, "greedy"
        gap = max(0.0, float(np.mean([w for _, _, w in spanning_tree(W)])) - greedy_mean)
    rng = np.random.default_rng(seed)
    orders = np.array([_path_mean(W, rng.permutation(n)) for _ in range(n_null)])
    upper = np.triu_indices(n, 1)
    dealt = np.empty(n_null)
    for draw in range(n_null):
        V = np.zeros_like(W)
        V[upper] = rng.permutation(W[upper])
        V += V.T
        dealt[draw] = _path_mean(V, _greedy_path(V))
    return SeedPath(
        order=tuple(int(i) for i in best),
        mean=_path_mean(W, best),
        method=method,
        greedy_order=tuple(int(i) for i in greedy),
        greedy_mean=greedy_mean,
        gap=gap,
        pair_mean=float(W[upper].mean()),
        random_order_mean=float(orders.mean()),
        random_order_sd=float(orders.std()),
        selected_mean=float(dealt.mean()),
        selected_sd=float(dealt.std()),
        p_value=float((1 + (dealt >= greedy_mean - 1e-12).sum()) / (1 + n_null)),
    )


def _path_mean(W: NDArray[np.float64], order: NDArray[np.int64]) -> float:
    return float(W[order[:-1], order[1:]].mean())


def _held_karp(W: NDArray[np.float64]) -> NDArray[np.int64]:
    """Best Hamiltonian path: ``best[mask, v]`` over subsets that end in v, by size of subset."""
    n = len(W)
    best = np.full((1 << n, n), -np.inf)
    before = np.full((1 << n, n), -1, dtype=np.int8)
    best[1 << np.arange(n), np.arange(n)] = 0.0
    masks = np.arange(1 << n)
    sizes = np.array([int(m).bit_count() for m in masks])
    for size in range(1, n):
        of_size = masks[sizes == size]
        for v in range(n):
            rest = of_size[(of_size >> v) & 1 == 0]
            value = best[rest] + W[:, v]
            last = value.argmax(axis=1)
            grown = rest | (1 << v)
            best[grown, v] = value[np.arange(len(rest)), last]
            before[grown, v] = last
    mask = (1 << n) - 1
    v = int(best[mask].argmax())
    order = [v]
    while (previous := int(before[mask, v])) >= 0:
        mask ^= 1 << v
        v = previous
        order.append(v)
    return np.array(order[::-1], dtype=np.int64)


def _greedy_path(W: NDArray[np.float64]) -> NDArray[np.int64]:
    """Nearest neighbour from every start, the best of them improved by 2-opt."""
    n = len(W)
    candidates = []
    for start in range(n):
        visited, free = [start], np.ones(n, dtype=bool)
        free[start] = False
        while free.any():
            nearest = int(np.where(free, W[visited[-1]], -np.inf).argmax())
            visited.append(nearest)
            free[nearest] = False
        candidates.append(np.array(visited, dtype=np.int64))
    order = max(candidates, key=lambda path: _path_mean(W, path))
    improved = True
    while improved:
        improved = False
        for i in range(n - 1):
            for j in range(i + 1, n):
                # reversing order[i..j] of an open path exchanges the edges at its two ends
                gain = 0.0
                if i > 0:
                    gain += W[order[i - 1], order[j]] - W[order[i - 1], order[i]]
                if j < n - 1:
                    gain += W[order[i], order[j + 1]] - W[order[j], order[j + 1]]
                if gain > 1e-12:
                    order[i : j + 1] = order[i : j + 1][::-1].copy()
                    improved = True
    return np.asarray(order)


def spanning_tree(scores: ArrayLike) -> list[tuple[int, int, float]]:
    """Maximum spanning tree of the pair scores: the edges ``(s, t, score)``, s < t.

    The right tool for carrying an alignment from seed to seed: between any two seeds its path has
    the greatest possible weakest link.

    Raises
    ------
    InputError
        When the matrix is unfit.
    """
    W = pair_matrix(scores)
    # scipy reads 0 as "no edge" and minimises: shift to positive costs
    cost = W.max(initial=0.0) - W + 1.0
    np.fill_diagonal(cost, 0.0)
    tree = minimum_spanning_tree(cost).tocoo()
    edges = [(int(min(i, j)), int(max(i, j))) for i, j in zip(tree.row, tree.col, strict=True)]
    return [(i, j, float(W[i, j])) for i, j in sorted(edges)]


def match_all(
    dictionaries: Sequence[ArrayLike], *, signed: bool = False
) -> dict[tuple[int, int], Match]:
    """Match every pair ``s < t`` of dictionaries."""
    return {
        (s, t): match_features(dictionaries[s], dictionaries[t], signed=signed)
        for s, t in combinations(range(len(dictionaries)), 2)
    }


@dataclass(frozen=True)
class PairMaps:
    """The matches of all pairs as maps with a similarity, in both directions.

    Attributes
    ----------
    sizes
        Features of each seed.
    """

    sizes: tuple[int, ...]
    _partner: Mapping[tuple[int, int], NDArray[np.int64]]
    _similarity: Mapping[tuple[int, int], NDArray[np.float64]]

    def partner(self, s: int, t: int) -> NDArray[np.int64]:
        """``[n_s]`` partner in t of each feature of s; -1 for none."""
        return self._partner[s, t]

    def similarity(self, s: int, t: int) -> NDArray[np.float64]:
        """``[n_s]`` similarity to it; 0 for none."""
        return self._similarity[s, t]

    def compose(self, path: Sequence[int]) -> NDArray[np.int64]:
        """Where each feature of ``path[0]`` is carried along the path; -1 once it is lost."""
        at = np.arange(self.sizes[path[0]])
        for s, t in pairwise(path):
            at = np.where(at >= 0, self.partner(s, t)[at], -1)
        return at


def pair_maps(matches: Matches) -> PairMaps:
    """Turn matches of all pairs ``s < t`` into maps in both directions.

    Raises
    ------
    InputError
        When a pair is missing or the sizes contradict each other.
    """
    n = max((t for _, t in matches), default=0) + 1
    missing = [pair for pair in combinations(range(n), 2) if pair not in matches]
    if missing or n < 2:
        raise InputError(f"matches: pairs {missing or 'all'} are missing; match every pair s < t")
    sizes: dict[int, int] = {}
    partner, similarity = {}, {}
    for (s, t), match in matches.items():
        for seed, size in ((s, match.n_a), (t, match.n_b)):
            if sizes.setdefault(seed, size) != size:
                raise InputError(f"matches: seed {seed} has {sizes[seed]} features and {size}")
        for key, size, here, there in (
            ((s, t), match.n_a, match.a_index, match.b_index),
            ((t, s), match.n_b, match.b_index, match.a_index),
        ):
            partner[key] = np.full(size, -1, dtype=np.int64)
            partner[key][here] = there
            similarity[key] = np.zeros(size)
            similarity[key][here] = match.similarity
    return PairMaps(tuple(sizes[seed] for seed in range(n)), partner, similarity)


@dataclass(frozen=True)
class CycleConsistency:
    """How often going round three seeds leads back.

    Attributes
    ----------
    fraction
        Mean over triples of the share of features that ``P_ca ∘ P_bc ∘ P_ab`` leads back to
        themselves, among those that have a partner at every step.
    complete
        Mean share of features that do (1 for equal widths).
    triples
        A row per triple: a, b, c, fraction, complete.
    chance
        Mean fraction for random one-to-one maps: 1 / n. Best matches of *random dictionaries*
        close more often than that (three rows near one another find one another), so compare
        with cycles of random dictionaries too.
    """

    fraction: float
    complete: float
    triples: pd.DataFrame
    chance: float


def cycle_consistency(matches: Matches) -> CycleConsistency:
    """Fraction of features that a cycle of three pairwise matches brings back to themselves.

    Pairwise matches are not transitive: each may be optimal and their composition still shuffle.

    Parameters
    ----------
    matches
        The match of every pair ``s < t`` of at least three seeds, from :func:`match_all`.

    Raises
    ------
    InputError
        When fewer than three seeds are matched, or a pair is missing.
    """
    maps = pair_maps(matches)
    n = len(maps.sizes)
    if n < 3:
        raise InputError(f"matches: {n} seeds make no cycle; give at least three")
    rows = []
    for a, b, c in combinations(range(n), 3):
        back = maps.compose((a, b, c, a))
        whole = back >= 0
        returned = back == np.arange(maps.sizes[a])
        rows.append(
            {
                "a": a,
                "b": b,
                "c": c,
                "fraction": float(returned.sum() / whole.sum()) if whole.any() else 0.0,
                "complete": float(whole.mean()),
            }
        )
    triples = pd.DataFrame(rows)
    return CycleConsistency(
        float(triples["fraction"].mean()),
        float(triples["complete"].mean()),
        triples,
        float(np.mean([1 / size for size in maps.sizes])),
    )


def path_retention(
    matches: Matches,
    order: Sequence[int] | None = None,
    *,
    n_paths: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """R(L): share of features whose match carried over L hops is their direct match.

    Parameters
    ----------
    matches
        The match of every pair ``s < t``.
    order
        Follow this order of seeds (the seed path): every stretch of L hops on it. Without it,
        all paths of L hops over distinct seeds, or ``n_paths`` random ones where there are more.
    n_paths, seed
        Of the random paths.

    Returns
    -------
    pandas.DataFrame
        ``hops``, ``retention`` (mean over paths, of the features that were not lost for want of
        a partner), ``complete`` (share not lost), ``n_paths``. One hop is 1 by definition.

    Raises
    ------
    InputError
        When a pair is missing or ``order`` is not an order of distinct seeds.
    """
    maps = pair_maps(matches)
    n = len(maps.sizes)
    if order is not None and (len(set(order)) != len(order) or not set(order) <= set(range(n))):
        raise InputError(f"order: {tuple(order)} is not an order of distinct seeds below {n}")
    rng = np.random.default_rng(seed)
    rows = []
    for hops in range(1, n if order is None else len(order)):
        values, complete = [], []
        for path in _paths(n, hops, order, n_paths, rng):
            carried = maps.compose(path)
            whole = carried >= 0
            if whole.any():
                values.append((carried == maps.partner(path[0], path[-1]))[whole].mean())
            complete.append(whole.mean())
        rows.append(
            {
                "hops": hops,
                "retention": float(np.mean(values)) if values else 0.0,
                "complete": float(np.mean(complete)),
                "n_paths": len(complete),
            }
        )
    return pd.DataFrame(rows)


def _paths(
    n: int, hops: int, order: Sequence[int] | None, n_paths: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    if order is not None:
        return [tuple(order[i : i + hops + 1]) for i in range(len(order) - hops)]
    count = int(np.prod([n - i for i in range(hops + 1)]))
    if count <= n_paths:
        return list(permutations(range(n), hops + 1))
    return [tuple(int(i) for i in rng.permutation(n)[: hops + 1]) for _ in range(n_paths)]


@dataclass(frozen=True)
class SeedAlignment:
    """One alignment of all seeds, carried along the maximum spanning tree.

    Attributes
    ----------
    root
        The seed whose features name the tracks: the one with the greatest mean score.
    index
        ``[n_root, S]``: the feature of each seed on each track; -1 where the track is lost.
    features
        A row per seed and feature: ``seed``, ``feature``, ``track`` (-1 for none),
        ``n_other_seeds``, ``n_seeds_found`` (direct match at the threshold or above), the mean,
        least and greatest similarity of its direct matches, and ``track_similarity`` (mean direct
        similarity to the others of its track; a pair that is not directly matched counts 0).
    threshold
        Similarity from which a feature counts as found.
    """

    root: int
    index: NDArray[np.int64]
    features: pd.DataFrame
    threshold: float


def align_seeds(matches: Matches, *, threshold: float = 0.7) -> SeedAlignment:
    """Align all seeds, and score how reproducible each feature is.

    Parameters
    ----------
    matches
        The match of every pair ``s < t``, from :func:`match_all`.
    threshold
        Similarity from which a feature counts as found in another seed (Paulo & Belrose use .7).

    Raises
    ------
    InputError
        When a pair is missing.
    """
    maps = pair_maps(matches)
    n = len(maps.sizes)
    W = np.zeros((n, n))
    for (s, t), match in matches.items():
        W[s, t] = W[t, s] = match.mean
    root = int(W.sum(axis=1).argmax())
    neighbours: dict[int, list[int]] = {s: [] for s in range(n)}
    for s, t, _ in spanning_tree(W):
        neighbours[s].append(t)
        neighbours[t].append(s)
    index = np.full((maps.sizes[root], n), -1, dtype=np.int64)
    index[:, root] = np.arange(maps.sizes[root])
    queue, seen = [root], {root}
    while queue:
        s = queue.pop(0)
        for t in neighbours[s]:
            if t not in seen:
                at = index[:, s]
                index[:, t] = np.where(at >= 0, maps.partner(s, t)[at], -1)
                seen.add(t)
                queue.append(t)
    tables = []
    for s, size in enumerate(maps.sizes):
        others = [t for t in range(n) if t != s]
        direct = np.stack([maps.similarity(s, t) for t in others])
        track = np.full(size, -1, dtype=np.int64)
        tracked = index[:, s] >= 0
        track[index[tracked, s]] = np.flatnonzero(tracked)
        along = np.zeros((len(others), size))
        for row, t in enumerate(others):
            same = (track >= 0) & (maps.partner(s, t) == np.where(track >= 0, index[track, t], -2))
            along[row] = np.where(same & (maps.partner(s, t) >= 0), direct[row], 0.0)
        tables.append(
            pd.DataFrame(
                {
                    "seed": s,
                    "feature": np.arange(size),
                    "track": track,
                    "n_other_seeds": len(others),
                    "n_seeds_found": (direct >= threshold).sum(axis=0),
                    "reproducibility": direct.mean(axis=0),
                    "similarity_min": direct.min(axis=0),
                    "similarity_max": direct.max(axis=0),
                    "track_similarity": along.mean(axis=0),
                }
            )
        )
    return SeedAlignment(root, index, pd.concat(tables, ignore_index=True), threshold)


def reproducibility_by_firing_rate(
    features: pd.DataFrame, *, n_bins: int = 8, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Summarise how reproducible features are, by how often they fire.

    Latents that never fire make a stratum of their own; the others are cut into bins of equal
    ratio from the rarest to the commonest.

    Parameters
    ----------
    features
        With ``firing_rate``, ``reproducibility``, ``n_seeds_found`` and ``n_other_seeds``.
    n_bins
        Bins of firing rate.
    by
        Further columns to keep apart (for example ``["group", "space"]``).

    Returns
    -------
    pandas.DataFrame
        ``by`` columns, ``rate_low``, ``rate_high``, ``n_features``, ``firing_rate`` (geometric
        mean), ``reproducibility``, ``found_fraction`` (mean of seeds found over other seeds),
        ``orphan_fraction`` (found in no other seed).

    Raises
    ------
    InputError
        When a column is missing.
    """
    needed = {"firing_rate", "reproducibility", "n_seeds_found", "n_other_seeds", *by}
    if missing := needed - set(features.columns):
        raise InputError(f"features: columns {sorted(missing)} are missing")
    known = features[features["firing_rate"].notna() & (features["n_other_seeds"] > 0)]
    rate = known["firing_rate"].to_numpy(dtype=np.float64)
    fires = rate > 0
    stratum = np.full(len(rate), -1)
    edges = np.array([0.0, 0.0])
    if fires.any():
        low, high = rate[fires].min(), rate[fires].max()
        edges = np.geomspace(low, max(high, low * (1 + 1e-9)), n_bins + 1)
        stratum[fires] = np.clip(
            np.searchsorted(edges, rate[fires], side="right") - 1, 0, n_bins - 1
        )
    rows = []
    for key, part in known.assign(_stratum=stratum).groupby([*by, "_stratum"], sort=True):
        values: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        bin_ = int(values[-1])
        positive = part["firing_rate"].to_numpy(dtype=np.float64)
        found = part["n_seeds_found"] / part["n_other_seeds"]
        rows.append(
            {
                **dict(zip(by, values[:-1], strict=True)),
                "rate_low": 0.0 if bin_ < 0 else float(edges[bin_]),
                "rate_high": 0.0 if bin_ < 0 else float(edges[bin_ + 1]),
                "n_features": len(part),
                "firing_rate": 0.0 if bin_ < 0 else float(np.exp(np.log(positive).mean())),
                "reproducibility": float(part["reproducibility"].mean()),
                "found_fraction": float(found.mean()),
                "orphan_fraction": float((part["n_seeds_found"] == 0).mean()),
            }
        )
    return pd.DataFrame(rows)
