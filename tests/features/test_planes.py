"""Planes and spans on dictionaries whose planes are planted, and on random ones that have none."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from husai.errors import InputError
from husai.features.combinations import Place, share_table
from husai.features.planes import find_planes, plane_table, span_energy, span_table
from husai.figures.features import widths_figure
from husai.matching.match import unit_rows

D, PLANES, TILES, OWN = 24, 3, 4, 20


def on_planes(seed: int) -> np.ndarray:
    """Three planes that every seed tiles at its own phase, and directions of its own."""
    axes = np.linalg.qr(np.random.default_rng(99).standard_normal((D, D)))[0][: 2 * PLANES]
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((OWN, D))]
    for first, second in axes.reshape(PLANES, 2, D):
        angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(TILES) / TILES
        rows.append(np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    return unit_rows(np.concatenate(rows) + 0.02 * rng.standard_normal((OWN + PLANES * TILES, D)))


def test_span_energy_is_that_of_projections():
    rng = np.random.default_rng(0)
    x, D_ = rng.standard_normal((6, 9)), rng.standard_normal((12, 9))
    found = span_energy(x, D_, 3)
    unit, dictionary = unit_rows(x), unit_rows(D_)
    for i in range(6):
        chosen: list[int] = []
        residual = unit[i].copy()
        for step in range(3):
            chosen.append(int(np.abs(dictionary @ residual).argmax()))
            basis = dictionary[chosen]
            residual = unit[i] - basis.T @ np.linalg.lstsq(basis.T, unit[i], rcond=None)[0]
            assert found[i, step] == pytest.approx(1 - residual @ residual)
    assert np.allclose(span_energy(x, np.eye(9), 9)[:, -1], 1)
    assert np.allclose(span_energy(x, np.array([x[0], x[0]]), 2)[0], 1)  # a copy adds nothing


def test_planted_planes_are_found_and_each_feature_is_in_its_own():
    planes = find_planes(on_planes(1))
    assert len(planes) == PLANES
    members = sorted(tuple(sorted(one.members)) for one in planes)
    assert members == [tuple(range(OWN + i * TILES, OWN + (i + 1) * TILES)) for i in range(PLANES)]
    random = unit_rows(np.random.default_rng(3).standard_normal((41, D)))
    assert find_planes(random) == []
    with pytest.raises(InputError, match="1024"):
        find_planes(np.ones((1025, 3)))


def test_a_plane_is_found_where_every_pair_was_looked_at():
    """The fullest plane by trying all pairs in plain Python."""
    rows = on_planes(2)
    most = 0
    for i, j in combinations(range(len(rows)), 2):
        if abs(rows[i] @ rows[j]) < 0.95:
            axes = np.linalg.qr(rows[[i, j]].T)[0].T
            most = max(most, int((np.linalg.norm(rows @ axes.T, axis=1) >= 0.9).sum()))
    assert len(find_planes(rows)[0].members) >= most


def test_planes_come_back_where_no_single_latent_does():
    names, decoders = ["a", "b", "c"], [on_planes(s) for s in range(3)]
    cosine = np.abs(decoders[0] @ decoders[1].T).max(axis=1)[OWN:]
    assert cosine.min() < 0.95  # phases differ: some have no near partner
    planes, counts = plane_table(names, decoders, null_draws=5)
    assert len(planes) == 3 * PLANES
    assert (planes["n_seeds_found"] == 2).all()
    assert planes["overlap"].min() > 0.95
    assert planes["circle"].all()
    assert (counts["n_planes_null"] == 0).all()
    assert (counts["in_plane"] == PLANES * TILES / (OWN + PLANES * TILES)).all()
    spanned = span_table(names, decoders, least=0.95)
    inside = spanned["feature"] >= OWN
    assert spanned.loc[inside, "energy_two"].min() > 0.95
    assert set(spanned.loc[inside, "verdict"]) == {"one", "few"}
    assert (spanned.loc[inside, "verdict"] == "few").mean() > 0.3
    assert (spanned.loc[~inside, "verdict"] == "none").all()
    assert spanned.loc[inside, "energy_two_null"].max() < 0.9


def test_shares_are_means_over_pairs_of_seeds():
    rng = np.random.default_rng(0)
    places = {f"{w}-{s}": Place(w, s) for w in ("64", "128") for s in range(4)}
    rows = [
        {"id": one, "other_id": other, "verdict": rng.choice(["split", "alone"], p=[0.3, 0.7])}
        for one in places
        for other in places
        if one != other
        for _ in range(50)
    ]
    table = pd.DataFrame(rows)
    found = share_table(table, places, ("split", "alone")).set_index(["from", "to", "verdict"])
    part = table[table["id"].str.startswith("64-") & table["other_id"].str.startswith("128-")]
    part = part[part["id"].str[-1] != part["other_id"].str[-1]]
    own = found.loc[("64", "128", "split")]
    assert own["share"] == pytest.approx((part["verdict"] == "split").mean())
    assert own["low"] < own["share"] < own["high"]
    shares = found.reset_index()
    both = pd.concat([shares.assign(measure=m) for m in ("codes", "decoder")])
    left, right = widths_figure(both).axes
    assert [t.get_text() for t in left.get_yticklabels()] == [
        t.get_text() for t in right.get_yticklabels()
    ]
