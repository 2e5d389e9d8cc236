"""The tracking hook alone: what the run of a session records, and which errors it survives."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from tests.tracking.conftest import Store

from husai.campaign.ledger import Ledger
from husai.errors import CampaignStopped
from husai.hooks.checks import StudyError
from husai.storage import TensorFile
from husai.tracking import recorder
from husai.tracking.config import TrackingConfig
from husai.tracking.hook import MlflowHook
from husai.tracking.processes import PROCESS_TAG
from husai.tracking.sae_runs import find_saes


class Saes(MemoryDataset):
    """The SAEs of a plan with one SAE."""

    def planned(self) -> list[str]:
        return ["s"]


class Session:
    """A hook, and the calls that Kedro makes."""

    def __init__(self, folder: Path, **tracking: Any) -> None:
        self.hook = MlflowHook()
        fields = {"experiment": "e", "system_metrics": False, "register_saes": "none"}
        self.hook._tracking = TrackingConfig.model_validate(
            {**fields, "data_dir": str(folder), **tracking}
        )
        self.hook._project_path = folder
        self.folder = folder
        places = {"files": "trained", "runs": "campaign/runs.jsonl", "activations": "rows"}
        metadata = {"mlflow": {"kind": "child_runs", **places}}
        self.catalog = DataCatalog({"saes": Saes(metadata=metadata)})

    def start(self) -> str:
        params = {"run_id": "r", "env": "test", "pipeline_names": None, "kedro_version": "1"}
        pipeline = Pipeline([Node(lambda: {}, inputs=None, outputs="saes", name="train")])
        self.hook.before_pipeline_run(params, pipeline, self.catalog)
        assert self.hook._run is not None
        return self.hook._run.id

    def save(self, saes: Mapping[str, TensorFile]) -> None:
        (self.folder / "trained").mkdir(exist_ok=True)
        for name, file in saes.items():
            (self.folder / "trained" / f"{name}.safetensors").write_bytes(file.to_bytes())
        self.hook.after_dataset_saved("saes", dict(saes))


@pytest.fixture
def session(store: Store) -> Session:
    return Session(store.folder)


@pytest.fixture
def sae(sae_file: bytes) -> dict[str, TensorFile]:
    return {"s": TensorFile.from_bytes(sae_file, "s")}


def totals(store: Store, run_id: str) -> dict[str, float]:
    metrics = store.recorder.client.get_run(run_id).data.metrics
    return {k: v for k, v in metrics.items() if k.startswith("campaign.")}


def earlier(folder: Path) -> None:
    """Two SAEs of an earlier session: one trained, one failed without a file."""
    ledger = Ledger(folder / "campaign" / "ledger.jsonl")
    ledger.record("planned", ["a", "b", "s"])
    ledger.record("running", ["a", "b"])
    ledger.record("done", ["a"], seconds=20.0, cost=2.0)
    ledger.record("failed", ["b"], seconds=30.0, cost=3.0, reason="broken")
    ledger.record("running", ["s"])


def test_the_sessions_run_has_the_cost_of_the_whole_campaign(store, session, sae):
    earlier(store.folder)
    run_id = session.start()
    session.save(sae)
    # the ledger does not yet have the costs in the SAE's file
    expected = {"cost": 5.5, "device_seconds": 50.0, "saes": 2, "failed": 1}
    assert totals(store, run_id) == {f"campaign.{k}": v for k, v in expected.items()}
    ledger = Ledger(store.folder / "campaign" / "ledger.jsonl")
    ledger.record("done", ["s"], seconds=5.0, cost=0.5)
    session.hook.after_pipeline_run()
    assert totals(store, run_id) == {
        f"campaign.{k}": v for k, v in (expected | {"device_seconds": 55.0}).items()
    }
    child = find_saes(store.recorder.client, store.experiment, "s")
    assert [run.data.metrics["campaign.cost"] for run in child.values()] == [0.5]


def test_a_stopped_session_records_the_cost_too(store, session):
    earlier(store.folder)
    run_id = session.start()
    session.hook.on_pipeline_error(CampaignStopped("max_cost"))
    assert totals(store, run_id)["campaign.cost"] == 5.0
    assert totals(store, run_id)["campaign.failed"] == 1
    assert store.recorder.client.get_run(run_id).info.status == "FAILED"


def test_no_recording_error_ends_the_training(store, session, sae, monkeypatch):
    def refuse(*arguments: Any, **fields: Any) -> None:
        raise ValueError("no")

    for name in ("sae", "metrics", "adopt", "register"):
        monkeypatch.setitem(recorder.OPERATIONS, name, refuse)
    monkeypatch.setattr("husai.tracking.study_saes.find_saes", refuse)
    run_id = session.start()
    session.save(sae)
    session.hook._saes._known.clear()
    session.hook.after_dataset_loaded("saes", {"s": lambda: sae["s"]})
    session.hook.after_pipeline_run()
    assert store.recorder.client.get_run(run_id).info.status == "FINISHED"
    rejected = (store.folder / "tracking_spool" / "rejected.jsonl").read_text()
    assert rejected.count('"name": "sae"') == 2


def test_saes_saved_by_an_interrupted_session_are_logged_by_the_next(store, session, sae):
    # with the outage over, what the killed session had recorded of them is completed
    first = session.start()
    session.save(sae)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    client = store.recorder.client
    client.update_run(child.info.run_id, status="RUNNING")
    client.set_tag(first, PROCESS_TAG, f"{platform.node()}:0")
    client.set_tag(child.info.run_id, PROCESS_TAG, f"{platform.node()}:0")
    second = Session(store.folder)
    run_id = second.start()
    assert client.get_run(first).info.status == "KILLED"
    second.hook.after_dataset_loaded("saes", {"s": lambda: sae["s"]})
    second.hook.after_pipeline_run()
    (run,) = find_saes(client, store.experiment).values()
    assert (run.info.run_id, run.info.status) == (child.info.run_id, "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == run_id


def test_a_run_killed_before_its_first_sae_is_closed_by_the_next_session(store, session):
    left_open = store.recorder.client.create_run(
        store.experiment, tags={PROCESS_TAG: f"{platform.node()}:0"}
    )
    session.start()
    assert store.recorder.client.get_run(left_open.info.run_id).info.status == "KILLED"
    session.hook.after_pipeline_run()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_needs_credentials_is_an_error_at_the_start(tmp_path, server, status):
    session = Session(tmp_path)
    session.hook._server = server(status, b"You are not authenticated.")
    with pytest.raises(StudyError, match=f"answers {status}; .*MLFLOW_TRACKING_USERNAME"):
        session.start()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_the_machines_load_is_recorded_through_an_outage(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    session = Session(store.folder, system_metrics=True)
    run_id = session.start()
    key = "system/cpu_utilization_percentage"

    def steps() -> list[int]:
        return [step for _, step in store.history(run_id, key)]

    until(lambda: len(steps()) >= 2)
    store.away = True
    journal = store.folder / "tracking_spool" / "operations.jsonl"
    # nothing but the load is recorded in this outage
    until(lambda: journal.is_file() and journal.read_text().count(key) >= 3)
    before = len(steps())
    store.away = False
    until(lambda: len(steps()) >= before + 5)
    session.hook.after_pipeline_run()
    assert steps() == list(range(len(steps())))
    assert store.recorder.client.get_run(run_id).info.status == "FINISHED"
