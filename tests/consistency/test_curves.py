"""Curves at matched L0, over training, and beside published numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.consistency import (
    against_width,
    at_matched_l0,
    beside_published,
    consistency_over_training,
    orderings_beside_published,
    published_numbers,
    pw_mcc,
)
from husai.errors import InputError


def points() -> pd.DataFrame:
    # linear in log L0, so that interpolation is exact
    rows = []
    for name, shift, values in (("topk", 0.1, (2, 8, 32)), ("relu", 0.0, (4, 16, 64))):
        for l0 in values:
            score = 0.2 + shift + 0.1 * np.log(l0)
            rows.append(
                {
                    "architecture": name,
                    "l0": l0,
                    "mean": score,
                    "low": score - 0.02,
                    "high": score + 0.02,
                }
            )
    return pd.DataFrame(rows)


def test_scores_are_read_at_common_l0_within_what_was_measured() -> None:
    got = at_matched_l0(points(), n_points=5)
    assert got["l0"].min() == pytest.approx(4.0)
    assert got["l0"].max() == pytest.approx(32.0)
    wide = got.pivot(index="l0", columns="architecture", values="mean").astype(float)
    np.testing.assert_allclose(wide["topk"] - wide["relu"], 0.1)
    np.testing.assert_allclose(wide["relu"], 0.2 + 0.1 * np.log(wide.index.to_numpy()))
    outside = at_matched_l0(points(), l0=[1.0, 40.0])
    topk = outside[outside["architecture"] == "topk"]
    assert topk["mean"].isna().all()
    assert topk["reason"].str.contains("measured from L0 2 to 32").all()
    assert outside.query("architecture == 'relu' and l0 == 40")["reason"].iloc[0] == ""


def test_orderings_say_where_they_agree_and_whether_it_is_more_than_noise() -> None:
    table = at_matched_l0(points(), n_points=3)
    got = orderings_beside_published({"pw_mcc": table, "shared_fraction": table})
    song = got.query(
        "source.str.startswith('Song') and paper_lower == 'relu' and paper_higher == 'topk'"
    )
    assert song["agrees"].all()
    assert song["separated"].all()
    paulo = got[got["source"].str.startswith("Paulo")]
    assert not paulo["agrees"].any()
    assert got[got["paper_higher"] == "gated"]["reason"].eq("not both measured here").all()


def test_no_difference_is_a_tie() -> None:
    table = at_matched_l0(points(), n_points=3).assign(mean=0.5, low=0.4, high=0.6)
    got = orderings_beside_published({"pw_mcc": table})
    measured = got[got["reason"] == ""]
    assert len(measured)
    assert measured["difference"].eq(0).all()
    assert measured["agrees"].isna().all()


def test_published_numbers_carry_their_source_and_nothing_is_like_for_like() -> None:
    printed = published_numbers()
    assert printed["source"].str.contains("arXiv").all()
    assert printed["value"].between(0, 1).all()
    song = printed[printed["model"].str.startswith("Pythia-160M, layer 8")].set_index(
        "architecture"
    )
    assert song["value"].to_dict() == {
        "topk": 0.8181,
        "batch_topk": 0.7656,
        "gated": 0.7370,
        "jumprelu": 0.4947,
        "relu": 0.4739,
    }
    groups = points().assign(space="full", score="pw_mcc", signed=False, d_sae=64, converged=True)
    got = beside_published(groups, model="a grokked transformer")
    assert (got["source"] == "this study").sum() == len(groups)
    assert set(got[got["source"] != "this study"]["like_for_like"]) == {"no"}
    assert (got[got["like_for_like"] == "no"]["differs_in"].str.len() > 0).all()
    with pytest.raises(InputError, match="missing"):
        beside_published(groups.drop(columns="signed"), model="x")


def test_scores_over_training_and_their_nulls() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((10, 8))
    inits = [rng.standard_normal((10, 8)) for _ in range(3)]
    steps = {
        step: [(1 - t) * W0 + t * truth for W0 in inits]
        for step, t in ((0, 0.0), (100, 0.5), (1000, 0.95))
    }
    got = consistency_over_training(steps, inits=inits, covariance=np.eye(8), n_draws=30)
    assert list(got["step"]) == [0, 100, 1000]
    assert got["mean"].is_monotonic_increasing
    assert got["cosine_to_init"].iloc[0] == pytest.approx(1.0)
    assert got["cosine_to_init"].is_monotonic_decreasing
    assert got["mean"].iloc[0] == pytest.approx(got["isotropic_mean"].iloc[0], abs=0.08)
    assert got["data_aware_mean"].iloc[0] == pytest.approx(got["isotropic_mean"].iloc[0], abs=0.03)
    last = [pw_mcc(steps[1000][i], steps[1000][j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert got["mean"].iloc[-1] == pytest.approx(np.mean(last))
    with pytest.raises(InputError, match="same seeds"):
        consistency_over_training({0: inits, 1: inits[:2]})


def test_width_in_units_of_the_datas_rank() -> None:
    groups = pd.DataFrame({"d_sae": [64, 16, 32], "mean": [0.1, 0.3, 0.2]})
    got = against_width(groups, 8.0)
    assert list(got["width_ratio"]) == [2.0, 4.0, 8.0]
    assert list(got["mean"]) == [0.3, 0.2, 0.1]
    with pytest.raises(InputError, match="effective_rank"):
        against_width(groups, 0.0)


def test_curves_without_points_are_errors() -> None:
    with pytest.raises(InputError, match="missing"):
        at_matched_l0(points().drop(columns="l0"))
    with pytest.raises(InputError, match="no row"):
        at_matched_l0(points().assign(l0=np.nan))
    with pytest.raises(InputError, match="not positive"):
        at_matched_l0(points().assign(l0=0.0))
