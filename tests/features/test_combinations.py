"""Combinations and matching pursuit on planted splits, merges and codes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import sparse

from husai.consistency import SAERecord
from husai.errors import InputError
from husai.features import feature_cards, feature_group
from husai.features.combinations import combination_table, combine
from husai.features.identifiability import (
    code_identifiability,
    matching_pursuit,
    support_overlap,
)
from husai.matching.match import unit_rows


def split_world():
    """A narrow SAE of 6 features; in a wide one the first two are split in 2 and in 3."""
    rng = np.random.default_rng(0)
    n, d = 2000, 32
    narrow = np.where(rng.random((n, 6)) < 0.2, rng.uniform(1, 2, (n, 6)), 0)
    which = rng.integers(0, 6, n)
    wide = [narrow[:, [0]] * (which[:, None] % 2 == [0, 1])]
    wide += [narrow[:, [1]] * (which[:, None] % 3 == [0, 1, 2])]
    own = np.where(rng.random((n, 4)) < 0.1, 1.0, 0)
    wide += [narrow[:, 2:], own]
    codes = [narrow, np.concatenate(wide, axis=1)]
    return feature_group(
        [
            SAERecord(f"sae {s}", "topk", s, rng.standard_normal((one.shape[1], d)), codes=one)
            for s, one in enumerate(codes)
        ]
    )


def test_splitting_and_merging_across_widths_are_named():
    table = combination_table(split_world()).set_index(["id", "latent"])
    narrow, wide = table.loc["sae 0"], table.loc["sae 1"]
    assert narrow["verdict"].tolist() == ["split"] * 2 + ["matched"] * 4
    assert set(narrow.loc[0, "members"].split()[:2]) == {"0", "1"}
    assert set(narrow.loc[1, "members"].split()[:3]) == {"2", "3", "4"}
    assert (narrow["r2_few"] > 0.99).all()
    assert wide["verdict"].tolist()[:5] == ["merged"] * 5
    assert wide["verdict"].tolist()[5:9] == ["matched"] * 4
    assert wide["verdict"].tolist()[9:] == ["alone"] * 4
    assert table["r2_null"].max() < 0.05
    part = combination_table(split_world(), max_features=3).set_index(["id", "latent"])
    assert len(part) == 6
    same = ["r2_one", "members"]
    assert part[same].equals(table.loc[part.index, same])


def test_combinations_equal_least_squares():
    rng = np.random.default_rng(1)
    sources = np.where(rng.random((400, 8)) < 0.3, rng.random((400, 8)), 0)
    targets = np.clip(sources @ rng.random((8, 3)) + 0.1 * rng.standard_normal((400, 3)), 0, None)
    found = combine(sparse.csr_array(targets), sparse.csr_array(sources), k=3)
    mixed = np.random.default_rng(0).permutation(400)
    fit, test = mixed[:200], mixed[200:]
    for i in range(3):
        centred = [
            (x[part] - x[part].mean(axis=0)) for x in (targets, sources) for part in (fit, test)
        ]
        y, y_test, x, x_test = centred[0][:, i], centred[1][:, i], centred[2], centred[3]
        members = found.members[i]
        # the first is the source of greatest correlation
        assert members[0] == np.abs(x.T @ y / np.linalg.norm(x, axis=0)).argmax()
        weights = np.linalg.lstsq(x[:, members], y, rcond=None)[0]
        left = np.square(y_test - x_test[:, members] @ weights).sum() / np.square(y_test).sum()
        assert found.r2[i, 2] == pytest.approx(1 - left)
    with pytest.raises(InputError, match="rows"):
        combine(sparse.csr_array(targets[1:]), sparse.csr_array(sources))


def test_pursuit_finds_planted_codes_and_the_encoder_that_uses_them_agrees():
    rng = np.random.default_rng(2)
    truth = unit_rows(rng.standard_normal((40, 32)))
    codes = np.zeros((500, 40))
    for row in codes:
        row[rng.choice(40, 3, replace=False)] = rng.uniform(1, 2, 3)
    x = codes @ truth
    pursuit = matching_pursuit(x, truth, (codes > 0).sum(axis=1))
    jaccard, agreement = support_overlap(sparse.csr_array(codes), pursuit)
    assert np.nanmean(jaccard) > 0.85
    assert pursuit.explained > 0.97
    assert np.nanmean(agreement) > 0.9
    wrong = sparse.csr_array(np.roll(codes, 1, axis=1))
    assert np.nanmean(support_overlap(wrong, pursuit)[0]) < 0.2


def test_one_step_of_pursuit_takes_the_nearest_and_orthogonal_dictionaries_are_exact():
    rng = np.random.default_rng(3)
    D, x = unit_rows(rng.standard_normal((12, 6))), rng.standard_normal((30, 6))
    one = matching_pursuit(x, D, np.ones(30))
    assert (one.support[:, 0] == (x @ D.T).argmax(axis=1)).all()
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    two = matching_pursuit(x, Q, np.full(30, 2), positive=False)
    for row, support in zip(x, two.support, strict=True):
        # of all pairs of orthogonal directions the best is that of the largest products
        best = max(combinations(range(6), 2), key=lambda pair: np.square(Q[list(pair)] @ row).sum())
        assert set(support) == set(best)


def test_identifiability_of_a_group(planted):
    cards = feature_cards(planted.group)
    features, saes = code_identifiability(cards, planted.rows)
    assert len(features) == len(cards.features)
    assert (saes["jaccard"] > saes["jaccard_null"]).all()
    assert saes["explained"].between(0, 1).all()
    with pytest.raises(InputError):
        code_identifiability(cards, planted.rows[1:])
