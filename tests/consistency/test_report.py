"""The assembled report: planted groups, gates, and what is not defined."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from husai.consistency import (
    ConsistencyConfig,
    SAERecord,
    adjust_p,
    code_consistency,
    consistency_report,
    encoder_in_data_metric,
    match_features,
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


def test_the_report_has_the_values_of_the_scores() -> None:
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
    encoders = [encoder_in_data_metric(one.W_enc.T, covariance()) for one in (a, b)]
    direct = shared_fraction(a.W_dec, encoders[0], b.W_dec, encoders[1]).fraction
    assert pairs["value"].iloc[0] == pytest.approx(direct)
    assert report.saes["share_in_data_span"].between(0, 1).all()
    assert set(report.groups["dimensions"]) == {5, D}
    json.dumps(report.summary, allow_nan=False)


def test_features_have_the_number_of_seeds_in_which_they_are_found() -> None:
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


def test_every_table_has_the_verdict_of_the_gate() -> None:
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


def test_dead_latents_are_kept_or_dropped_as_chosen() -> None:
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


def codes_of(record: SAERecord, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    codes = np.maximum(rows @ record.W_dec.T, 0.0)
    codes[codes < np.sort(codes, axis=1)[:, [-4]]] = 0.0
    return np.asarray(codes)


def value(table: Any, column: str, **chosen: Any) -> Any:
    for name, wanted in chosen.items():
        table = table[table[name] == wanted]
    assert len(table) == 1, f"{len(table)} rows"
    return table[column].iloc[0]


def test_codes_are_compared_under_the_match_of_the_decoders() -> None:
    rows = np.random.default_rng(1).standard_normal((300, D))
    records = [planted(s, noise=0.02) for s in range(3)]
    records = [replace(r, codes=codes_of(r, rows)) for r in records]
    report = consistency_report(records, ConsistencyConfig(null_draws=2, code_null_draws=3))
    full = {"space": "full"}
    assert value(report.groups, "mean", score="code_jaccard", **full) > 0.8
    assert value(report.groups, "mean", score="activation_mcc", **full) > 0.8
    assert value(report.groups, "mean", score="code_cka", **full) > 0.9
    shuffled = value(report.groups, "shuffled_mean", score="activation_mcc", **full)
    assert 0 < shuffled < 0.4  # a maximum over many is not 0 by chance
    chance = value(report.groups, "chance_mean", score="code_jaccard", **full)
    assert 0.02 < chance < 0.3
    a, b = records[0], records[1]
    assert a.codes is not None
    assert b.codes is not None
    norms = [np.linalg.norm(r.W_dec, axis=1) for r in (a, b)]
    direct = code_consistency(
        a.codes * norms[0], b.codes * norms[1], match_features(a.W_dec, b.W_dec)
    )
    for score in ("jaccard", "correlation", "r2"):
        got = value(report.pairs, "value", score=f"code_{score}", id_a=a.id, id_b=b.id)
        assert got == pytest.approx(getattr(direct, score))
    assert report.saes["l0"].to_numpy(dtype=float) == pytest.approx(4.0, abs=0.6)
    assert len(report.strata) > 0
    assert report.strata["n_features"].sum() == 3 * N
    other = replace(records[0], codes=np.zeros((5, N)))
    with pytest.raises(InputError, match="rows"):
        consistency_report([other, *records[1:]])
    with pytest.raises(InputError, match="latents"):
        consistency_report([replace(records[0], codes=np.zeros((300, 3))), records[1]])


def test_planes_give_a_table_of_recovery_with_its_nulls() -> None:
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.standard_normal((D, 6)))[0].T.reshape(3, 2, D)
    angles = np.arange(8) * np.pi / 4
    circle = np.concatenate(
        [np.outer(np.cos(angles), p[0]) + np.outer(np.sin(angles), p[1]) for p in axes[:2]]
    )
    records = [SAERecord(f"s{s}", "topk", s, circle[rng.permutation(16)], k=2) for s in range(3)]
    covariance = axes.reshape(6, D).T @ axes.reshape(6, D)
    report = consistency_report(
        records, ConsistencyConfig(null_draws=9), covariance=covariance, planes=axes
    )
    truth = report.truth
    assert value(truth, "mean", measure="recall") == pytest.approx(2 / 3)
    assert value(truth, "mean", measure="in_plane") == 1.0
    assert value(truth, "isotropic_mean", measure="in_plane") < 0.2
    assert value(truth, "isotropic_p", measure="in_plane") == pytest.approx(0.1)
    assert value(truth, "data_aware_mean", measure="mean_rho") > value(
        truth, "isotropic_mean", measure="mean_rho"
    )
    assert len(report.planes) == 9
    assert list(report.planes.query("id == 's0'")["n_features"]) == [8, 8, 0]
    assert report.saes["plane_recall"].to_numpy() == pytest.approx(2 / 3)
    assert (report.saes["gt_mcc_phase_min"] <= report.saes["gt_mcc_phase_max"]).all()
    json.dumps(report.summary, allow_nan=False)


def test_encoders_are_compared_in_the_metric_of_the_data() -> None:
    """What an encoder carries where the data do not vary is blind: it must not count."""
    rng = np.random.default_rng(5)
    cov = np.diag(np.r_[np.full(5, 1.0), np.full(D - 5, 1e-12)])

    def moved(record: SAERecord) -> SAERecord:
        assert record.W_enc is not None
        W_enc = record.W_enc.copy()
        W_enc[5:] = 30 * rng.standard_normal((D - 5, N))
        return replace(record, W_enc=W_enc)

    plain = [planted(s, noise=0.02, fvu=0.1 * s) for s in range(3)]
    blind = [moved(record) for record in plain]
    chosen = {"score": "shared_fraction", "signed": True, "space": "full"}
    found = {}
    for name, records in (("plain", plain), ("blind", blind)):
        for metric in ("data", "raw"):
            config = ConsistencyConfig(null_draws=2, encoder_metric=metric)
            groups = consistency_report(records, config, covariance=cov).groups
            assert value(groups, "encoder_metric", **chosen) == metric
            found[name, metric] = value(groups, "mean", **chosen)
    assert found["blind", "raw"] < 0.1 < 0.9 < found["blind", "data"]
    assert found["blind", "data"] == pytest.approx(found["plain", "data"])
    # without activations the raw rows are all there is, and the table says so
    groups = consistency_report(plain, ConsistencyConfig(null_draws=2)).groups
    assert value(groups, "encoder_metric", **chosen) == "raw"
    assert pd.isna(value(groups, "encoder_metric", **{**chosen, "score": "pw_mcc"}))
    # beside every mean: how many latents it is of, how many come back, how well they reconstruct
    line = groups.query("score == 'pw_mcc'").iloc[0]
    assert (line["n_live"], line["n_everywhere"]) == (N, N)
    assert line["fvu"] == pytest.approx(0.1)


def test_groups_are_compared_over_seeds() -> None:
    close = [planted(s, "relu", noise=0.05, l0=4.0) for s in range(3)]
    loose = [planted(s, "topk", noise=0.6, l0=4.2) for s in range(3)]
    config = ConsistencyConfig(null_draws=2, across_groups=True)
    report = consistency_report(close + loose, config)
    line = report.comparisons.query("score == 'pw_mcc' and not signed").iloc[0]
    assert line["group_a"].startswith("relu")
    assert line["low"] > 0
    assert line["least_p"] == pytest.approx(0.1)
    assert line["permutation_p"] == pytest.approx(0.1)
    assert bool(line["matched_l0"])
    across = report.pairs.query("not within and score == 'pw_mcc' and not signed")
    assert len(across) == 9
    alone = consistency_report(close + loose, ConsistencyConfig(null_draws=2))
    assert alone.pairs["within"].all()
    assert alone.comparisons["permutation_p"].isna().all()
    same = alone.comparisons.query("score == 'pw_mcc' and not signed").iloc[0]
    assert same["difference"] == pytest.approx(line["difference"])


def test_adjusted_p_values_are_those_of_the_family() -> None:
    records = [planted(s, a) for a in ("batch_topk", "relu", "topk") for s in range(3)]
    report = consistency_report(records, ConsistencyConfig(null_draws=4))
    family = report.groups.query("score == 'pw_mcc' and not signed")
    assert len(family) == 3
    expected = adjust_p(family["isotropic_p"].astype(float).tolist())
    assert family["isotropic_p_adjusted"].astype(float).tolist() == pytest.approx(expected)


def test_tables_of_seeds_and_of_retention() -> None:
    report = consistency_report(
        [planted(s, noise=0.05) for s in range(4)], ConsistencyConfig(null_draws=2)
    )
    line = report.seeds.iloc[0]
    assert line["path_method"] == "exact"
    assert line["path_mean"] >= line["pair_mean"]
    assert line["cycle_fraction"] == 1.0
    assert line["cycle_isotropic"] < 0.8
    assert list(report.retention["hops"]) == [1, 2, 3]
    assert (report.retention["retention"] == 1.0).all()


def test_any_number_of_workers_gives_the_same_tables() -> None:
    records = [planted(s) for s in range(3)]
    one = consistency_report(records, ConsistencyConfig(null_draws=3), covariance=covariance())
    two = consistency_report(
        records, ConsistencyConfig(null_draws=3, workers=3), covariance=covariance()
    )
    for name, table in one.tables().items():
        assert table.equals(two.tables()[name]), name
