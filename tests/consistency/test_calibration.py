"""Calibration against brute force, planted errors and simulated settings."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from husai.consistency import gt_mcc, pw_mcc
from husai.consistency.calibration import (
    calibrate_scores,
    detector_metrics,
    excess_consistency,
    feature_recovery,
    gate_calibration,
    rank_correlation,
    reproducibility_as_detector,
    reproducible_features,
    truth_scores,
)
from husai.errors import InputError
from husai.tasks import planted_dictionary, song_world

TRUTH = planted_dictionary(song_world(n_features=12, d_in=16)).dictionary.astype(float)


def noisy(rng, rows, noise):
    return rows + noise * rng.standard_normal(rows.shape)


def pair_scores(dictionaries):
    W = np.eye(len(dictionaries))
    for i, j in itertools.combinations(range(len(dictionaries)), 2):
        W[i, j] = W[j, i] = pw_mcc(dictionaries[i], dictionaries[j])
    return W


def test_recovery_of_a_permuted_flipped_scaled_truth_is_perfect():
    rng = np.random.default_rng(0)
    order = rng.permutation(12)
    W = TRUTH[order] * rng.choice([-1, 1], 12)[:, None] * rng.uniform(0.1, 9, 12)[:, None]
    found = feature_recovery(W, TRUTH)
    assert found.rate == {0.8: 1.0, 0.9: 1.0}
    assert found.spurious == {0.8: 0.0, 0.9: 0.0}
    np.testing.assert_array_equal(found.feature, order)
    np.testing.assert_array_equal(found.latent, np.argsort(order))
    scores = truth_scores(W, TRUTH)
    assert scores["gt_mcc"] == pytest.approx(1)
    assert scores["gt_mcc_signed"] < 0.9
    assert scores["uniqueness"] == 1


def test_recovery_counts_missing_and_spurious_features():
    rng = np.random.default_rng(1)
    # 9 true features, one of them twice, and 5 directions far from every truth
    junk = rng.standard_normal((4000, 16))
    cosine = np.abs(junk @ TRUTH.T) / np.linalg.norm(junk, axis=1, keepdims=True)
    junk = junk[cosine.max(axis=1) < 0.5][:5]
    assert len(junk) == 5
    W = np.concatenate([TRUTH[:9], TRUTH[:1], junk])
    found = feature_recovery(W, TRUTH)
    brute = np.abs(TRUTH @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T).max(axis=1)
    np.testing.assert_allclose(found.similarity, brute)
    assert found.rate[0.9] == pytest.approx(9 / 12)
    assert found.spurious[0.9] == pytest.approx(5 / 15)
    assert truth_scores(W, TRUTH)["uniqueness"] <= 14 / 15


def test_detector_metrics_match_counting():
    rng = np.random.default_rng(2)
    n, d_sae = 400, 14
    W = np.concatenate([noisy(rng, TRUTH[:10], 0.02), TRUTH[:2], rng.standard_normal((2, 16))])
    true = rng.standard_normal((n, 12)) * (rng.random((n, 12)) < 0.3)
    codes = np.abs(rng.standard_normal((n, d_sae))) * (rng.random((n, d_sae)) < 0.25)
    codes[:, 3] = 0.0
    codes[:, 4] = np.abs(true[:, 4])  # a perfect detector
    found = detector_metrics(codes, true, W, TRUTH)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    for latent in range(d_sae):
        feature = int(np.abs(unit[latent] @ TRUTH.T).argmax())
        fires, present = codes[:, latent] > 0, true[:, feature] != 0
        hits = int((fires & present).sum())
        precision = hits / fires.sum() if fires.any() else 0.0
        recall = hits / present.sum()
        row = found.latents.iloc[latent]
        assert row["feature"] == feature
        assert row["precision"] == pytest.approx(precision)
        assert row["recall"] == pytest.approx(recall)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert row["f1"] == pytest.approx(f1)
        assert row["false_positive"] == fires.sum() - hits
        assert row["false_negative"] == present.sum() - hits
    assert not found.latents["defined"][3]
    assert found.latents["f1"][4] == 1
    assert found.f1 == pytest.approx(found.latents["f1"].mean())
    # per true feature: the best of those that point at it
    first = found.latents[found.latents["feature"] == 0]["f1"].max()
    assert found.features["f1"][0] == pytest.approx(first)
    np.testing.assert_allclose(found.features["firing_rate"], (true != 0).mean(axis=0))
    # sparse in blocks is the same
    blocks = [slice(0, 150), slice(150, 151), slice(151, n)]
    streamed = detector_metrics(
        lambda: (sparse.csr_array(codes[b]) for b in blocks),
        lambda: (true[b] for b in blocks),
        W,
        TRUTH,
    )
    pd.testing.assert_frame_equal(streamed.latents, found.latents)
    scores = truth_scores(W, TRUTH, codes=codes, true_codes=true)
    assert scores["precision"] == pytest.approx(found.precision)


def test_true_features_without_a_latent_score_zero():
    codes = np.ones((5, 2))
    true = np.ones((5, 12))
    found = detector_metrics(codes, true, TRUTH[:2], TRUTH)
    assert (found.features["latent"][:2] == [0, 1]).all()
    assert (found.features["latent"][2:] == -1).all()
    assert (found.features["f1"][2:] == 0).all()
    assert found.f1 == 1


def test_seeds_that_share_a_wrong_dictionary_are_called_stable_but_wrong():
    rng = np.random.default_rng(3)
    wrong = rng.standard_normal(TRUTH.shape)
    seeds = [noisy(rng, wrong, 0.05) for _ in range(5)]
    gt = [gt_mcc(W, TRUTH) for W in seeds]
    found = excess_consistency(pair_scores(seeds), gt, pw_null=0.4, gt_null=0.4)
    assert found.verdict == "stable but wrong"
    assert found.low > 0


def test_seeds_around_the_truth_are_in_step_or_truer():
    rng = np.random.default_rng(4)
    # independent errors: cos(a, b) ≈ cos(a, truth)², so each is nearer to truth than to another
    seeds = [noisy(rng, TRUTH, 0.12) for _ in range(6)]
    gt = [gt_mcc(W, TRUTH) for W in seeds]
    found = excess_consistency(pair_scores(seeds), gt)
    assert found.verdict == "truer than stable"
    assert found.excess == pytest.approx(np.mean(gt) ** 2 - np.mean(gt), abs=0.03)
    assert excess_consistency(pair_scores(seeds), gt, margin=0.5).verdict == "in step with truth"
    exact = excess_consistency(np.ones((4, 4)), np.ones(4))
    assert exact.verdict == "in step with truth"
    assert exact.excess == 0
    two = excess_consistency(np.ones((2, 2)), np.ones(2))
    assert (two.verdict, two.low) == ("not defined", None)


def test_nulls_keep_different_chance_levels_apart():
    # raw scores equal, but chance is far higher for the truth with many features
    W = np.full((4, 4), 0.7)
    found = excess_consistency(W, np.full(4, 0.7), pw_null=0.3, gt_null=0.6)
    assert found.excess == pytest.approx(0.4 / 0.7 - 0.1 / 0.4)
    assert found.verdict == "stable but wrong"


def test_excess_interval_covers():
    rng = np.random.default_rng(5)
    inside, S, trials = 0, 5, 400
    for _ in range(trials):
        quality = rng.normal(0, 0.03, S)
        W = 0.6 + quality[:, None] + quality[None, :]
        gt = 0.5 + rng.normal(0, 0.02, S)
        found = excess_consistency(W, gt)
        inside += found.low <= 0.1 <= found.high
    # 95 % nominal, ± 4 binomial standard errors
    assert abs(inside / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


def test_reproducible_features_find_what_is_shared_and_true():
    rng = np.random.default_rng(6)
    shared_but_wrong = rng.standard_normal((3, 16))
    seeds = []
    for _ in range(4):
        rows = np.concatenate([TRUTH[:8], shared_but_wrong, rng.standard_normal((3, 16))])
        seeds.append(noisy(rng, rows, 0.01)[rng.permutation(14)])
    table = reproducible_features(seeds, TRUTH)
    assert len(table) == 4 * 14
    result = reproducibility_as_detector(table)
    assert result["recall"] == 1
    assert result["n_passing"] == 4 * 11
    assert result["precision"] == pytest.approx(8 / 11)
    passing = table["reproducibility"] >= 0.9
    is_true = table["truth_similarity"] >= 0.9
    wins = [
        (a > b) + 0.5 * (a == b)
        for a in table["reproducibility"][is_true]
        for b in table["reproducibility"][~is_true]
    ]
    assert result["auc"] == pytest.approx(np.mean(wins))
    assert passing.sum() == result["n_passing"]
    nothing = reproducibility_as_detector(table, reproducible=1.01, true=1.01)
    assert nothing["precision"] is None
    assert nothing["recall"] is None


def test_reproducibility_is_zero_without_a_partner():
    table = reproducible_features([TRUTH, TRUTH[:5]], TRUTH)
    first = table[table["seed"] == 0].set_index("latent")["reproducibility"]
    np.testing.assert_allclose(first[:5], 1)
    np.testing.assert_array_equal(first[5:], 0)


def test_rank_correlation_is_spearman_and_respects_clusters():
    rng = np.random.default_rng(7)
    x = rng.standard_normal(30)
    y = x + rng.standard_normal(30)
    found = rank_correlation(x, y, n_resamples=1000)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    # every observation copied ten times: one cluster each, the interval must not shrink
    copied = rank_correlation(
        np.repeat(x, 10),
        np.repeat(y, 10),
        cluster=np.repeat(np.arange(30), 10).tolist(),
        n_resamples=1000,
    )
    assert copied.n_clusters == 30
    assert copied.high - copied.low == pytest.approx(found.high - found.low, rel=0.15)
    naive = rank_correlation(np.repeat(x, 10), np.repeat(y, 10), n_resamples=300)
    assert naive.high - naive.low < 0.5 * (found.high - found.low)


def test_rank_correlation_interval_covers():
    rng = np.random.default_rng(8)
    # bivariate normal: Spearman's ρ = 6/π·asin(r/2)
    r, trials, inside = 0.6, 150, 0
    expected = 6 / np.pi * np.arcsin(r / 2)
    for trial in range(trials):
        x, e = rng.standard_normal((2, 40))
        found = rank_correlation(x, r * x + np.sqrt(1 - r**2) * e, n_resamples=200, seed=trial)
        inside += found.low <= expected <= found.high
    # percentile intervals are a little short at n = 40
    assert 0.88 <= inside / trials <= 0.99


def test_undefined_rank_correlations_say_why():
    constant = rank_correlation(np.ones(10), np.arange(10))
    assert constant.value is None
    assert "vary" in constant.reason
    few = rank_correlation(np.arange(9), np.arange(9), cluster=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert few.value == pytest.approx(1)
    assert few.low is None
    assert "3 independent clusters" in few.reason


def test_calibrate_scores_slices():
    rng = np.random.default_rng(9)
    n = 60
    truth = rng.random(n)
    settings = pd.DataFrame(
        {
            "gt_mcc": truth,
            "good": truth**3,
            "bad": rng.random(n),
            "backwards_in_b": np.where(np.arange(n) % 2, -truth, truth),
            "run": np.arange(n) // 2,
            "world": np.where(np.arange(n) % 2, "b", "a"),
        }
    )
    table = calibrate_scores(
        settings, ["good", "bad", "backwards_in_b"], within=["world"], n_resamples=50
    )
    value = table.set_index(["score", "slice", "value"])["rank_correlation"]
    assert value["good", "all", ""] == pytest.approx(1)
    assert abs(value["bad", "all", ""]) < 0.4
    assert value["backwards_in_b", "world", "a"] == pytest.approx(1)
    assert value["backwards_in_b", "world", "b"] == pytest.approx(-1)
    # an undefined score leaves its rows out
    settings.loc[::2, "good"] = np.nan
    assert calibrate_scores(settings, ["good"], n_resamples=50)["n"][0] == n // 2


def test_gate_calibration_counts():
    # SAE a: passes while still 0.1 away, then settled; SAE b: held back although settled
    gate = gate_calibration(
        passed=[False, True, True, False, True],
        recovery=[0.5, 0.8, 0.9, 0.7, 0.7],
        final_recovery=[0.9, 0.9, 0.9, 0.7, 0.7],
        sae=["a", "a", "a", "b", "b"],
    )
    assert gate.false_pass_rate == pytest.approx(1 / 3)
    assert gate.false_hold_rate == pytest.approx(1 / 3)
    assert (gate.n_checkpoints, gate.n_passed, gate.n_saes_passed) == (5, 3, 2)
    assert gate.low < 1 / 3 < gate.high
    wilson = stats.binomtest(2, 6).proportion_ci(method="wilson")
    many = gate_calibration([True] * 6, [0, 0, 1, 1, 1, 1], np.ones(6), list("abcdef"))
    assert (many.low, many.high) == pytest.approx((wilson.low, wilson.high))
    none = gate_calibration([False, False], [0.1, 0.2], [0.9, 0.9], [0, 1])
    assert none.false_pass_rate is None
    assert none.false_hold_rate is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_recovery(TRUTH, TRUTH, thresholds=[1.5]), "thresholds: 1.5"),
        (lambda: feature_recovery(TRUTH, TRUTH[:, :8]), "16"),
        (lambda: truth_scores(TRUTH, TRUTH, codes=np.ones((3, 12))), "both or neither"),
        (
            lambda: detector_metrics(np.ones((3, 12)), np.ones((4, 12)), TRUTH, TRUTH),
            "3 rows meets 4",
        ),
        (lambda: detector_metrics(np.ones((3, 5)), np.ones((3, 12)), TRUTH, TRUTH), "widths 5"),
        (lambda: excess_consistency(np.ones((3, 3)), np.ones(2)), "gt_scores"),
        (lambda: excess_consistency(np.ones((3, 3)), np.ones(3), pw_null=1.0), "pw_null"),
        (lambda: reproducible_features([TRUTH], TRUTH), "one seed"),
        (lambda: rank_correlation([1, 2], [1, 2, 3]), "one length"),
        (lambda: rank_correlation([1, np.nan, 3], [1, 2, 3]), "finite"),
        (lambda: calibrate_scores(pd.DataFrame({"a": [1]}), ["a"]), "gt_mcc"),
        (lambda: gate_calibration([True], [np.nan], [1.0], [0]), "NaN"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
