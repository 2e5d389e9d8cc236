"""The plan: every combination once, with ids that depend only on what is trained."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.stats import kstest

from husai.campaign import (
    CampaignConfig,
    Distribution,
    PlanConfig,
    RandomSearch,
    draw_samples,
    plan_saes,
    row_config,
    row_training,
)
from husai.campaign.comparison import ScoreTables, settings_tables
from husai.campaign.plan import UNTRAINED, plan_keys, records
from husai.config import problems
from husai.consistency.config import ConsistencyConfig
from husai.errors import InputError
from husai.hooks.study import StudyConfigLoader
from husai.sae import BankTrainingConfig
from husai.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]


def make_plan(**changes: Any) -> pd.DataFrame:
    fields: dict[str, Any] = {
        "d_sae": (16, 64),
        "seeds": (0, 1, 2),
        "architectures": {"relu": {"l1_coefficient": (1.0, 2.5)}, "topk": {"k": (4,)}},
    }
    return plan_saes(PlanConfig.model_validate({**fields, **changes}))


def test_grid_is_complete_and_ids_are_unique():
    plan = make_plan()
    found = set(zip(plan["group"], plan["init_seed"], strict=True))
    names = [f"relu d{d} l1_{l1}" for d in (16, 64) for l1 in ("1", "2.5")]
    names += [f"topk d{d} k4" for d in (16, 64)]
    assert found == set(itertools.product(names, (0, 1, 2)))
    assert plan["sae_id"].is_unique
    assert (plan["data_seed"] == 0).all()


def test_lists_may_be_text_as_on_the_command_line():
    grid = {"topk": {"k": "2 4"}, "relu": {"l1_coefficient": 1.5}}
    words = make_plan(d_sae="16 64", seeds="0 1", architectures=grid)
    lists = make_plan(
        d_sae=[16, 64],
        seeds=[0, 1],
        architectures={"topk": {"k": [2, 4]}, "relu": {"l1_coefficient": [1.5]}},
    )
    pd.testing.assert_frame_equal(words, lists)
    with pytest.raises(ValueError, match="d_sae"):
        make_plan(d_sae="16;64")


def test_ids_do_not_depend_on_the_rest_of_the_plan():
    small = make_plan(d_sae=(64,), seeds=(1,))
    assert set(small["sae_id"]) < set(make_plan()["sae_id"])


def test_ids_change_with_anything_that_changes_the_training():
    changes: list[dict[str, Any]] = [
        {"options": {"learning_rate": 3e-4}},
        {"hook_name": "blocks.0.hook_resid_mid"},
        {"position": 1},
        {"vary": "data"},
    ]
    ids = [set(make_plan(**change)["sae_id"]) for change in [{}, *changes]]
    # seed 0 is the same SAE whether the initial weights or the rows are varied
    assert len(ids[0] & ids[4]) == 6
    for one, two in itertools.combinations(ids[:4], 2):
        assert not one & two


@pytest.mark.parametrize(
    ("vary", "init", "data"),
    [
        ("init", [0, 1, 2], [7, 7, 7]),
        ("data", [7, 7, 7], [0, 1, 2]),
        ("both", [0, 1, 2], [0, 1, 2]),
    ],
)
def test_seeds_vary_what_the_plan_names(vary, init, data):
    plan = make_plan(vary=vary, fixed_seed=7, d_sae=(16,), architectures={"topk": {"k": (4,)}})
    assert plan["init_seed"].tolist() == init
    assert plan["data_seed"].tolist() == data


def test_configurations_can_be_read_back_from_rows_in_parquet(tmp_path):
    plan = make_plan(options={"init": "data"})
    plan.to_parquet(tmp_path / "plan.parquet")
    again = pd.read_parquet(tmp_path / "plan.parquet")
    for before, after in zip(records(plan), records(again), strict=True):
        assert row_config(before) == row_config(after)
    relu = row_config(records(again)[0])
    assert (relu.architecture, relu.k, relu.l1_coefficient, relu.init) == (
        "relu",
        None,
        1.0,
        "data",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": {"topk": {"k": (20,)}}}, "k: 20 is more than d_sae = 16"),
        ({"architectures": {"topq": {"k": (2,)}}}, "topq"),
        ({"options": {"lr": 1.0}}, "lr"),
        ({"seeds": (1, 1)}, "planned twice"),
    ],
)
def test_bad_combinations_name_the_value(changes, message):
    with pytest.raises(InputError, match=message):
        make_plan(**changes)


def test_two_kinds_of_sparsity_for_one_architecture_are_refused():
    with pytest.raises(ValueError, match="given: k, l1_coefficient"):
        make_plan(architectures={"topk": {"k": (2,), "l1_coefficient": (1.0,)}})


def shipped_plan(changes: dict[str, Any] | None = None) -> pd.DataFrame:
    """Return the plan of conf/campaign as Kedro reads it."""
    arguments: dict[str, Any] = dict(CONFIG_LOADER_ARGS)
    loader = StudyConfigLoader(
        str(PROJECT / "conf"),
        env="campaign",
        runtime_params={"campaign": {"plan": changes}} if changes else None,
        **arguments,
    )
    config = CampaignConfig.model_validate(loader["parameters"]["campaign"])
    return plan_saes(config.plan)


def test_shipped_campaign_is_45_and_12_in_groups_of_three_seeds():
    plan = shipped_plan()
    # the grid once more on the untrained model stands beside it
    assert plan["model"].value_counts().to_dict() == {"trained": 57, "untrained": 27}
    plan = plan[plan["model"] == "trained"]
    grid, variants = plan[plan["variant"] == ""], plan[plan["variant"] != ""]
    assert (len(grid), len(variants)) == (45, 12)
    combinations = set(zip(grid["architecture"], grid["d_sae"], grid["seed"], strict=True))
    assert combinations == set(
        itertools.product(("relu", "topk", "batch_topk"), (16, 64, 256, 1024, 2048), (0, 1, 2))
    )
    assert (plan.groupby("group").size() == 3).all()
    # a variant differs from the grid in what it is called for, and from the other variants
    assert plan["group_digest"].nunique() == 19


def test_shipped_campaign_shrinks_from_the_command_line():
    shrunk = shipped_plan(
        {
            "d_sae": [16],
            "seeds": [0, 1],
            "variants": {"slow": None},
            "architectures": {"relu": None},
        }
    )
    assert shrunk["model"].value_counts().to_dict() == {"trained": 2 * 2 + 3 * 2, "untrained": 4}
    assert len(shipped_plan({"variants": None, "untrained": "none"})) == 45
    assert set(shrunk["sae_id"]) < set(shipped_plan()["sae_id"])


def test_settings_on_the_untrained_model_are_added_to_the_others():
    variants = {"wide": {"architecture": "topk", "d_sae": 128, "options": {"k": 4}}}
    alone = make_plan(variants=variants)
    for choice, groups in (("grid", 6), ("all", 7)):
        plan = make_plan(variants=variants, untrained=choice)
        trained, untrained = (plan[plan["model"] == name] for name in ("trained", "untrained"))
        # those of the trained model keep their names
        assert trained["sae_id"].tolist() == alone["sae_id"].tolist()
        assert untrained["group"].nunique() == groups
        assert not set(untrained["group_digest"]) & set(trained["group_digest"])
        assert set(plan_keys(trained)) == {"blocks.0.hook_resid_post@-1"}
        assert set(plan_keys(untrained)) == {"blocks.0.hook_resid_post@-1@untrained"}
        # the same initial weights and order of rows as their counterparts
        for name, part in untrained.groupby("group"):
            other = trained[trained["group"] == str(name).removesuffix(UNTRAINED)]
            assert [row_config(r) for r in records(part)] == [row_config(r) for r in records(other)]


def test_widths_may_train_differently_and_untrained_ones_be_fewer():
    plan = make_plan(training_by_width={64: {"steps": 9}}, untrained="grid", untrained_d_sae=(16,))
    shared = BankTrainingConfig(steps=7)
    steps = {(row["d_sae"], row_training(row, shared).steps) for row in records(plan)}
    assert steps == {(16, 7), (64, 9)}
    untrained = plan[plan["model"] == "untrained"]
    assert set(untrained["d_sae"]) == {16}
    assert untrained["group"].nunique() == 3
    plan_of_one = make_plan(
        untrained="grid", untrained_d_sae=(16,), untrained_architectures=("topk",)
    )
    untrained = plan_of_one[plan_of_one["model"] == "untrained"]
    assert set(untrained["architecture"]) == {"topk"}
    assert set(untrained["d_sae"]) == {16}
    # another training is another SAE; the others keep their names
    assert set(plan["sae_id"]) & set(make_plan()["sae_id"]) == {
        row["sae_id"] for row in records(make_plan()) if row["d_sae"] == 16
    }
    with pytest.raises(InputError, match="stepz"):
        make_plan(training_by_width={64: {"stepz": 9}})
    with pytest.raises(ValueError, match=r"training_by_width\.-64"):
        make_plan(training_by_width={-64: {}})


def test_a_variant_may_read_another_hook():
    variant = {"architecture": "topk", "d_sae": 64, "options": {"k": 4}, "hook_name": "hook_embed"}
    plan = make_plan(variants={"embed": {**variant, "position": 0}})
    own = plan[plan["variant"] == "embed"]
    assert set(plan_keys(own)) == {"hook_embed@0"}
    assert set(plan_keys(plan[plan["variant"] == ""])) == {"blocks.0.hook_resid_post@-1"}


def test_a_variant_may_vary_something_else_and_train_differently():
    plan = make_plan(
        variants={
            "order": {"architecture": "topk", "d_sae": 64, "vary": "data", "options": {"k": 4}},
            "plain": {
                "architecture": "topk",
                "d_sae": 64,
                "options": {"k": 4},
                "training": {"dead_latents": "none"},
            },
        },
    )
    order = plan[plan["variant"] == "order"]
    assert order["group"].unique().tolist() == ["topk d64 k4 order"]
    assert (order["init_seed"].tolist(), order["data_seed"].tolist()) == ([0, 0, 0], [0, 1, 2])
    shared = BankTrainingConfig(steps=7)
    trained = [row_training(row, shared) for row in records(plan)]
    assert {config.dead_latents for config in trained} == {"auto", "none"}
    assert {config.steps for config in trained} == {7}
    assert [config is shared for config in trained] == [True] * 18 + [True] * 3 + [False] * 3
    # the grid keeps its names whatever stands beside it
    assert make_plan()["sae_id"].tolist() == plan["sae_id"].tolist()[:18]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"init_seed": 3}}, r"plan\.options\.init_seed: 3 .*vary: init"),
        ({"options": {"data_seed": 3}, "vary": "data"}, r"options\.data_seed: 3 .*vary: data"),
        ({"options": {"init_seed": 0}, "vary": "both"}, r"options\.init_seed: 0 .*vary: both"),
        (
            {
                "variants": {
                    "v": {"architecture": "topk", "d_sae": 16, "options": {"k": 4, "init_seed": 3}}
                }
            },
            r"plan\.variants\.v\.options\.init_seed: 3 .*vary: init",
        ),
        (
            {
                "random": {
                    "samples": 1,
                    "fields": {
                        "architecture": {"choice": ["topk"]},
                        "d_sae": {"choice": [16]},
                        "k": {"choice": [4]},
                        "init_seed": {"integer": [1, 9]},
                    },
                }
            },
            r"plan\.random\.fields\.init_seed: .*1, 9.*vary: init",
        ),
    ],
)
def test_a_seed_that_varies_cannot_be_set(changes, message):
    with pytest.raises(InputError, match=message):
        make_plan(**changes)


def test_the_seed_that_does_not_vary_may_be_set():
    plan = make_plan(options={"data_seed": 5}, architectures={"topk": {"k": (4,)}}, d_sae=(16,))
    assert (plan["init_seed"].tolist(), plan["data_seed"].tolist()) == ([0, 1, 2], [5, 5, 5])
    own = shipped_plan().query("variant == 'data_order'")
    assert (own["init_seed"].tolist(), own["data_seed"].tolist()) == ([3, 3, 3], [0, 1, 2])


def make_search(**changes: Any) -> list[dict[str, Any]]:
    fields = {
        "architecture": {"choice": ["relu", "topk"]},
        "d_sae": {"integer": [8, 64]},
        "k": {"integer": [1, 32], "when": "architecture == 'topk'"},
        "l1_coefficient": {"log_uniform": [0.1, 10.0], "when": "architecture == 'relu'"},
        "learning_rate": {"uniform": [1e-4, 1e-3]},
    }
    options = {"samples": 200, "fields": fields, "constraints": ["k <= d_sae / 4"], **changes}
    return draw_samples(RandomSearch.model_validate(options))


def test_random_search_obeys_its_bounds_conditions_and_constraints():
    samples = make_search()
    assert {sample["architecture"] for sample in samples} == {"relu", "topk"}
    for sample in samples:
        assert 8 <= sample["d_sae"] <= 64
        assert ("k" in sample) == (sample["architecture"] == "topk")
        assert ("l1_coefficient" in sample) == (sample["architecture"] == "relu")
        assert sample.get("k", 0) <= sample["d_sae"] / 4
    rates = [sample["learning_rate"] for sample in samples]
    assert kstest(rates, "uniform", (1e-4, 9e-4)).pvalue > 1e-3
    weights = [np.log(s["l1_coefficient"]) for s in samples if "l1_coefficient" in s]
    assert kstest(weights, "uniform", (np.log(0.1), np.log(100.0))).pvalue > 1e-3


def test_a_longer_random_search_begins_with_the_same_settings():
    assert make_search(samples=5) == make_search()[:5]
    assert make_search(seed=1) != make_search()
    search = {
        "samples": 3,
        "fields": {
            "architecture": {"choice": ["topk"]},
            "d_sae": {"integer": [8, 16]},
            "k": {"integer": [1, 4]},
            "training.dead_latents": {"choice": ["none", "resample"]},
        },
    }
    plan = make_plan(random=search, architectures={}, d_sae=())
    assert len(plan) == 9
    assert plan["sae_id"].is_unique
    assert (plan.groupby("group")["group_digest"].nunique() == 1).all()
    methods = {row_training(row, BankTrainingConfig()).dead_latents for row in records(plan)}
    assert methods <= {"none", "resample"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constraints": ["k > 100"], "seed": 3}, "refused 1000 draws"),
        ({"constraints": ["k > 'a'"]}, "condition \"k > 'a'\" with {'k': "),
        ({"constraints": ["q < 3"]}, "condition 'q < 3': no field q is drawn"),
        ({"constraints": ["k <"]}, "condition 'k <'"),
    ],
)
def test_impossible_conditions_are_named(changes, message):
    fields = {"k": {"integer": [1, 32]}}
    with pytest.raises(ValueError, match=message):
        make_search(samples=3, fields=fields, **changes)


def test_a_condition_on_a_field_that_is_drawn_later_is_named():
    later = {"k": {"integer": [1, 4], "when": "a == 'topk'"}, "a": {"choice": ["topk"]}}
    with pytest.raises(ValueError, match=r"fields\.k: .* names a, which is not drawn before k"):
        make_search(fields=later, constraints=[])
    itself = {"training.steps": {"integer": [1, 4], "when": "training_steps > 2"}}
    with pytest.raises(ValueError, match=r"fields\.training\.steps: .* names training_steps"):
        make_search(fields=itself, constraints=[])


def test_choices_of_true_and_false_stay_booleans():
    fields = {
        "training.unit_norm_decoder": {"choice": [True, False]},
        "k": {"choice": [1, 2], "when": "training_unit_norm_decoder"},
    }
    samples = make_search(fields=fields, constraints=[])
    assert {repr(s["training.unit_norm_decoder"]) for s in samples} == {"True", "False"}
    assert all(("k" in s) == s["training.unit_norm_decoder"] for s in samples)
    assert {repr(s["k"]) for s in samples if "k" in s} == {"1", "2"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"integer": (3, 1)}, "must be below the second"),
        ({"log_uniform": (0.0, 1.0)}, "above 0"),
        ({"uniform": (0.0, 1.0), "choice": (1,)}, "exactly one"),
    ],
)
def test_impossible_distributions_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Distribution.model_validate(changes)


def test_a_variant_with_an_unknown_training_field_is_named():
    variant = {"architecture": "topk", "d_sae": 8, "options": {"k": 2}, "training": {"stepz": 3}}
    with pytest.raises(InputError, match=r"odd.*stepz"):
        make_plan(variants={"odd": variant})


@pytest.mark.parametrize(
    "plan",
    [
        {"variants": {"x": {"architecture": "topk", "d_sae": 64, "options": {"k": 10**5000}}}},
        {
            "variants": {
                "x": {"architecture": "relu", "d_sae": 64, "options": {"l1_coefficient": "a"}}
            }
        },
        {"random": {"samples": 2, "fields": {"d_sae": {"integer": [1, 2**70]}}}},
        {"random": {"samples": 2, "fields": {"d_sae": {"choice": [10**5000]}}}},
        {"random": {"samples": 2, "fields": {"l1_coefficient": {"choice": ["a"]}}}},
    ],
)
def test_impossible_values_give_an_error_of_one_line(plan: dict[str, Any]) -> None:
    grid = {"seeds": [0], "d_sae": [16], "architectures": {"topk": {"k": [4]}}}
    with pytest.raises((InputError, ValidationError)) as refused:
        plan_saes(PlanConfig.model_validate({**grid, **plan}))
    error = refused.value
    lines = problems(error) if isinstance(error, ValidationError) else [str(error)]
    assert all(line and "\n" not in line and len(line) < 1000 for line in lines)


def test_a_variant_may_be_a_trained_baseline():
    variant = {"architecture": "topk", "d_sae": 16, "options": {"k": 4}}
    frozen = variant | {"options": {"k": 4, "baseline": "frozen_decoder"}}
    plan = make_plan(architectures={}, d_sae=(), variants={"free": variant, "frozen": frozen})
    found = {row["group"]: row_config(row).baseline for row in records(plan)}
    assert found == {"topk d16 k4 free": "none", "topk d16 k4 frozen": "frozen_decoder"}
    assert plan["sae_id"].is_unique
    # a plan of before this field
    old = records(plan.drop(columns="baseline"))
    assert {row_config(row).baseline for row in old} == {"none"}


def test_a_variant_is_named_only_if_its_settings_are_those_of_another():
    sae = {"architecture": "batch_topk", "d_sae": 64, "options": {"k": 4}}
    longer = {**sae, "training": {"steps": 9}}
    found = make_plan(variants={"batch": sae})["group"].unique()
    assert "batch_topk d64 k4" in found
    found = make_plan(variants={"batch": sae, "longer": longer})["group"].unique()
    assert {"batch_topk d64 k4 batch", "batch_topk d64 k4 longer"} <= set(found)
    same = {"architecture": "topk", "d_sae": 64, "options": {"k": 4}, "vary": "data"}
    assert "topk d64 k4 order" in set(make_plan(variants={"order": same})["group"])


def test_statistics_of_another_version_are_named() -> None:
    plan = make_plan()
    old = pd.DataFrame({"hook_name": ["h"], "position": [-1], "model": ["trained"], "rank": [3.0]})
    empty = pd.DataFrame({"hook": []})
    scores = ScoreTables(empty, empty, empty)
    with pytest.raises(InputError, match="entropy_rank are missing, so another version of husai"):
        settings_tables(plan, scores, old, ConsistencyConfig())
