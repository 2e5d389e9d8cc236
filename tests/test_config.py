"""Parameter groups: any value is accepted or refused in one line, before any work."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.validation.type_extractor import TypeExtractor
from pydantic import ValidationError

from husai.activations.extraction import ExtractionConfig
from husai.calibration.config import PlantedTruthConfig
from husai.campaign import CampaignConfig, PlanConfig, plan_saes
from husai.config import Config, problems
from husai.consistency.config import ConsistencyConfig
from husai.errors import InputError
from husai.hooks.checks import parameter_problems
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.tasks import ModularTaskConfig, PlantedConfig
from husai.transformer.config import TransformerConfig, TransformerTrainingConfig

PROJECT = Path(__file__).parents[1]


@functools.cache
def groups() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shipped parameters and the models that read them."""
    bootstrap_project(PROJECT)
    types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
    parameters: dict[str, Any] = {}
    for path in sorted((PROJECT / "conf" / "base").glob("parameters*.yml")):
        parameters |= yaml.safe_load(path.read_text())
    return parameters, types


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value and mapping of a tree except its root."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, entry in value.items():
            found += leaves(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            found += leaves(entry, (*path, index))
    return found


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([10**30, -(10**30), 2**64, 10**9, -1, 0, 10**5000]),
    st.floats(),
    st.text(max_size=100),
    st.sampled_from(["../..", "", "a" * 300, "'; DROP", "${oc.env:HOME}", "1e999", "0 1 2"]),
    st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_value_is_accepted_or_refused_with_its_field(data: st.DataObject) -> None:
    parameters, types = groups()
    changed = copy.deepcopy(parameters)
    *above, last = data.draw(st.sampled_from(leaves(parameters)))
    place: Any = changed
    for key in above:
        place = place[key]
    place[last] = data.draw(ODD_VALUES)
    for line in parameter_problems(changed, types):
        assert "\n" not in line
        assert "pydantic.dev" not in line
        assert len(line) < 1000


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [1, n], lambda n: {"kind": n}])
def test_a_number_of_thousands_of_digits_is_refused_in_any_place(
    wrap: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pydantic cannot write it: as a tag of a union it would print "Exception ignored in"
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    parameters, types = groups()
    for *above, last in leaves(parameters):
        changed = copy.deepcopy(parameters)
        place: Any = changed
        for key in above:
            place = place[key]
        place[last] = wrap(10**5000)
        (line,) = parameter_problems(changed, types)
        name = ".".join(str(part) for part in (*above, last))
        assert line.startswith(name)
    assert not ignored


SAE = {"architecture": "topk", "d_sae": 8, "k": 2}
PLAN = {"architectures": {"topk": {"k": [4]}}, "d_sae": [16], "seeds": [0]}


@pytest.mark.parametrize(
    ("group", "fields", "field"),
    [
        (SAEConfig, {**SAE, "init_seed": 10**30}, "init_seed"),
        (SAEConfig, {**SAE, "data_seed": 2**64}, "data_seed"),
        (SAEConfig, {**SAE, "d_sae": 10**9}, "d_sae"),
        (SAEConfig, {**SAE, "k": True}, "k"),
        (BankTrainingConfig, {"steps": 10**30}, "steps"),
        (BankTrainingConfig, {"threads": 10**9}, "threads"),
        (TransformerConfig, {"d_model": 10**6}, "d_model"),
        (TransformerConfig, {"seed": 2**64}, "seed"),
        (TransformerTrainingConfig, {"max_epochs": 10**30}, "max_epochs"),
        (ModularTaskConfig, {"seed": 10**30}, "seed"),
        (ConsistencyConfig, {"workers": 10**9}, "workers"),
        (ExtractionConfig, {"hook_names": ["../.."]}, "hook_names.0"),
        (ExtractionConfig, {"hook_names": ["hook_embed@x"]}, "hook_names.0"),
        (PlanConfig, {**PLAN, "seeds": [2**64]}, "seeds.0"),
        (PlanConfig, {**PLAN, "hook_name": "a b"}, "hook_name"),
        (PlanConfig, {**PLAN, "variants": {"../..": SAE}}, "variants"),
        (PlanConfig, {**PLAN, "variants": {"n" * 65: SAE}}, "variants"),
        (PlanConfig, {**PLAN, "variants": {"": SAE}}, "variants"),
        (CampaignConfig, {"plan": PLAN, "name": 'quo"ted'}, "name"),
        (CampaignConfig, {"plan": PLAN, "compute": {"threads": 10**9}}, "compute.threads"),
        (PlantedConfig, {"n_features": 10**9, "d_in": 8}, "n_features"),
        (PlantedTruthConfig, {"worlds": {"a/b": {}}}, "worlds"),
    ],
)
def test_absurd_values_are_named(group: type[Config], fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        group.model_validate(fields)
    lines = problems(raised.value, "group")
    assert any(line.startswith(f"group.{field}") for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_a_plan_too_large_to_lay_out_is_refused() -> None:
    plan = PlanConfig.model_validate({**PLAN, "seeds": range(1000), "d_sae": range(8, 1000)})
    with pytest.raises(InputError, match="992000 SAEs; plan at most"):
        plan_saes(plan)
