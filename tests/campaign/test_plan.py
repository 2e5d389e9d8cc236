"""The plan: every combination once, with names that depend on what is trained and nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest

from husai.campaign import PlanConfig, plan_saes, row_config
from husai.campaign.plan import records
from husai.errors import InputError


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
def test_seeds_vary_what_they_are_told_to(vary, init, data):
    plan = make_plan(vary=vary, fixed_seed=7, d_sae=(16,), architectures={"topk": {"k": (4,)}})
    assert plan["init_seed"].tolist() == init
    assert plan["data_seed"].tolist() == data


def test_rows_give_their_configurations_back_after_parquet(tmp_path):
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


def test_one_sparsity_an_architecture():
    with pytest.raises(ValueError, match="given: k, l1_coefficient"):
        make_plan(architectures={"topk": {"k": (2,), "l1_coefficient": (1.0,)}})
