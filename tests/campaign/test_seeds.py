"""How many seeds a plan needs: from an earlier run if there is one, else from the pilot."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.campaign import plan_saes
from husai.campaign.plan import PlanConfig
from husai.campaign.seeds import planned_seeds, seeds_text
from husai.consistency.inference.planning import (
    VarianceComponents,
    seeds_for_half_width,
    seeds_to_separate,
    variance_components,
)
from husai.consistency.study import planning

PILOT = pd.DataFrame(
    {
        "architecture": ["topk", "topk", "relu"],
        "d_sae": [16, 256, 256],
        "pw_mcc": [0.63, 0.86, 0.88],
        "seed_sd": [0.05, 0.01, 0.02],
        "pair_sd": [0.04, 0.01, 0.01],
        "n_seeds": [6, 6, 6],
        "n_transformers": [8, 8, 8],
    }
)


def plan() -> pd.DataFrame:
    return plan_saes(
        PlanConfig.model_validate(
            {
                "architectures": {"topk": {"k": [4]}, "jumprelu": {"l0_coefficient": [1.0]}},
                "d_sae": [16, 200],
                "seeds": [0, 1, 2, 3],
                "untrained": "grid",
            }
        )
    )


def pairs_of(group: str, W: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"group": group, "within": True, "id_a": f"s{s}", "id_b": f"s{t}", "space": "full"}
            | {"score": "pw_mcc", "signed": False, "value": W[s, t]}
            for s in range(len(W))
            for t in range(s + 1, len(W))
        ]
    )


def test_without_an_earlier_run_the_nearest_setting_of_the_pilot_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "pilot", lambda: PILOT)
    table = planned_seeds(plan(), pd.DataFrame()).set_index(["group", "other"])
    single = table.reset_index().query("other.isna()", engine="python").set_index("group")
    assert single["n_seeds"].tolist() == [4] * 4  # the untrained model's SAEs do not count
    assert single["variances_from"]["topk d16 k4"] == "pilot topk d16"
    assert single["variances_from"]["topk d200 k4"] == "pilot topk d256"
    narrow, wide = (
        VarianceComponents(m, a, e, 6) for m, a, e in ((0.63, 0.05, 0.04), (0.86, 0.01, 0.01))
    )
    assert single["seeds"]["topk d16 k4"] == seeds_for_half_width(narrow)
    assert single["half_width"]["topk d16 k4"] == pytest.approx(narrow.half_width(4))
    both = ("topk d16 k4", "topk d200 k4")
    assert table["difference"][both] == pytest.approx(-0.23)
    assert table["seeds"][both] == seeds_to_separate(narrow, wide)
    # settings that differ in two things say nothing of either
    assert ("topk d16 k4", "jumprelu d200 l0_1") not in table.index
    # nor do two for which the same one of the pilot stands in
    assert ("topk d16 k4", "jumprelu d16 l0_1") not in table.index


def test_an_earlier_run_is_used_before_the_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "pilot", lambda: PILOT)
    W = VarianceComponents(0.7, 0.02, 0.03, 0).simulate(6, np.random.default_rng(0))
    table = planned_seeds(plan(), pairs_of("topk d16 k4", W))
    row = table.query("group == 'topk d16 k4' and other.isna()", engine="python").iloc[0]
    assert row["variances_from"] == "this study"
    assert row["seeds"] == seeds_for_half_width(variance_components(W))
    text = seeds_text(table)
    assert "within ±0.05" in text
    assert "this study" in text
    # three seeds cannot separate seed effects from pair noise: the pilot stands in
    few = planned_seeds(plan(), pairs_of("topk d16 k4", W[:3, :3]))
    assert "this study" not in set(few["variances_from"])


def test_without_both_it_says_that_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "pilot", lambda: PILOT.iloc[:0])
    table = planned_seeds(plan(), pd.DataFrame())
    assert len(table) == 4
    assert table["seeds"].isna().all()
    assert table["reason"].str.contains("neither an earlier run nor a pilot").all()
    assert "not known" in seeds_text(table)


def test_the_shipped_pilot_can_be_read() -> None:
    table = planning.pilot()
    assert table.empty or set(table) == set(PILOT)
