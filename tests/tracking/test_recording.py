"""What is recorded is recorded once and in full, whether or not the store is there."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from requests.exceptions import ConnectionError as NoConnection

from husai import recording
from husai.recording import PROCESS_TAG, Recorder, find_saes, this_process
from husai.sae import BankTrainingConfig, SAEConfig, to_tensors, train_bank
from husai.storage import TensorFile, tensors_to_bytes

ROWS = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
TRAINING = BankTrainingConfig(steps=20, batch_size=20, eval_interval=10, device="cpu")


@pytest.fixture(scope="module")
def sae_file() -> bytes:
    (sae,) = train_bank(ROWS, [SAEConfig(architecture="topk", d_sae=8, k=2)], TRAINING)
    tensors, header = to_tensors(sae)
    about = {"group": "topk d8 k2", "name": "c", "cost": 0.5, "attempts": 2, "finished": 1e9}
    header["provenance"] = {**header["provenance"], "husai": "1", "campaign": about}
    return tensors_to_bytes(tensors, header)


class Store:
    """A store that can be taken away."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.away = False
        self.recorder = self.new_recorder()
        client = self.recorder.client
        self.experiment = client.create_experiment("e", (folder / "artifacts").as_uri())
        self.parent = client.create_run(self.experiment).info.run_id
        patch.setattr(recording, "RETRY_SECONDS", 0.0)
        for name, operation in recording.OPERATIONS.items():
            self._guard(patch, name, operation)

    def _guard(self, patch: pytest.MonkeyPatch, name: str, operation: Any) -> None:
        def guarded(*arguments: Any, **fields: Any) -> None:
            if self.away:
                raise NoConnection("refused")
            operation(*arguments, **fields)

        patch.setitem(recording.OPERATIONS, name, guarded)

    def new_recorder(self) -> Recorder:
        return Recorder(f"sqlite:///{self.folder / 'mlflow.db'}", self.folder / "spool")

    def history(self, run_id: str, key: str) -> list[tuple[float, int]]:
        points = self.recorder.client.get_metric_history(run_id, key)
        return [(point.value, point.step) for point in points]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    client = Recorder(f"sqlite:///{path}", path.parent / "spool").client
    client.search_registered_models()
    return path


@pytest.fixture
def store(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return Store(tmp_path, monkeypatch)


def record_everything(store: Store, content: bytes) -> None:
    do, parent = store.recorder.do, store.parent
    do("params", parent, values={"a.b": [1, 2], "c": None})
    for step in range(5):
        if step == 2:
            store.away = True
        if step == 4:
            store.away = False
        do("metrics", parent, points=[("loss", 10.0 - step, step)], at=1000 + step)
    store.away = True
    do("tags", parent, values={"t": "v"})
    table = pd.DataFrame({"x": [1, 2], "y": ["a", "b"]})
    do("table", parent, table.to_json(orient="split", index=False).encode(), path="tables/t.json")
    do("file", parent, b"hello", path="notes/n.md")
    do("sae", parent, content, sae_id="s", experiment=store.experiment)
    do("end", parent, status="FINISHED", at=5000)


def assert_everything_is_there(store: Store) -> None:
    client = store.recorder.client
    run = client.get_run(store.parent)
    assert run.data.params == {"a.b": "[1, 2]", "c": "None"}
    assert run.data.tags["t"] == "v"
    assert (run.info.status, run.info.end_time) == ("FINISHED", 5000)
    assert store.history(store.parent, "loss") == [(10.0 - step, step) for step in range(5)]
    path = client.download_artifacts(store.parent, "tables/t.json", str(store.folder))
    assert pd.read_json(path, orient="split")["y"].tolist() == ["a", "b"]
    listed = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": "tables/t.json", "type": "table"}]
    notes = client.download_artifacts(store.parent, "notes/n.md", str(store.folder))
    assert Path(notes).read_text() == "hello"
    (child,) = find_saes(client, store.experiment).values()
    assert child.data.tags["mlflow.parentRunId"] == store.parent
    assert child.data.metrics["campaign.cost"] == 0.5
    assert child.data.params["k"] == "2"
    assert child.data.params["training.steps"] == "20"
    assert [step for _, step in store.history(child.info.run_id, "training.fvu")] == [10, 20]


def test_a_store_that_comes_back_gets_everything_in_order(store, sae_file):
    record_everything(store, sae_file)
    assert store.recorder.client.get_run(store.parent).info.status == "RUNNING"
    store.away = False
    store.recorder.close()
    assert_everything_is_there(store)
    assert not list((store.folder / "spool").glob("*.payload"))


def test_what_a_session_could_not_send_the_next_one_sends(store, sae_file):
    record_everything(store, sae_file)
    store.recorder.close()
    assert len(list((store.folder / "spool").glob("*.payload"))) == 3
    store.away = False
    store.recorder = store.new_recorder()
    assert store.recorder.flush()
    assert_everything_is_there(store)


def test_an_operation_carried_out_twice_leaves_one_record(store, sae_file):
    for _ in range(2):
        store.recorder.do("sae", store.parent, sae_file, sae_id="s", experiment=store.experiment)
        store.recorder.do("metrics", store.parent, points=[("x", 1.0, 0)], at=7)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    assert len(store.history(child.info.run_id, "training.fvu")) == 2
    assert store.history(store.parent, "x") == [(1.0, 0)]


def test_a_run_left_half_logged_is_completed_not_made_again(store, sae_file, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(recording, "log_metrics", die)
        with pytest.raises(Killed):
            store.recorder.do(
                "sae", store.parent, sae_file, sae_id="s", experiment=store.experiment
            )
    # the session that comes after has a run of its own, to which the SAE's now belongs
    second = store.recorder.client.create_run(store.experiment).info.run_id
    store.recorder.client.set_terminated(store.parent, "KILLED")
    store.recorder.do("sae", second, sae_file, sae_id="s", experiment=store.experiment)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == second
    assert len(store.history(child.info.run_id, "training.fvu")) == 2


def test_the_run_of_a_killed_session_is_marked_when_its_saes_are_adopted(store, sae_file):
    client = store.recorder.client
    store.recorder.do("sae", store.parent, sae_file, sae_id="s", experiment=store.experiment)
    for process, status in ((this_process(), "RUNNING"), (f"{platform.node()}:0", "KILLED")):
        # no process has number 0
        client.set_tag(store.parent, PROCESS_TAG, process)
        session = client.create_run(store.experiment).info.run_id
        client.set_tag(session, PROCESS_TAG, this_process())
        (child,) = find_saes(client, store.experiment).values()
        client.set_tag(child.info.run_id, "mlflow.parentRunId", store.parent)
        store.recorder.do("sae", session, sae_file, sae_id="s", experiment=store.experiment)
        assert client.get_run(store.parent).info.status == status


def test_runs_of_finished_sessions_stay_where_they_are(store, sae_file):
    store.recorder.do("sae", store.parent, sae_file, sae_id="s", experiment=store.experiment)
    store.recorder.do("end", store.parent, status="FINISHED", at=1)
    second = store.recorder.client.create_run(store.experiment).info.run_id
    store.recorder.do("sae", second, sae_file, sae_id="s", experiment=store.experiment)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    assert child.data.tags["mlflow.parentRunId"] == store.parent


def test_a_wrong_request_is_an_error_and_not_a_lost_server(store):
    store.recorder.do("params", store.parent, values={"a": 1})
    with pytest.raises(Exception, match="Changing param values is not allowed"):
        store.recorder.do("params", store.parent, values={"a": 2})


def test_tags_find_any_slice(store, sae_file):
    store.recorder.do("sae", store.parent, sae_file, sae_id="s", experiment=store.experiment)
    for condition in (
        "tags.`husai.campaign` = 'c'",
        "tags.`husai.group` = 'topk d8 k2'",
        "tags.`sae.architecture` = 'topk' and tags.`sae.d_sae` = '8' and tags.`sae.k` = '2'",
        "tags.`husai.status` = 'trained'",
        "params.`training.steps` = '20' and metrics.fvu < 10",
    ):
        assert len(store.recorder.client.search_runs([store.experiment], condition)) == 1, condition


def test_a_registered_sae_gives_its_codes(store, sae_file):
    from husai.campaign.store import identity
    from husai.sae import from_tensors

    store.recorder.do("sae", store.parent, sae_file, sae_id="s", experiment=store.experiment)
    file = TensorFile.from_bytes(sae_file, "s")
    for _ in range(2):
        store.recorder.do(
            "register",
            store.parent,
            sae_id="s",
            identity=identity(file.header),
            experiment=store.experiment,
            model="husai-topk",
        )
    (version,) = store.recorder.client.search_model_versions("name = 'husai-topk'")
    (model,) = store.recorder.client.search_logged_models([store.experiment])
    assert version.source.endswith((model.model_id, "artifacts"))
    loaded = mlflow.pyfunc.load_model(str(model.artifact_location))
    codes = loaded.predict(ROWS[:7].numpy())
    expected = from_tensors(file.tensors, file.header, "s").encode(ROWS[:7]).numpy()
    np.testing.assert_array_equal(codes, expected)
