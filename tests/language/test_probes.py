"""Probes find planted directions, and the stability of their selections equals its definition."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from husai.errors import InputError
from husai.language import ReadingConfig
from husai.language.config import ProbesConfig
from husai.language.probes import (
    linear_probe,
    matched_overlap,
    probe_saes,
    probe_tasks,
    select_latents,
    selection_stability,
)
from husai.text import TextConfig

HOOK = "blocks.1.hook_out"


def halves(n: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    return np.arange(n) % 2 == 1, generator.permutation(n) < n // 2, generator


def test_a_probe_finds_a_planted_direction_and_is_at_chance_without_one():
    label, test, generator = halves(400)
    noise = generator.normal(size=(400, 300))
    planted = noise.copy()
    planted[:, 7] += np.where(label, 3.0, -3.0)
    assert linear_probe(planted[:, [7]], label, test).accuracy > 0.98
    assert linear_probe(planted, label, test).auc > 0.9  # more features than documents
    nothing = [linear_probe(generator.normal(size=(400, 300)), label, test) for _ in range(8)]
    assert np.mean([fit.accuracy for fit in nothing]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([fit.auc for fit in nothing]) == pytest.approx(0.5, abs=0.05)
    constant = linear_probe(np.ones((400, 3)), label, test)
    assert constant.auc == 0.5


def test_the_probe_is_the_ridge_regression_with_the_least_leave_one_out_error():
    label, test, generator = halves(60)
    x = generator.normal(size=(60, 5)) + 0.5 * label[:, None]
    train = ~test
    z = (x - x[train].mean(0)) / x[train].std(0)
    y = np.where(label, 1.0, -1.0)
    values = np.clip(np.linalg.eigvalsh(z[train] @ z[train].T), 0, None).mean()

    def weights(rows, ridge):
        centre = y[rows].mean()
        own = z[rows] - z[rows].mean(0)
        w = np.linalg.solve(own.T @ own + ridge * values * np.eye(5), own.T @ (y[rows] - centre))
        return w, centre - z[rows].mean(0) @ w

    def left_out(ridge):
        errors = []
        rows = np.flatnonzero(train)
        for one in rows:
            w, b = weights(rows[rows != one], ridge)
            errors.append((y[one] - z[one] @ w - b) ** 2)
        return np.mean(errors)

    ridges = [10.0**power for power in range(-3, 4)]
    w, b = weights(np.flatnonzero(train), min(ridges, key=left_out))
    expected = np.mean((z[test] @ w + b > 0) == label[test])
    assert linear_probe(x, label, test).accuracy == pytest.approx(expected)


def test_the_planted_latents_are_selected():
    label, test, generator = halves(200)
    x = np.abs(generator.normal(size=(200, 40)))
    x[:, 5] += 2 * label
    x[:, 30] += 4 * ~label
    x[:, 12] = 0
    assert set(select_latents(x, label, test, 2)) == {5, 30}
    assert 12 not in select_latents(x, label, test, 39)


def kuncheva(Z):
    """Compute the mean over pairs of Kuncheva's index, for selections of one size."""
    d, k = Z.shape[1], Z[0].sum()
    pairs = [((a & b).sum() - k * k / d) / (k - k * k / d) for a, b in combinations(Z, 2)]
    return np.mean(pairs)


def test_stability_is_the_mean_of_kunchevas_index():
    generator = np.random.default_rng(0)
    Z = np.array([generator.permutation(30) < 6 for _ in range(5)])
    assert selection_stability(Z).value == pytest.approx(kuncheva(Z))
    numbers = [np.flatnonzero(row) for row in Z]
    partner = np.arange(30)
    pairs = [matched_overlap(a, b, partner, 30) for a, b in combinations(numbers, 2)]
    assert np.mean(pairs) == pytest.approx(kuncheva(Z))


def test_stability_is_1_for_equal_selections_and_0_by_chance():
    generator = np.random.default_rng(1)
    same = np.tile(generator.permutation(50) < 5, (4, 1))
    assert selection_stability(same) == pytest.approx((1.0, 1.0, 1.0))
    by_chance = [
        selection_stability([generator.permutation(50) < 5 for _ in range(4)]).value
        for _ in range(300)
    ]
    assert np.mean(by_chance) == pytest.approx(0, abs=0.02)
    with pytest.raises(InputError, match="at least two selections"):
        selection_stability(np.zeros((3, 5), bool))


def test_the_interval_of_the_stability_covers_the_true_value():
    # features with their own chance of being chosen: the truth is the mean of many selections
    generator = np.random.default_rng(2)
    p = np.concatenate([np.full(10, 0.8), np.full(90, 0.05)])
    truth = 1 - (p * (1 - p)).mean() / (p.mean() * (1 - p.mean()))
    covered = []
    for _ in range(200):
        found = selection_stability(generator.random((40, 100)) < p)
        covered.append(found.low <= truth <= found.high)
    assert 0.85 <= np.mean(covered) <= 1.0


def test_seeds_that_are_permutations_of_one_another_select_matched_latents(
    models, text_path, random_sae
):
    model = models["gpt2"]
    text = TextConfig(source=str(text_path), label="label")
    config = ProbesConfig(documents=398, context=16, k=(1, 4, 1000), n_tasks=3)
    tasks = list(probe_tasks(text, config, model))
    assert [task.name for task in tasks] == ["text"]
    assert tasks[0].label.sum() == 199
    assert tasks[0].test.sum() == 200
    saes = {f"same{seed}": random_sae(seed, permuted=True) for seed in (1, 2, 3)}
    saes |= {f"other{seed}": random_sae(seed) for seed in (1, 2, 3)}
    plan = pd.DataFrame(
        [{"sae_id": name, "group": name[:-1], "seed": int(name[-1])} for name in saes]
    )
    reading = ReadingConfig(hook_names=(HOOK,))
    found = probe_saes(model, tasks, plan, saes, (HOOK, "all"), reading, config, progress=False)
    stability: Any = found.stability.set_index(["group", "k"])
    for k in (1, 4):
        assert stability.loc[("same", k), "stability"] == pytest.approx(1)
        assert stability.loc[("same", k), "nogueira"] == pytest.approx(1)
        assert stability.loc[("other", k), "stability"] < 0.5
    summary: Any = found.summary.set_index(["group", "k"])
    # a probe of all latents has no choice that seeds could share
    assert 1000 not in found.stability["k"].tolist()
    assert pd.isna(summary.loc[("same", 1000), "stability"])
    assert summary.loc[("same", 1000), "accuracy"] == summary.loc[("same", 0), "accuracy"]
    # the words of the two labels differ, and the random model keeps a part of that: chance is 0.5
    # with a standard deviation of 0.035
    assert summary.loc[("same", 0), "dense"] > 0.6
    assert summary.loc[("same", 0), "accuracy"] > 0.6
    assert summary.loc[("same", 0), "chance"] == 0.5
    # one dictionary in three orders tells the same
    same = found.probes[(found.probes["group"] == "same") & (found.probes["k"] == 4)]
    assert same["accuracy"].nunique() == 1


def test_missing_labels_and_too_few_documents_give_an_error(models, text_path):
    model = models["gpt2"]
    with pytest.raises(InputError, match="probes need the column of the labels"):
        list(probe_tasks(TextConfig(source=str(text_path)), ProbesConfig(), model))
    text = TextConfig(source=str(text_path), label="label")
    with pytest.raises(InputError, match="has 500 documents of two labels"):
        list(probe_tasks(text, ProbesConfig(documents=1000), model))
