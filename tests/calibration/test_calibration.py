"""Calibration against brute force, planted errors and simulated settings."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from husai.calibration.clusters import clustered_share
from husai.calibration.detectors import reproducibility_as_detector, reproducible_features
from husai.calibration.excess import excess_consistency
from husai.calibration.gate import gate_calibration
from husai.calibration.ranking import calibrate_scores, rank_correlation, within_run_correlation
from husai.calibration.scores import truth_scores
from husai.consistency import gt_mcc, plane_recovery, pw_mcc
from husai.consistency.analyses.truth import axis_recovery_chance
from husai.consistency.scores.truth import detector_metrics, feature_recovery
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
    assert scores["truth_uniqueness"] == 1


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
    assert truth_scores(W, TRUTH)["truth_uniqueness"] <= 14 / 15


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


def test_seeds_with_small_errors_are_in_step_with_truth_or_truer_than_stable():
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


def test_scores_with_different_chance_levels_are_compared_above_their_nulls():
    # raw scores equal, but chance is far higher for the truth with many features
    W = np.full((4, 4), 0.7)
    found = excess_consistency(W, np.full(4, 0.7), pw_null=0.3, gt_null=0.6)
    assert found.excess == pytest.approx(0.4 / 0.7 - 0.1 / 0.4)
    assert found.verdict == "stable but wrong"


def test_no_verdict_if_the_scores_count_different_features():
    found = excess_consistency(np.ones((4, 4)), np.full(4, 0.5), n_latents=12, n_true=8)
    assert (found.verdict, found.excess, found.low) == ("not comparable", None, None)
    assert "12 latents" in found.reason
    assert "8 pairs" in found.reason
    same = excess_consistency(np.ones((4, 4)), np.full(4, 0.5), n_latents=12, n_true=12)
    assert (same.verdict, same.reason) == ("stable but wrong", "")


def test_interval_of_the_excess_covers_the_true_value():
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


def test_reproducible_features_finds_features_that_are_shared_and_true():
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


def test_detector_intervals_resample_whole_clusters():
    rng = np.random.default_rng(10)
    # clusters of 40 latents that differ in how many of the reproduced are true
    quality = rng.uniform(0.2, 0.9, 12)
    cluster = np.repeat(np.arange(12), 40)
    table = pd.DataFrame(
        {
            "reproducibility": rng.uniform(0.5, 1, 480),
            "truth_similarity": np.where(rng.random(480) < quality[cluster], 0.95, 0.3),
            "cluster": cluster,
        }
    )
    found = reproducibility_as_detector(table, cluster="cluster", n_resamples=1000)
    passing = table[table["reproducibility"] >= 0.9]
    draws: dict[str, list[Any]] = {"precision": [], "recall": [], "auc": []}
    parts = [part for _, part in table.groupby("cluster")]
    for _ in range(500):
        drawn = pd.concat([parts[c] for c in rng.integers(12, size=12)])
        one = reproducibility_as_detector(drawn)
        for name, values in draws.items():
            values.append(one[name])
    for name, values in draws.items():
        brute = np.quantile(values, [0.025, 0.975])
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert (low, high) == pytest.approx(tuple(brute), abs=0.03)
    assert found["n_clusters"] == 12
    # latents taken for independent would give an interval that is far too short
    n_true = int((passing["truth_similarity"] > 0.9).sum())
    naive = stats.binomtest(n_true, len(passing)).proportion_ci()
    assert found["precision_high"] - found["precision_low"] > 1.3 * (naive.high - naive.low)
    few = reproducibility_as_detector(table[table["cluster"] < 3], cluster="cluster")
    assert few["precision_low"] is None
    assert "3 independent clusters" in few["reason"]
    assert reproducibility_as_detector(table)["precision_low"] is None


def test_reproducible_features_keep_the_names_of_the_seeds():
    rng = np.random.default_rng(11)
    seeds = [noisy(rng, TRUTH, noise) for noise in (0.02, 0.05, 2.0)]
    by_position = reproducible_features(seeds, TRUTH)
    named = reproducible_features(seeds, TRUTH, seeds=[0, 2, 7])
    assert named["seed"].unique().tolist() == [0, 2, 7]
    pd.testing.assert_frame_equal(named.drop(columns="seed"), by_position.drop(columns="seed"))
    with pytest.raises(InputError, match="seeds: "):
        reproducible_features(seeds, TRUTH, seeds=[0, 0, 1])


def test_reproducibility_is_zero_without_a_partner():
    table = reproducible_features([TRUTH, TRUTH[:5]], TRUTH)
    first = table[table["seed"] == 0].set_index("latent")["reproducibility"]
    np.testing.assert_allclose(first[:5], 1)
    np.testing.assert_array_equal(first[5:], 0)


def test_rank_correlation_is_spearmans_and_respects_clusters():
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


def test_rank_correlation_resamples_whole_clusters():
    rng = np.random.default_rng(12)
    cluster = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 8])
    x = rng.integers(6, size=len(cluster)).astype(float)  # ties
    y = np.round(x + rng.standard_normal(8)[cluster] * 2 + rng.standard_normal(len(x)), 1)
    found = rank_correlation(x, y, cluster=cluster.tolist(), n_resamples=4000)
    draws = []
    for _ in range(1000):
        index = np.concatenate([np.flatnonzero(cluster == c) for c in rng.integers(8, size=8)])
        draws.append(stats.spearmanr(x[index], y[index]).statistic)
    brute = np.nanquantile(draws, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(brute), abs=0.05)


def test_within_run_correlation_is_not_hidden_by_differences_between_runs():
    # within every run the score falls as truth rises, over all settings it rises with it
    rows = [
        {"run": f"{c}{r}", "cluster": c, "gt_mcc": c + 0.1 * t, "score": c - 0.1 * t, "flat": 1.0}
        for c in range(6)
        for r in range(3)
        for t in range(3)
    ]
    settings = pd.DataFrame(rows)
    over_all = calibrate_scores(settings, ["score"], n_resamples=50)
    assert over_all["rank_correlation"][0] > 0.8
    table = within_run_correlation(settings, ["score", "flat"], run="run", n_resamples=50)
    assert table["rank_correlation"][0] == pytest.approx(-1)
    assert (table["n"][0], table["n_clusters"][0], table["reason"][0]) == (18, 6, "")
    assert (table["low"][0], table["high"][0]) == (pytest.approx(-1), pytest.approx(-1))
    assert table["n"][1] == 0
    assert "no run" in table["reason"][1]
    two = within_run_correlation(settings[settings["gt_mcc"] % 1 < 0.15], ["score"], run="run")
    assert two["n"][0] == 0


def test_rank_correlation_interval_covers_the_true_value():
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


def test_calibrate_scores_gives_a_row_for_every_slice():
    rng = np.random.default_rng(9)
    n = 60
    truth = rng.random(n)
    settings = pd.DataFrame(
        {
            "gt_mcc": truth,
            "good": truth**3,
            "bad": rng.random(n),
            "backwards_in_b": np.where(np.arange(n) % 2, -truth, truth),
            "cluster": np.arange(n) // 2,
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


def test_gate_calibration_counts_right_and_wrong_verdicts():
    # passed: two of three settled; settled: one of three held back
    gate = gate_calibration(
        passed=[False, True, True, False, True],
        recovery=[0.5, 0.8, 0.9, 0.7, 0.7],
        final_recovery=[0.9, 0.9, 0.9, 0.7, 0.7],
        cluster=["a", "a", "a", "b", "b"],
    )
    assert gate.false_pass.value == pytest.approx(1 / 3)
    assert gate.false_hold.value == pytest.approx(1 / 3)
    assert (gate.n, gate.false_pass.n, gate.false_hold.n) == (5, 3, 3)
    assert gate.false_pass.low < 1 / 3 < gate.false_pass.high
    # that recovery fell is no settling either
    fell = gate_calibration([True], [0.9], [0.5], ["a"])
    assert fell.false_pass.value == 1
    none = gate_calibration([False, False], [0.1, 0.2], [0.9, 0.9], [0, 1])
    assert none.false_pass.value is None
    assert none.false_hold.value is None


def test_clustered_share_lies_between_two_wilson_intervals():
    def wilson(k, n):
        interval = stats.binomtest(k, n).proportion_ci(method="wilson")
        return pytest.approx((interval.low, interval.high))

    # every observation its own cluster: Wilson on all
    alone = clustered_share([True] * 20 + [False] * 20, list(range(40)))
    assert (alone.low, alone.high) == wilson(20, 40)
    # clusters that agree wholly: Wilson on the clusters
    whole = clustered_share(np.repeat([True, False], 50), np.repeat(np.arange(10), 10).tolist())
    assert (whole.n, whole.n_clusters) == (100, 10)
    assert whole.n_effective == 10
    assert (whole.low, whole.high) == wilson(5, 10)
    # clusters that are alike: Wilson on all
    alike = clustered_share([True, False] * 50, np.repeat(np.arange(10), 10).tolist())
    assert (alike.low, alike.high) == wilson(50, 100)
    # none at all: a rate of 0 with as many observations as clusters, never [0, 0]
    none = clustered_share([False] * 100, np.repeat(np.arange(10), 10).tolist())
    assert none.value == 0
    assert (none.low, none.high) == wilson(0, 10)


def test_clustered_share_covers_the_truth_and_wilson_on_all_does_not():
    rng = np.random.default_rng(13)
    trials, p = 400, 0.3
    inside: list[bool] = []
    naive: list[bool] = []
    cluster = np.repeat(np.arange(16), 20)
    for _ in range(trials):
        # beta-binomial: mean 0.3, clusters of very different rates
        rate = rng.beta(0.6, 1.4, 16)
        success = rng.random(320) < rate[cluster]
        found = clustered_share(success, cluster.tolist())
        inside.append(bool(found.low <= p <= found.high))
        wilson = stats.binomtest(int(success.sum()), 320).proportion_ci(method="wilson")
        naive.append(bool(wilson.low <= p <= wilson.high))
    assert np.mean(inside) > 0.9
    assert np.mean(naive) < 0.7


def test_chance_for_axes_equals_that_of_rotated_latents():
    rng = np.random.default_rng(14)
    planes = np.linalg.qr(rng.standard_normal((3, 10, 2)))[0].transpose(0, 2, 1)
    rho = [0.95, 1.0, 0.92, 0.97]
    of_plane = [0, 0, 1, 1]

    def dictionary():
        angle = rng.uniform(0, 2 * np.pi, 4)
        rows = []
        for phase, r, k in zip(angle, rho, of_plane, strict=True):
            inside = np.cos(phase) * planes[k, 0] + np.sin(phase) * planes[k, 1]
            out = rng.standard_normal(10)
            out -= planes[k].T @ (planes[k] @ out)
            rows.append(r * inside + np.sqrt(1 - r**2) * out / np.linalg.norm(out))
        return np.array(rows)

    axes = planes.reshape(6, 10)
    drawn = [feature_recovery(dictionary(), axes, thresholds=[0.9]).rate[0.9] for _ in range(1500)]
    chance = axis_recovery_chance(plane_recovery(dictionary(), planes, threshold=0.9))
    assert chance == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(1500))
    far = np.linalg.svd(axes)[2][6:]  # orthogonal to every plane: nothing is in one
    assert axis_recovery_chance(plane_recovery(far, planes, threshold=0.9)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_recovery(TRUTH, TRUTH, thresholds=[1.5]), "thresholds: 1.5"),
        (lambda: feature_recovery(TRUTH, TRUTH[:, :8]), "16"),
        (lambda: truth_scores(TRUTH, TRUTH, codes=np.ones((3, 12))), "both or neither"),
        (
            lambda: detector_metrics(np.ones((3, 12)), np.ones((4, 12)), TRUTH, TRUTH),
            "has 3 rows",
        ),
        (lambda: detector_metrics(np.ones((3, 5)), np.ones((3, 12)), TRUTH, TRUTH), "widths 5"),
        (lambda: excess_consistency(np.ones((3, 3)), np.ones(2)), "gt_scores"),
        (lambda: excess_consistency(np.ones((3, 3)), np.ones(3), pw_null=1.0), "pw_null"),
        (lambda: reproducible_features([TRUTH], TRUTH), "one seed"),
        (lambda: rank_correlation([1, 2], [1, 2, 3]), "one length"),
        (lambda: rank_correlation([1, np.nan, 3], [1, 2, 3]), "finite"),
        (lambda: calibrate_scores(pd.DataFrame({"a": [1]}), ["a"]), "gt_mcc"),
        (lambda: gate_calibration([True], [np.nan], [1.0], [0]), "NaN"),
        (lambda: clustered_share([True], []), "differ"),
        (
            lambda: within_run_correlation(pd.DataFrame({"a": [1]}), ["a"], run="run"),
            "run, gt_mcc, cluster",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
