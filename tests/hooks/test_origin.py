"""A page knows the command, the environment and the parameters that were changed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from husai.hooks.origin import RunOrigin, changed_parameters

PROJECT = Path(__file__).parents[2]


def test_changed_parameters_are_those_whose_value_is_not_the_default(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-s3cret")
    plan = {"variants": {"a": {"k": 1}}, "x": None}
    default = {"task": {"modulus": 113, "seed": 0}, "plan": plan}
    used = {"task": {"modulus": 17, "seed": 0}, "plan": {"variants": None, "x": "planted-s3cret"}}
    assert changed_parameters(default, used) == [
        {"name": "task.modulus", "value": "17", "default": "113"},
        {"name": "plan.variants.a.k", "value": "none", "default": "1"},
        {"name": "plan.x", "value": "***", "default": "none"},
    ]
    assert changed_parameters(default, default) == []


def test_environment_and_run_parameters_are_compared_with_the_base(tmp_path, monkeypatch):
    monkeypatch.setenv("HUSAI_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["/bin/kedro", "run", "--env=test"])
    bootstrap_project(PROJECT)
    params = {"sae_training": {"steps": 61}}
    with KedroSession.create(PROJECT, env="test", runtime_params=params) as session:
        context = cast(KedroSession, session).load_context()
    hook = RunOrigin()
    hook.after_context_created(context)
    catalog = DataCatalog({"run_origin": MemoryDataset()})
    node = Node(lambda origin: origin, inputs="run_origin", outputs="page", name="write")
    hook.before_pipeline_run(Pipeline([node]), catalog)
    origin = catalog.load("run_origin")
    assert (origin["command"], origin["environment"]) == ("kedro run --env=test", "test")
    changed = {row["name"]: row["value"] for row in origin["changed"]}
    assert changed["task.modulus"] == "17"
    assert changed["sae_training.steps"] == "61"
    assert "task.operation" not in changed


def test_a_pipeline_without_a_page_needs_no_origin():
    node = Node(lambda: 1, inputs=None, outputs="x", name="make")
    RunOrigin().before_pipeline_run(Pipeline([node]), DataCatalog())
