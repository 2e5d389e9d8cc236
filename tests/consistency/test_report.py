"""The assembled report: planted groups, gates, and what is not defined."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from husai.consistency import (
    ConsistencyConfig,
    SAERecord,
    consistency_report,
    pw_mcc,
    seed_interval,
    shared_fraction,
)
from husai.errors import InputError

D, N = 12, 24


def planted(seed: int, architecture: str = "topk", noise: float = 0.2, **fields: Any) -> SAERecord:
    """An SAE that found a common dictionary in its own order, with noise."""
    truth = np.random.default_rng(99).standard_normal((N, D))
    rng = np.random.default_rng([seed, len(architecture)])
    W_dec = (truth + noise * rng.standard_normal(truth.shape))[rng.permutation(N)]
    defaults: dict[str, Any] = {
        "W_enc": W_dec.T.copy(),
        "W_dec_init": rng.standard_normal((N, D)),
        "k": 4,
        "converged": True,
    }
    return SAERecord(f"{architecture}-{seed}", architecture, seed, W_dec, **(defaults | fields))


def covariance() -> NDArray[np.float64]:
    return np.diag(np.r_[np.full(5, 1.0), np.full(D - 5, 1e-4)])


def test_report_gathers_what_the_scores_say() -> None:
    records = [planted(s, a) for a in ("relu", "topk") for s in range(3)]
    report = consistency_report(records, ConsistencyConfig(null_draws=9), covariance=covariance())
    line = report.groups.query(
        "group == 'topk d_sae=24 k=4' and space == 'full' and score == 'pw_mcc' and not signed"
    ).iloc[0]
    topk = records[3:]
    W = np.array([[pw_mcc(a.W_dec, b.W_dec) for b in topk] for a in topk])
    expected = seed_interval(W, bounds=(0, 1))
    assert line["mean"] == pytest.approx(expected.mean)
    assert line["low"] == pytest.approx(expected.low)
    assert line["isotropic_p"] == pytest.approx(1 / 10)
    assert line["init_mean"] == pytest.approx(line["isotropic_mean"], abs=0.05)
    assert line["data_aware_mean"] > line["isotropic_mean"]
    assert line["isotropic_corrected"] == pytest.approx(
        (line["mean"] - line["isotropic_mean"]) / (1 - line["isotropic_mean"])
    )
    pairs = report.pairs.query("score == 'shared_fraction' and signed and space == 'full'")
    assert len(pairs) == 6
    a, b = records[0], records[1]
    assert a.W_enc is not None
    assert b.W_enc is not None
    direct = shared_fraction(a.W_dec, a.W_enc.T, b.W_dec, b.W_enc.T).fraction
    assert pairs["value"].iloc[0] == pytest.approx(direct)
    assert report.saes["inside_data"].between(0, 1).all()
    assert set(report.groups["dimensions"]) == {5, D}
    json.dumps(report.summary, allow_nan=False)


def test_features_say_in_how_many_seeds_they_came_back() -> None:
    records = [planted(s, noise=0.01) for s in range(4)]
    odd = records[3].W_dec.copy()
    odd[:6] = np.random.default_rng(7).standard_normal((6, D))
    records[3] = SAERecord("topk-3", "topk", 3, odd, k=4)
    report = consistency_report(records, ConsistencyConfig(null_draws=2, shared_threshold=0.99))
    features = report.features
    assert len(features) == 4 * N
    lost = features.query("id == 'topk-3'").sort_values("latent")["n_seeds_found"].to_numpy()
    assert (lost[:6] == 0).all()
    assert (lost[6:] == 3).all()
    for seed in range(3):
        assert (features.query(f"id == 'topk-{seed}'")["n_seeds_found"] == 2).sum() == 6


def test_the_gate_is_carried_to_every_table() -> None:
    records = [
        planted(0),
        planted(1),
        planted(2, converged=False),
        planted(5, "relu", converged=None),
    ]
    report = consistency_report(records, ConsistencyConfig(null_draws=2))
    topk = report.groups[report.groups["architecture"] == "topk"]
    assert (topk["converged"] == False).all()  # noqa: E712
    assert (topk["n_converged"] == 2).all()
    assert report.pairs.query("id_b == 'topk-2'")["converged"].eq(False).all()
    assert report.pairs.query("id_b == 'topk-1'")["converged"].eq(True).all()
    assert report.groups.query("architecture == 'relu'")["converged"].isna().all()
    assert report.summary["n_converged"] == 2


def test_one_seed_and_two_seeds_are_not_defined_and_say_why() -> None:
    one = consistency_report([planted(0)], ConsistencyConfig(null_draws=2))
    assert len(one.pairs) == 0
    assert one.groups["reason"].str.contains("one seed").all()
    json.dumps(one.summary, allow_nan=False)
    two = consistency_report([planted(0), planted(1)], ConsistencyConfig(null_draws=2))
    line = two.groups.query("score == 'pw_mcc' and not signed").iloc[0]
    assert line["mean"] > 0.5
    assert "two seeds" in line["reason"]
    assert line["low"] is None or np.isnan(line["low"])


def test_dead_latents_are_a_named_choice() -> None:
    rates = np.ones(N)
    rates[:8] = 0.0
    records = [planted(s, firing_rate=rates) for s in range(3)]
    keep = consistency_report(records, ConsistencyConfig(null_draws=2))
    drop = consistency_report(records, ConsistencyConfig(null_draws=2, dead="drop"))
    assert (keep.saes["n_live"] == N).all()
    assert (drop.saes["n_live"] == N - 8).all()
    direct = pw_mcc(records[0].W_dec[8:], records[1].W_dec[8:])
    got = drop.pairs.query("score == 'pw_mcc' and not signed and id_b == 'topk-1'")["value"]
    assert got.iloc[0] == pytest.approx(direct)
    assert drop.features["latent"].min() == 8
    with pytest.raises(InputError, match="firing_rate is not known"):
        consistency_report([planted(0), planted(1)], ConsistencyConfig(dead="drop"))


def test_an_sae_with_no_live_latent_is_not_defined_and_says_so() -> None:
    records = [planted(0), planted(1), planted(2, W_enc=None)]
    records[2] = SAERecord("topk-2", "topk", 2, np.zeros((N, D)), k=4)
    report = consistency_report(records, ConsistencyConfig(null_draws=2))
    groups = report.groups.query("score == 'pw_mcc'")
    assert groups["reason"].str.contains("topk-2 has no live latent").all()
    fine = report.pairs.query("score == 'pw_mcc' and id_b == 'topk-1'")
    assert fine["value"].notna().all()
    json.dumps(report.summary, allow_nan=False)


def test_records_that_do_not_fit_are_errors() -> None:
    with pytest.raises(InputError, match="no SAE"):
        consistency_report([])
    with pytest.raises(InputError, match="twice"):
        consistency_report([planted(0), planted(0)])
    with pytest.raises(InputError, match="dimensions"):
        consistency_report([planted(0), SAERecord("x", "topk", 1, np.eye(3))])
    with pytest.raises(InputError, match="W_enc"):
        consistency_report([planted(0, W_enc=np.ones((N, D)))])
    with pytest.raises(InputError, match="covariance"):
        consistency_report([planted(0), planted(1)], covariance=np.eye(3))
