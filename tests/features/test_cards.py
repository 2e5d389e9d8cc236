"""Cards: partners, intervals, labels and activity of planted features."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from husai.consistency.analyses.labels import class_labels
from husai.errors import InputError
from husai.features import feature_cards, feature_group
from husai.features.cards import partner_intervals
from husai.features.pictures import (
    PALETTE,
    activation_map,
    check_contexts,
    context_of,
    histogram,
    palette_png,
    top_rows,
)

from .conftest import N_OWN, N_SHARED, P, planted_records


def answers():
    a, b = np.divmod(np.arange(P * P), P)
    return (a + b) % P


def test_planted_features_are_matched_with_one_another(planted):
    cards = feature_cards(planted.group)
    assert len(cards.features) == 3 * (N_SHARED + N_OWN)
    for s, one in enumerate(planted.group.live):
        own = cards.features[cards.features["id"] == one.record.id].set_index("latent")
        is_shared = planted.truth[s] >= 0
        assert np.allclose(own.loc[is_shared, "reproducibility"], 1)
        assert (own.loc[is_shared, "n_seeds_found"] == 2).all()
        assert (own.loc[~is_shared, "reproducibility"] < 0.95).all()
    truth = {one.record.id: planted.truth[s] for s, one in enumerate(planted.group.live)}
    for row in cards.partners.to_dict("records"):
        mine = truth[row["id"]][row["latent"]]
        if mine >= 0:
            assert truth[row["other_id"]][row["other_latent"]] == mine
            assert row["cosine"] == pytest.approx(1)


def test_partners_are_mutual(planted):
    partners = feature_cards(planted.group).partners
    there = partners[["other_id", "other_latent", "id", "latent", "cosine"]]
    back = partners.merge(
        there.set_axis(["id", "latent", "other_id", "other_latent", "back"], axis=1),
        on=["id", "latent", "other_id", "other_latent"],
    )
    assert len(back) == len(partners)
    assert np.allclose(back["cosine"], back["back"])


def test_intervals_are_students_t():
    partners = pd.DataFrame({"id": "a", "latent": 0, "similarity": [0.2, 0.5, 0.6, 0.4]})
    found = partner_intervals(partners, 0.9).iloc[0]
    expected = stats.ttest_1samp(partners["similarity"], 0).confidence_interval(0.9)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    single = partner_intervals(partners.head(1), 0.9).iloc[0]
    assert np.isnan(single["low"])


def test_labels_and_activity(planted):
    cards = feature_cards(planted.group, [class_labels("answer", answers())])
    for s, one in enumerate(planted.group.live):
        own = cards.features[cards.features["id"] == one.record.id].set_index("latent")
        for latent, feature in enumerate(planted.truth[s]):
            if feature >= 0:
                assert own.loc[latent, "label"] == f"answer = {feature}"
                assert own.loc[latent, "firing_rate"] == pytest.approx(1 / P)
                assert 1 <= own.loc[latent, "mean_activation"] <= own.loc[latent, "max_activation"]


def test_a_single_sae_and_labels_without_codes_are_refused(planted):
    record = planted.group.live[0].record
    with pytest.raises(InputError, match="at least two"):
        feature_group([record])
    bare = feature_group([replace(one.record, codes=None) for one in planted.group.live])
    assert feature_cards(bare).features["reproducibility"].notna().all()
    with pytest.raises(InputError, match="no codes"):
        feature_cards(bare, [class_labels("answer", answers())])


def test_dead_latents_have_no_card():
    records, _, _ = planted_records()
    codes = records[0].codes.tolil()
    codes[:, 3] = 0
    cards = feature_cards(feature_group([replace(records[0], codes=codes.tocsr()), *records[1:]]))
    own = cards.features[cards.features["id"] == records[0].id]
    assert 3 not in set(own["latent"])
    assert len(own) == N_SHARED + N_OWN - 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (13, 13)])
def test_png_files_can_be_read_by_another_library(shape):
    index = np.random.default_rng(0).integers(0, 16, shape)
    image = plt.imread(io.BytesIO(palette_png(index)), format="png")
    colours = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in PALETTE])
    assert np.allclose(image[..., :3] * 255, colours[index])
    with pytest.raises(InputError):
        palette_png(index + 16)


def test_maps_show_every_activation_and_the_strongest_as_the_brightest():
    codes = np.zeros((9, 2))
    codes[[1, 5, 8], 0] = [10.0, 0.001, 5.0]
    matrix = sparse.csc_array(codes)
    image = plt.imread(io.BytesIO(activation_map(matrix, 0, 3)), format="png")
    dark, bright = image[0, 0], image[0, 1]
    assert not np.allclose(image[1, 2], dark)
    assert bright[:2].sum() > image[2, 2, :2].sum() > image[1, 2, :2].sum()
    assert np.allclose(plt.imread(io.BytesIO(activation_map(matrix, 1, 3)), format="png"), dark)
    assert sum(histogram(matrix, 0)) == 3
    assert sum(histogram(matrix, 1)) == 0
    assert top_rows(matrix, 2).row.tolist() == [[1, 8], [-1, -1]]


def test_context_stays_in_its_document():
    table = pd.DataFrame({"document": [0, 0, 1, 1, 1], "token": ["x", " y", "The", " cat", " sat"]})
    assert context_of(table, 3, 2) == ("The", " cat", " sat")
    assert context_of(table, 1, 5) == ("x", " y", "")
    assert context_of(check_contexts(table[["token"]], 5), 1, 1) == ("x", " y", "The")
    with pytest.raises(InputError, match="token"):
        check_contexts(table[["document"]], 5)
    with pytest.raises(InputError, match="6 rows of activations"):
        check_contexts(table, 6)
