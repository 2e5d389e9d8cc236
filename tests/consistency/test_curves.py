"""Curves over training, settings at matched L0, and comparison with published numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.consistency import (
    against_width,
    beside_published,
    consistency_over_training,
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


def test_published_numbers_have_their_source_and_are_marked_as_not_comparable() -> None:
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
