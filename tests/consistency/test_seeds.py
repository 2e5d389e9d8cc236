"""Paths, trees, cycles and alignments against brute force and planted structure."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from husai.consistency import (
    align_seeds,
    cycle_consistency,
    match_all,
    path_retention,
    reproducibility_by_firing_rate,
    seed_path,
    spanning_tree,
)
from husai.consistency.inference.seeds import pair_maps
from husai.errors import InputError


def random_scores(n: int, seed: int) -> NDArray[np.float64]:
    W = np.random.default_rng(seed).random((n, n))
    return np.asarray((W + W.T) / 2)


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_seed_path_is_the_best_of_all_orders(n: int) -> None:
    W = random_scores(n, n)
    best = max(float(np.mean([W[a, b] for a, b in pairwise(p)])) for p in permutations(range(n)))
    got = seed_path(W, n_null=20)
    assert got.mean == pytest.approx(best, abs=1e-12)
    assert sorted(got.order) == list(range(n))
    assert got.gap == pytest.approx(got.mean - got.greedy_mean, abs=1e-12)
    assert got.greedy_mean <= got.mean + 1e-12
    assert got.mean >= got.pair_mean


def test_a_greedy_path_can_miss_the_optimum_and_the_gap_shows_it() -> None:
    # from every start the nearest neighbour takes an edge that spoils the rest, 2-opt included
    worst = max(
        (seed_path(random_scores(8, seed), n_null=1) for seed in range(30)), key=lambda p: p.gap
    )
    assert worst.gap > 0.005
    assert f"gap {worst.gap:.4f}" in str(worst)


def test_for_many_seeds_the_gap_is_a_bound() -> None:
    W = random_scores(17, 3)
    got = seed_path(W, n_null=3)
    assert got.method == "greedy"
    assert got.gap >= 0
    tree = float(np.mean([w for *_, w in spanning_tree(W)]))
    assert got.mean + got.gap == pytest.approx(max(tree, got.mean))
    assert "at most" in str(got)


def test_path_null_depends_on_the_order_only() -> None:
    rng = np.random.default_rng(0)
    line = np.arange(7)
    noise = 0.01 * rng.random((7, 7))
    W = np.exp(-np.abs(line[:, None] - line[None, :]) / 2.0) + noise + noise.T
    order = rng.permutation(7)
    got = seed_path(W[np.ix_(order, order)], n_null=200)
    positions = [int(order[s]) for s in got.order]
    assert positions in (sorted(positions), sorted(positions, reverse=True))
    assert got.p_value < 0.1
    flat = np.mean([seed_path(random_scores(6, s), n_null=60).p_value for s in range(25)])
    assert 0.35 < flat < 0.65
    assert got.random_order_mean == pytest.approx(got.pair_mean, abs=0.03)


def test_spanning_tree_is_the_best_of_all_trees() -> None:
    n, W = 5, random_scores(5, 4)
    edges = list(combinations(range(n), 2))

    def spans(tree: tuple[tuple[int, int], ...]) -> bool:
        seen = {0}
        for _ in range(n):
            seen |= {v for e in tree for v in e if set(e) & seen}
        return len(seen) == n

    best = max(sum(W[e] for e in tree) for tree in combinations(edges, n - 1) if spans(tree))
    got = spanning_tree(W)
    assert len(got) == n - 1
    assert sum(w for *_, w in got) == pytest.approx(best)


def shuffled_copies(
    n_seeds: int, n: int, d: int, noise: float, seed: int
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((n, d))
    orders = [rng.permutation(n) for _ in range(n_seeds)]
    return [truth[o] + noise * rng.standard_normal((n, d)) for o in orders], orders


def test_cycles_of_one_dictionary_close_and_those_of_random_ones_by_chance() -> None:
    same, _ = shuffled_copies(4, 15, 10, 0.01, 0)
    got = cycle_consistency(match_all(same))
    assert got.fraction == 1.0
    assert got.complete == 1.0
    assert len(got.triples) == 4
    rng = np.random.default_rng(1)
    none = cycle_consistency(match_all([rng.standard_normal((40, 12)) for _ in range(6)]))
    assert none.chance == pytest.approx(1 / 40)
    assert none.chance < none.fraction < 0.3  # near rows find one another by chance


def test_cycle_by_brute_force_with_unequal_widths() -> None:
    rng = np.random.default_rng(2)
    dictionaries = [rng.standard_normal((n, 4)) for n in (6, 5, 7)]
    matches = match_all(dictionaries)
    ab = dict(zip(matches[0, 1].a_index, matches[0, 1].b_index, strict=True))
    bc = dict(zip(matches[1, 2].a_index, matches[1, 2].b_index, strict=True))
    ca = dict(zip(matches[0, 2].b_index, matches[0, 2].a_index, strict=True))
    ends = {i: ca[bc[ab[i]]] for i in range(6) if i in ab and ab[i] in bc and bc[ab[i]] in ca}
    got = cycle_consistency(matches)
    assert got.complete == pytest.approx(len(ends) / 6)
    assert got.fraction == pytest.approx(sum(i == j for i, j in ends.items()) / len(ends))


def test_retention_falls_with_hops_and_is_1_for_one_dictionary() -> None:
    same, _ = shuffled_copies(4, 12, 8, 0.01, 3)
    assert (path_retention(match_all(same))["retention"] == 1.0).all()
    noisy, _ = shuffled_copies(5, 40, 8, 0.7, 4)
    table = path_retention(match_all(noisy))
    assert table["retention"].iloc[0] == 1.0
    assert table["retention"].is_monotonic_decreasing
    assert table["retention"].iloc[-1] < 0.9
    along = path_retention(match_all(noisy), order=[2, 0, 1, 3, 4])
    assert list(along["n_paths"]) == [4, 3, 2, 1]
    maps = pair_maps(match_all(noisy))
    carried = maps.partner(1, 3)[maps.partner(0, 1)[maps.partner(2, 0)]]
    hand = (carried == maps.partner(2, 3)).mean()
    assert path_retention(match_all(noisy), order=[2, 0, 1, 3])["retention"].iloc[2] == hand


def test_alignment_follows_features_through_all_seeds() -> None:
    dictionaries, orders = shuffled_copies(4, 10, 9, 0.02, 5)
    got = align_seeds(match_all(dictionaries), threshold=0.9)
    for track in range(10):
        names = {int(orders[s][got.index[track, s]]) for s in range(4)}
        assert len(names) == 1  # one true feature on each track
    assert (got.features["n_seeds_found"] == 3).all()
    np.testing.assert_allclose(got.features["track_similarity"], got.features["reproducibility"])


def test_alignment_says_which_feature_was_not_found() -> None:
    dictionaries, orders = shuffled_copies(3, 10, 9, 0.02, 6)
    lost = int(np.flatnonzero(orders[2] == 4)[0])
    dictionaries[2][lost] = np.random.default_rng(8).standard_normal(9)
    got = align_seeds(match_all(dictionaries), threshold=0.9).features
    found = got.pivot(index="seed", columns="feature", values="n_seeds_found")
    assert found.loc[2, lost] == 0
    for s in (0, 1):
        own = int(np.flatnonzero(orders[s] == 4)[0])
        assert found.loc[s, own] == 1
    assert (found.to_numpy() == 2).sum() == 27


def test_wider_dictionaries_keep_features_without_a_track() -> None:
    rng = np.random.default_rng(9)
    got = align_seeds(match_all([rng.standard_normal((n, 5)) for n in (4, 6, 4)]))
    tracks = got.features["track"].to_numpy()
    assert len(got.features) == 14
    assert (tracks >= 0).sum() == (got.index >= 0).sum()
    lost = (tracks == -1).sum() + (got.index == -1).sum()
    assert lost >= 2  # either features without a track, or tracks that end


def test_strata_by_firing_rate() -> None:
    features = pd.DataFrame(
        {
            "firing_rate": [0.0, 1e-4, 2e-4, 0.5, 0.9],
            "reproducibility": [0.1, 0.2, 0.4, 0.8, 1.0],
            "n_seeds_found": [0, 0, 1, 2, 2],
            "n_other_seeds": 2,
        }
    )
    got = reproducibility_by_firing_rate(features, n_bins=3)
    assert list(got["n_features"]) == [1, 2, 2]
    assert got["reproducibility"].to_list() == pytest.approx([0.1, 0.3, 0.9])
    assert got["found_fraction"].to_list() == pytest.approx([0.0, 0.25, 1.0])
    assert got["orphan_fraction"].to_list() == pytest.approx([1.0, 0.5, 0.0])
    assert got["n_features"].sum() == 5
    with pytest.raises(InputError, match="firing_rate"):
        reproducibility_by_firing_rate(features.drop(columns="firing_rate"))


def test_too_few_seeds_are_errors() -> None:
    with pytest.raises(InputError, match="one seed"):
        seed_path(np.ones((1, 1)))
    two = match_all([np.eye(3), np.eye(3)])
    with pytest.raises(InputError, match="no cycle"):
        cycle_consistency(two)
    with pytest.raises(InputError, match="missing"):
        pair_maps({(0, 2): two[0, 1], (0, 1): two[0, 1]})
    with pytest.raises(InputError, match="order"):
        path_retention(two, order=[0, 0])
