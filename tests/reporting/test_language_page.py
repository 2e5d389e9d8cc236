"""The page of a language model's study agrees with its tables, on small tables."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from husai.errors import InputError
from husai.figures.language import language_figure
from husai.reporting.language_page import (
    by_density,
    by_probe,
    chosen_latents,
    examples,
    finding,
    metrics_by_group,
    own_features,
)


def features():
    rows = [
        {
            "hook": hook, "space": space, "group": "g", "id": f"s{seed}", "latent": latent,
            "n_other_seeds": 2, "n_seeds_found": latent % 3, "firing_rate": 10.0 ** -(latent + 1),
            "reproducibility": latent / 4 + seed / 100,
        }
        for hook in ("h@all", "other@all")
        for space in ("full", "data")
        for seed in range(3)
        for latent in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_features_are_projected_from_all_dimensions_of_the_hook():
    own = own_features(features(), "h@all")
    assert len(own) == 12
    assert own["everywhere"].tolist() == [False, False, True, False] * 3


def test_classes_of_density_hold_every_feature_that_fires():
    table = by_density(own_features(features(), "h@all"), 0.95)
    assert table["features"].sum() == pytest.approx(4)
    row = table[table["density"] == "0.001 to 0.01"].iloc[0]
    assert row["features"] == 1
    # latent 1 fires on 0.01 of the tokens
    assert row["reproducibility"] == pytest.approx(0.26)
    assert row["reproducibility_low"] < 0.26 < row["reproducibility_high"]


def test_chosen_latents_come_from_the_probes_of_the_trained_model():
    probes = pd.DataFrame(
        [
            {"sae_id": "s0", "k": 5, "model": "trained", "selected": json.dumps([1])},
            {"sae_id": "s0", "k": 16, "model": "trained", "selected": json.dumps([1, 2])},
            {"sae_id": "s1", "k": 16, "model": "trained", "selected": json.dumps([3])},
            {"sae_id": "u0", "k": 16, "model": "untrained", "selected": json.dumps([0])},
            {"sae_id": "s0", "k": 0, "model": "trained", "selected": "[]"},
        ]
    )
    chosen, k = chosen_latents(probes)
    assert k == 16
    assert chosen == {("s0", 1), ("s0", 2), ("s1", 3)}
    table = by_probe(own_features(features(), "h@all"), chosen, 0.95).set_index("kind")
    assert table.loc["chosen by a probe", "reproducibility"] == pytest.approx(
        np.mean([(0.25 + 0.5) / 2, 0.75 + 0.01])
    )
    assert table.loc["chosen by a probe", "everywhere"] == pytest.approx(np.mean([0.5, 0]))
    assert table.loc["all others", "features"] == pytest.approx(np.mean([2, 3, 4]))
    # no other feature fires as often as a chosen one
    assert "others that fire as often" not in table.index


def test_others_are_weighted_so_that_they_fire_as_often_as_the_chosen():
    rates = [0.1] * 4 + [0.001] * 6  # of ten features an SAE, three that fire often are chosen
    rows = [
        {
            "group": "g", "id": f"s{seed}", "latent": latent, "firing_rate": rate,
            "reproducibility": 0.9 if latent < 3 else rate, "everywhere": latent < 4,
        }
        for seed in range(2)
        for latent, rate in enumerate(rates)
    ]  # fmt: skip
    chosen = {("s0", 0), ("s0", 1), ("s0", 4), ("s1", 0)}
    table = by_probe(pd.DataFrame(rows), chosen, 0.95).set_index("kind")
    # s0: two chosen beside two others at 0.1, one beside five at 0.001; s1: one beside three
    first = (2 * np.mean([0.9, 0.1]) + 1 * 0.001) / 3
    second = np.mean([0.9, 0.9, 0.1])
    alike = table.loc["others that fire as often"]
    assert alike["reproducibility"] == pytest.approx(np.mean([first, second]))
    assert alike["everywhere"] == pytest.approx(np.mean([2 / 3, 1]))


def test_metrics_that_were_not_measured_are_left_out():
    metrics = pd.DataFrame(
        {
            "sae_id": list("abcd"), "group": ["g", "g", "u", "u"], "seed": [0, 1, 0, 1],
            "d_sae": 4, "model": ["trained", "trained", "untrained", "untrained"],
            "l0": [2.0, 4.0, 1.0, 1.0], "ce_loss_score": [0.8, 1.0, np.nan, np.nan],
        }
    )  # fmt: skip
    trained, untrained = metrics_by_group(metrics, 0.95)
    assert trained["ce_loss_score"] == pytest.approx(0.9)
    assert trained["l0_low"] < 3 < trained["l0_high"]
    assert "ce_loss_score" not in untrained


def test_examples_are_spread_over_densities_and_safe_in_a_table():
    own = own_features(features(), "h@all")
    contexts = pd.DataFrame(
        {
            "sae_id": "s0", "latent": [0, 0, 0, 2], "rank": [1, 0, 2, 0],
            "text": ["second", "a | b_c «d*» <e>", "third", "only"],
        }
    )  # fmt: skip
    table = examples(own, contexts)
    # of s0: latent 2 is found in both other seeds, 0 and 3 in none
    assert table["found"].tolist() == ["in every other seed", "in none", "in none"]
    assert table["first"].tolist() == ["only", r"a \| b\_c **«d\*»** \<e\>", ""]
    assert table["second"].tolist() == ["", "second", ""]
    assert table["firing_rate"].tolist() == pytest.approx([1e-3, 1e-1, 1e-4])
    # every feature is found in some other seed
    found = own[own["n_seeds_found"] > 0]
    assert set(examples(found, contexts)["found"]) == {"in every other seed"}


def test_the_picture_has_every_group_and_class():
    own = own_features(features(), "h@all")
    twin = own.assign(group="g untrained")
    table = by_density(pd.concat([own, twin]), 0.95)
    probed = by_probe(own, {("s0", 1)}, 0.95)
    figure = language_figure(table, probed, ("g untrained",), least=1)
    figure.draw_without_rendering()
    left, right = figure.axes
    lines = {container.get_label(): container[0] for container in left.containers}
    assert set(lines) == {"g", "g untrained"}
    for group, line in lines.items():
        part = table[table["group"] == group].set_index("density")["everywhere"]
        ticks = [text.get_text().replace("\n", " ") for text in left.get_xticklabels()]
        found = np.asarray(line.get_ydata(), float)
        np.testing.assert_allclose(found, part.reindex(ticks).to_numpy(float))
    assert lines["g untrained"].get_markerfacecolor() == "none"
    assert [text.get_text() for text in right.get_yticklabels()] == ["g"]  # the other is not probed
    with pytest.raises(InputError, match="by_probe: no row"):
        language_figure(table, probed.iloc[:0])


def test_the_finding_names_the_groups_that_come_back_most_and_least():
    rows: list[dict[str, Any]] = [
        {"group": "topk", "everywhere": 0.1, "converged": False},
        {"group": "relu", "everywhere": 0.4, "converged": True},
        {"group": "batch", "everywhere": 0.2, "converged": pd.NA},
        {"group": "one seed", "everywhere": None, "converged": True},
        {"group": "batch untrained", "everywhere": 0.02},
        {"group": "topk untrained", "everywhere": 0.01},
    ]
    found = finding(rows, {"topk untrained", "batch untrained"})
    assert found is not None
    assert (found.most["group"], found.least["group"]) == ("relu", "topk")
    assert found.twin is rows[-1]
    assert (found.n_groups, found.n_settled, found.n_unknown) == (3, 1, 1)
    assert finding(rows[3:], {"topk untrained", "batch untrained"}) is None


def test_classes_of_few_features_are_not_drawn():
    own = own_features(features(), "h@all")
    table = by_density(own, 0.95)
    table.loc[table["density"] == "0.001 to 0.01", "features"] = 50
    figure = language_figure(table, by_probe(own, {("s0", 1)}, 0.95))
    assert [t.get_text().replace("\n", " ") for t in figure.axes[0].get_xticklabels()] == [
        "0.001 to 0.01"
    ]
