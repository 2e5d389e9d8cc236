"""Many seeds together: cycles of matches, and one alignment of all seeds.

Matches are given for pairs ``s < t``; the other direction is the inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from husai.consistency.inference.paths import spanning_tree
from husai.consistency.scores.decoder import partner_of
from husai.errors import InputError
from husai.matching.match import match_features
from husai.matching.result import Match, transposed

Matches = Mapping[tuple[int, int], Match]


def match_all(
    dictionaries: Sequence[ArrayLike], *, signed: bool = False
) -> dict[tuple[int, int], Match]:
    """Match every pair ``s < t`` of dictionaries ``[n_s, d]``."""
    return {
        (s, t): match_features(dictionaries[s], dictionaries[t], signed=signed)
        for s, t in combinations(range(len(dictionaries)), 2)
    }


@dataclass(frozen=True)
class PairMaps:
    """The partner of every feature in every other seed, from the matches of all pairs.

    Attributes
    ----------
    sizes
        Number of features of each seed.
    """

    sizes: tuple[int, ...]
    _partner: Mapping[tuple[int, int], NDArray[np.int64]]
    _similarity: Mapping[tuple[int, int], NDArray[np.float64]]

    def partner(self, s: int, t: int) -> NDArray[np.int64]:
        """``[n_s]`` partner in t of each feature of s; -1 for none."""
        return self._partner[s, t]

    def similarity(self, s: int, t: int) -> NDArray[np.float64]:
        """``[n_s]`` similarity of each feature of s to its partner in t; 0 for none."""
        return self._similarity[s, t]

    def compose(self, path: Sequence[int]) -> NDArray[np.int64]:
        """``[n]``: where each feature of seed ``path[0]`` ends when its partners are followed
        along the path; -1 if one of them has no partner.
        """
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
        partner[s, t], similarity[s, t] = partner_of(match)
        partner[t, s], similarity[t, s] = partner_of(transposed(match))
    return PairMaps(tuple(sizes[seed] for seed in range(n)), partner, similarity)


@dataclass(frozen=True)
class CycleConsistency:
    """How often the matches of three seeds lead a feature back to itself.

    Attributes
    ----------
    fraction
        Mean over triples of the share of features that ``P_ca ∘ P_bc ∘ P_ab`` leads back to
        themselves, among those that have a partner at every step.
    complete
        Mean share of features that have a partner at every step (1 for equal widths).
    triples
        A row per triple: a, b, c, fraction, complete.
    chance
        Mean fraction for random one-to-one maps: 1 / n. Best matches of *random dictionaries*
        return more often than that (three rows near one another are matched with one another),
        so compare with cycles of random dictionaries too.
    """

    fraction: float
    complete: float
    triples: pd.DataFrame
    chance: float


def cycle_consistency(matches: Matches) -> CycleConsistency:
    """Fraction of features that three pairwise matches in a cycle lead back to themselves.

    Pairwise matches are not transitive: each can be optimal while their composition is not the
    identity.

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
    """R(L): share of features whose partner over L matches in a row is their direct partner.

    Parameters
    ----------
    matches
        The match of every pair ``s < t``.
    order
        An order of seeds (the seed path): every stretch of L hops along it is used. Without it,
        all paths of L hops over distinct seeds, or ``n_paths`` random ones if there are more.
    n_paths, seed
        Number of random paths, and their seed.

    Returns
    -------
    pandas.DataFrame
        ``hops``, ``retention`` (mean over paths, among features that have a partner at every
        step), ``complete`` (share of such features), ``n_paths``. With one hop it is 1.

    Raises
    ------
    InputError
        When a pair is missing, or ``order`` repeats a seed or names one that does not exist.
    """
    maps = pair_maps(matches)
    n = len(maps.sizes)
    if order is not None and (len(set(order)) != len(order) or not set(order) <= set(range(n))):
        raise InputError(f"order: {tuple(order)}; give distinct seeds from 0 to {n - 1}")
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
        The seed from which the alignment starts: the one with the greatest mean score. Each of its
        features begins a track, the list of aligned features of all seeds.
    index
        ``[n_root, S]``: the feature of each seed on each track; -1 where it has none.
    features
        A row per seed and feature: ``seed``, ``feature``, ``track`` (-1 for none),
        ``n_other_seeds``, ``n_seeds_found`` (direct match at the threshold or above), the mean
        (``reproducibility``), least and greatest similarity of its direct matches, and
        ``track_similarity`` (mean direct similarity to the others of its track; a pair that is
        not directly matched counts 0).
    threshold
        Least similarity at which a feature counts as found.
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
        Least similarity at which a feature counts as found in another seed (Paulo & Belrose use
        .7).

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

    Latents that never fire are a bin of their own; the others are divided into bins of equal
    width in the logarithm of the firing rate.

    Parameters
    ----------
    features
        Columns ``firing_rate``, ``reproducibility``, ``n_seeds_found``, ``n_other_seeds``.
    n_bins
        Number of bins.
    by
        Further columns to group by (for example ``["group", "space"]``).

    Returns
    -------
    pandas.DataFrame
        The columns ``by``, ``rate_low``, ``rate_high``, ``n_features``, ``firing_rate`` (geometric
        mean), ``reproducibility``, ``found_fraction`` (mean share of the other seeds in which a
        feature is found), ``orphan_fraction`` (found in no other seed).

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


def partner_similarity(matches: Matches, sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    """Similarity of each feature to its partner in every other seed; 0 where it has none.

    Returns
    -------
    list
        For each seed ``[n_s, S - 1]``, the other seeds in order.
    """
    n = len(sizes)
    own = [np.zeros((size, n - 1)) for size in sizes]
    for s, t in combinations(range(n), 2):
        match = matches[s, t]
        own[s][match.a_index, t - 1] = match.similarity
        own[t][match.b_index, s] = match.similarity
    return own
