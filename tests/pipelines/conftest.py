"""Fixtures: Kedro runs of the project with all data in a test folder, and their MLflow runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def quick_mlflow(copied_mlflow: None) -> None:
    """Make every run of the module start from a copy of MLflow's empty file."""


def run(data_dir: Path, params: dict[str, Any] | None = None, env: str = "test", **options: Any):
    """Run a pipeline in an environment with all data below ``data_dir``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUSAI_DATA_DIR", str(data_dir))
        bootstrap_project(PROJECT)
        with KedroSession.create(PROJECT, env=env, runtime_params=params) as session:
            return session.run(**options)


def client_of(data_dir: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{data_dir / 'mlflow.db'}")


def runs_of(data_dir: Path, parent: bool) -> list[Any]:
    """Return the tracked runs, newest first: those of sessions, or those of SAEs."""
    if not (data_dir / "mlflow.db").exists():
        return []
    client = client_of(data_dir)
    experiment = client.get_experiment_by_name("husai-test")
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    return [r for r in runs if ("mlflow.parentRunId" not in r.data.tags) == parent]
