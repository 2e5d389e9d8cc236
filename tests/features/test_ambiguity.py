"""Ambiguity of a match equals the result of listing every matching."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from husai.errors import InputError
from husai.features import FeaturesConfig, feature_cards
from husai.features.ambiguity import ambiguity_tables, match_ambiguity, prices


def forced_costs(s):
    """Compute what the best sum loses when i is matched with j, by trying every matching."""
    n_a, n_b = s.shape
    n = max(n_a, n_b)
    square = np.zeros((n, n))
    square[:n_a, :n_b] = s
    best = np.full((n, n), -np.inf)
    for order in permutations(range(n)):
        total = square[np.arange(n), order].sum()
        for i, j in enumerate(order):
            best[i, j] = max(best[i, j], total)
    return (best.max() - best)[:n_a, :n_b]


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (6, 6), (4, 6), (6, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_costs_equal_those_of_all_matchings_by_brute_force(shape, seed):
    s = np.random.default_rng(seed).random(shape)
    wanted = forced_costs(s)
    for epsilon in (0.05, 0.3, 10.0):
        found = match_ambiguity(s, epsilon)
        dense = np.full(shape, np.inf)
        entries = found.cost.tocoo()
        dense[entries.row, entries.col] = entries.data
        assert np.allclose(dense, np.where(wanted <= epsilon, wanted, np.inf), atol=1e-9)
        table = found.table(s)
        assert table["n_exchangeable"].tolist() == (wanted <= epsilon).sum(axis=1).tolist()


def test_ties_and_copies_are_exchangeable():
    s = np.array([[0.9, 0.9, 0.1], [0.9, 0.9, 0.1], [0.1, 0.1, 0.8]])
    table = match_ambiguity(s, 0.01).table(s)
    assert table["n_exchangeable"].tolist() == [2, 2, 1]
    assert table["margin"].tolist()[:2] == pytest.approx([0, 0], abs=1e-9)
    assert np.isnan(table["margin"][2])


def test_prices_prove_the_optimum_and_no_other_match():
    s = np.random.default_rng(0).random((30, 30))
    _, partner = linear_sum_assignment(s, maximize=True)
    u, v = prices(s, partner)
    assert (u[:, None] + v >= s - 1e-9).all()
    assert u.sum() + v.sum() == pytest.approx(s[np.arange(30), partner].sum())
    with pytest.raises(InputError, match="larger sum"):
        prices(s, np.roll(partner, 1))
    for wrong in (np.array([[-0.1]]), np.array([[np.nan]]), np.zeros((0, 2))):
        with pytest.raises(InputError):
            match_ambiguity(wrong, 0.1)


def test_planted_features_are_not_ambiguous_and_the_rest_may_be(planted):
    cards = feature_cards(planted.group)
    features, partners, (note,) = ambiguity_tables(cards)
    truth = {one.record.id: planted.truth[s] for s, one in enumerate(planted.group.live)}
    is_shared = [truth[i][j] >= 0 for i, j in features[["id", "latent"]].to_numpy()]
    # two of a kind may each do for the other, where their own likenesses are close as well
    assert (features.loc[is_shared, "n_exchangeable"] == 1).mean() > 0.9
    assert (partners["least"] <= partners["most"]).all()
    assert "ambiguous" in note
    wide, _, _ = ambiguity_tables(cards, FeaturesConfig(epsilon=0.5))
    more = wide["n_exchangeable"] - features["n_exchangeable"]
    assert (more >= 0).all()
    assert more[~np.array(is_shared)].mean() > more[is_shared].mean()
