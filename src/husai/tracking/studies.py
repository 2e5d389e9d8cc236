"""Finds and deletes the runs of a study in MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from husai.errors import needs
from husai.tracking.processes import search_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

STUDY_TAG = "husai.study"
"""Tag with the name of the study in a session's run; in an SAE's run it is ``husai.campaign``."""

RUN_TAGS = (STUDY_TAG, "husai.campaign")


def client_below(root: Path) -> MlflowClient | None:
    """Open MLflow's file in a data folder; None without one."""
    path = root / "mlflow.db"
    if not path.is_file():
        return None
    needs("mlflow", "project")
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{path.resolve()}")


def study_runs(client: MlflowClient, name: str, noted: Iterable[str] = ()) -> list[str]:
    """Find the ids of the runs of a study: of its sessions, its SAEs, and those in ``noted``.

    Parameters
    ----------
    client
        Client of the tracking store.
    name
        Name of the study.
    noted
        Ids of runs in the files of the study's folder; those in other stores are left out.
    """
    wanted = set(noted)
    found: dict[str, None] = {}
    for experiment in client.search_experiments():
        for run in _runs(client, experiment.experiment_id, name):
            found[run.info.run_id] = None
        if wanted - found.keys():
            for run in search_runs(client, experiment.experiment_id, ""):
                if run.info.run_id in wanted:
                    found[run.info.run_id] = None
    return list(found)


def _runs(client: MlflowClient, experiment: str, name: str) -> Iterator[Any]:
    for tag in RUN_TAGS:
        yield from search_runs(client, experiment, f"tags.`{tag}` = '{name}'")


def delete_runs(client: MlflowClient, run_ids: Iterable[str]) -> None:
    """Delete runs, and the versions of registered models that were made from them.

    MLflow removes deleted runs from its store only with ``mlflow gc``.
    """
    for run_id in run_ids:
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            client.delete_model_version(version.name, version.version)
            if not client.search_model_versions(f"name = '{version.name}'"):
                client.delete_registered_model(version.name)
        client.delete_run(run_id)
