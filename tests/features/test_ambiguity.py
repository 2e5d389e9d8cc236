"""Ambiguity of a match equals the result of listing every matching."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from husai.errors import InputError
from husai.features import FeaturesConfig, ambiguity, feature_cards
from husai.features.ambiguity import ambiguity_tables, match_ambiguity, partner_range
from husai.matching.dense_assignment import assign_priced
from husai.matching.match import match_features, unit_rows


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


def test_prices_prove_the_optimum():
    s = np.random.default_rng(0).random((30, 30))
    rows, columns = linear_sum_assignment(s, maximize=True)
    partner, u, v = assign_priced(s)
    assert (u[:, None] + v >= s - 1e-9).all()
    assert u.sum() + v.sum() == pytest.approx(s[rows, columns].sum())
    assert s[np.arange(30), partner].sum() == pytest.approx(s[rows, columns].sum())
    wide = assign_priced(s[:20])
    taken = np.isin(np.arange(30), wide.column)
    assert (wide.u[:, None] + wide.v >= s[:20] - 1e-9).all()
    assert (wide.v >= 0).all()
    assert (wide.v[~taken] == 0).all()
    with pytest.raises(InputError, match="no more rows than columns"):
        assign_priced(s[:, 1:])


def within(cosine, epsilon):
    """Every complete matching whose sum is within ε of the best, by trying all."""
    n_a, n_b = cosine.shape
    wide = cosine if n_a <= n_b else cosine.T
    n, m = wide.shape
    sums = {order: wide[range(n), order].sum() for order in permutations(range(m), n)}
    best = max(sums.values())
    return [order for order, total in sums.items() if total >= best - epsilon - 1e-12]


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_range_of_partners_is_that_of_all_matchings(shape, signed):
    rng = np.random.default_rng(1)
    A, B = (rng.standard_normal((n, 4)) for n in shape)
    cosine = unit_rows(A) @ unit_rows(B).T
    s = cosine if signed else np.abs(cosine)
    found = partner_range(A, B, match_features(A, B, signed=signed), 0.3)
    orders = within(s, 0.3)
    for i in range(shape[0]):
        if shape[0] <= shape[1]:
            partners = [order[i] for order in orders]
        else:
            partners = [order.index(i) if i in order else None for order in orders]
        have = {j for j in partners if j is not None}
        assert found.n_exchangeable[i] == len(have)
        if have:
            assert found.most[i] == pytest.approx(max(s[i, j] for j in have))
        least = np.nan if None in partners else min(s[i, j] for j in have)
        assert found.least[i] == pytest.approx(least, nan_ok=True)
    assert found.score_moves == pytest.approx(0.3 / min(shape))


def test_the_certificate_of_wide_dictionaries_says_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    A = rng.standard_normal((90, 12))
    B = np.concatenate(
        [A[:50] + 0.1 * rng.standard_normal((50, 12)), rng.standard_normal((40, 12))]
    )
    monkeypatch.setattr(ambiguity, "_SOURCES", 7)
    for first, second in ((A, B), (A, B[:70]), (A[:70], B)):
        match = match_features(first, second, method="sparse")
        exact = partner_range(first, second, match, 0.05)
        with monkeypatch.context() as small:
            small.setattr(ambiguity, "_MOST_FEATURES", 8)
            from_proof = partner_range(first, second, match, 0.05)
            assert partner_range(first, second, match_features(first, second), 0.05) is None
        assert exact is not None
        assert from_proof is not None
        for mine, other in zip(map(np.asarray, exact), map(np.asarray, from_proof), strict=True):
            assert np.allclose(mine, other, equal_nan=True)
        sure, may = exact.matched(0.7)
        assert sure <= (match.similarity >= 0.7).sum() <= may
        assert 0 < exact.ambiguous < 0.9


def test_wrong_similarities_are_refused():
    for wrong in (np.array([[np.nan]]), np.zeros((0, 2))):
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
