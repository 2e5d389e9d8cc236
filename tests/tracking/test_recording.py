"""Records reach the store once and completely, also when it cannot be reached for a while."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException, RestException
from requests import Response
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import HTTPError
from tests.tracking.conftest import ROWS, Store

from husai.processes import is_gone, this_process
from husai.storage import TensorFile, append_line, tensors_to_bytes
from husai.tracking import recorder as recording
from husai.tracking import sae_runs
from husai.tracking.processes import PROCESS_TAG, end_abandoned
from husai.tracking.recorder import Recorder
from husai.tracking.sae_runs import find_saes
from husai.tracking.servers import http_status, is_away


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
    store.record_sae(parent, content)
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


def test_a_store_that_is_reachable_again_gets_everything_in_order(store, sae_file):
    record_everything(store, sae_file)
    assert store.recorder.client.get_run(store.parent).info.status == "RUNNING"
    store.away = False
    store.recorder.close()
    assert_everything_is_there(store)
    assert not list((store.folder / "spool").glob("*.payload"))


def test_records_that_a_session_could_not_send_are_sent_by_the_next(store, sae_file):
    record_everything(store, sae_file)
    store.recorder.close()
    # the table and the note; the SAE is in its own file already
    assert len(list((store.folder / "spool").glob("*.payload"))) == 2
    store.away = False
    store.recorder = store.new_recorder()
    assert store.recorder.flush()
    assert_everything_is_there(store)


def test_an_operation_done_twice_leaves_one_record(store, sae_file):
    for _ in range(2):
        store.record_sae(store.parent, sae_file)
        store.recorder.do("metrics", store.parent, points=[("x", 1.0, 0)], at=7)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    assert len(store.history(child.info.run_id, "training.fvu")) == 2
    assert store.history(store.parent, "x") == [(1.0, 0)]


def test_an_incomplete_run_is_completed_and_not_made_again(store, sae_file, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sae_runs, "log_metrics", die)
        with pytest.raises(Killed):
            store.record_sae(store.parent, sae_file)
    # the session that comes after has a run of its own, to which the SAE's now belongs
    second = store.recorder.client.create_run(store.experiment).info.run_id
    store.recorder.client.set_terminated(store.parent, "KILLED")
    store.record_sae(second, sae_file)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == second
    assert len(store.history(child.info.run_id, "training.fvu")) == 2


def test_the_run_of_a_killed_session_is_marked_when_its_saes_are_adopted(store, sae_file):
    client = store.recorder.client
    store.record_sae(store.parent, sae_file)
    for process, status in ((this_process(), "RUNNING"), (f"{platform.node()}:0", "KILLED")):
        # no process has number 0
        client.set_tag(store.parent, PROCESS_TAG, process)
        session = client.create_run(store.experiment).info.run_id
        client.set_tag(session, PROCESS_TAG, this_process())
        (child,) = find_saes(client, store.experiment).values()
        client.set_tag(child.info.run_id, "mlflow.parentRunId", store.parent)
        store.record_sae(session, sae_file)
        assert client.get_run(store.parent).info.status == status


def test_runs_of_finished_sessions_stay_where_they_are(store, sae_file):
    store.record_sae(store.parent, sae_file)
    store.recorder.do("end", store.parent, status="FINISHED", at=1)
    second = store.recorder.client.create_run(store.experiment).info.run_id
    store.record_sae(second, sae_file)
    (child,) = find_saes(store.recorder.client, store.experiment).values()
    assert child.data.tags["mlflow.parentRunId"] == store.parent


def rejected(store: Store) -> list[dict[str, Any]]:
    path = store.folder / "spool" / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_rejected_request_is_set_aside_and_blocks_nothing(store, caplog):
    assert store.recorder.do("params", store.parent, values={"a": 1})
    assert not store.recorder.do("params", store.parent, values={"a": 2})
    assert "Changing param values is not allowed" in caplog.text
    (entry,) = rejected(store)
    assert (entry["name"], entry["fields"]) == ("params", {"values": {"a": 2}})
    assert "Changing param values is not allowed" in entry["error"]
    assert not store.recorder.do("file", "no such run", b"content", path="f.txt")
    kept = store.folder / "spool" / rejected(store)[1]["payload"]
    assert kept.read_bytes() == b"content"
    assert store.recorder.client.get_run(store.parent).data.params == {"a": "1"}


def test_a_request_rejected_when_sent_again_blocks_nothing(store):
    store.recorder.do("params", store.parent, values={"a": 1})
    store.away = True
    store.recorder.do("params", store.parent, values={"a": 2})
    store.recorder.do("file", "no such run", b"content", path="f.txt")
    store.recorder.do("metrics", store.parent, points=[("x", 1.0, 0)], at=7)
    store.away = False
    assert store.recorder.flush()
    assert store.history(store.parent, "x") == [(1.0, 0)]
    assert [entry["name"] for entry in rejected(store)] == ["params", "file"]
    kept = store.folder / "spool" / rejected(store)[1]["payload"]
    assert kept.read_bytes() == b"content"
    assert not (store.folder / "spool" / "operations.jsonl").exists()
    assert not list((store.folder / "spool").glob("*.payload"))


def answer(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(f"{status}", response=response)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (NoConnection("refused"), True),
        (TimeoutError(), True),
        (answer(401), True),
        (answer(403), True),
        (answer(408), True),
        (answer(429), True),
        (answer(502), True),
        (answer(413), False),
        (answer(404), False),
        (RestException({"error_code": "PERMISSION_DENIED", "message": ""}), True),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": ""}), False),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": ""}), False),
        (RestException({"error_code": "INTERNAL_ERROR", "message": ""}), True),
        (RestException({"error_code": 413, "message": ""}), False),
        (MlflowException("API request to http://x failed with exception refused"), True),
        (MlflowException("API request to endpoint /x failed with error code 413 != 200."), False),
        (MlflowException("API request to endpoint /x failed with error code 401 != 200."), True),
        (MlflowException("said on this side"), False),
        (OSError(28, "No space left on device"), True),
        (KeyError("x"), False),
    ],
)
def test_temporary_and_permanent_errors_are_distinguished(error, away):
    assert is_away(error) is away
    outer = ValueError("outer")
    outer.__cause__ = error
    assert is_away(outer) is away


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b"You are not authenticated."),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
        (413, b"<html>Request Entity Too Large</html>"),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}'),
    ],
)
def test_the_status_of_a_real_response_is_read(server, tmp_path, status, body):
    uri = server(status, body)
    with pytest.raises(MlflowException) as asked:
        mlflow.MlflowClient(uri).get_run("x")
    assert http_status(asked.value) == status
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    (tmp_path / "f.txt").write_text("x")
    with pytest.raises(Exception, match=str(status)) as sent:
        MlflowArtifactsRepository("mlflow-artifacts:/1", uri).log_artifact(str(tmp_path / "f.txt"))
    assert http_status(sent.value) == status


def test_a_server_that_needs_credentials_gives_one_warning(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(recording, "RETRY_SECONDS", 0.0)
    recorder = Recorder(server(401, b"You are not authenticated."), tmp_path / "spool")
    for step in range(3):
        assert recorder.do("metrics", "run", points=[("x", 1.0, step)], at=step)
    warnings = [r.message for r in caplog.records if r.name == "husai.tracking.recorder"]
    assert len(warnings) == 1
    assert "answers 401" in warnings[0]
    assert len((tmp_path / "spool" / "operations.jsonl").read_text().splitlines()) == 3
    server(200, b"{}")
    assert recorder.flush()
    assert not (tmp_path / "spool" / "operations.jsonl").exists()


def test_a_journal_is_rewritten_completely_or_not_at_all(store, monkeypatch):
    store.away = True
    for step in range(3):
        store.recorder.do("metrics", store.parent, points=[("x", float(step), step)], at=step)
    journal = store.folder / "spool" / "operations.jsonl"
    before = journal.read_text()
    store.away = False
    metrics = recording.OPERATIONS["metrics"]
    calls: list[int] = []

    def goes_in_the_middle(*arguments: Any, **fields: Any) -> None:
        if calls:
            raise NoConnection("refused")
        calls.append(1)
        metrics(*arguments, **fields)

    monkeypatch.setitem(recording.OPERATIONS, "metrics", goes_in_the_middle)
    write_text = Path.write_text

    def full(path: Path, text: str, *rest: Any, **options: Any) -> int:
        write_text(path, text[: len(text) // 2], *rest, **options)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            store.recorder.flush()
    assert journal.read_text() == before
    calls.clear()
    assert not store.recorder.flush()
    assert journal.read_text() == before.split("\n", 1)[1]


def test_an_incomplete_last_line_does_not_spoil_the_next_record(store):
    store.away = True
    store.recorder.do("metrics", store.parent, points=[("x", 0.0, 0)], at=0)
    journal = store.folder / "spool" / "operations.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"uri": "sqlite:')
    store.recorder.do("metrics", store.parent, points=[("x", 1.0, 1)], at=1)
    store.away = False
    assert store.recorder.flush()
    assert store.history(store.parent, "x") == [(0.0, 0), (1.0, 1)]


def test_appended_lines_stand_alone(tmp_path):
    path = tmp_path / "folder" / "lines"
    append_line(path, "one")
    with path.open("a") as file:
        file.write("to")
    append_line(path, "three")
    assert path.read_text() == "one\nto\nthree\n"


def test_the_cost_of_an_sae_is_in_the_metrics_of_its_run(store, sae_file):
    file = TensorFile.from_bytes(sae_file, "s")
    header = dict(file.header)
    about = {**header["provenance"]["campaign"], "device_seconds": 3.0, "peak_bytes": 7e6}
    header["provenance"] = {**header["provenance"], "campaign": about}
    content = tensors_to_bytes(file.tensors, header)
    store.record_sae(store.parent, content)
    condition = "metrics.`campaign.cost` > 0.4 and metrics.`campaign.device_seconds` = 3"
    (run,) = store.recorder.client.search_runs([store.experiment], condition)
    took = {k: v for k, v in run.data.metrics.items() if k.startswith("campaign.")}
    assert took == {
        "campaign.cost": 0.5,
        "campaign.attempts": 2,
        "campaign.device_seconds": 3.0,
        "campaign.peak_bytes": 7e6,
    }


def test_runs_that_a_killed_process_left_open_are_closed(store):
    client = store.recorder.client
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = f"{platform.node()}:{killed.pid}:{time.time():.0f}"
    assert not is_gone(theirs)
    killed.kill()
    killed.wait()
    processes = {
        "gone": theirs,
        "written by an earlier version": theirs.rpartition(":")[0],
        # in a container every session may have the same number
        "our number, long ago": f"{platform.node()}:{os.getpid()}:1000000000",
        "live": this_process(),
        "elsewhere": f"elsewhere:{killed.pid}:{time.time():.0f}",
    }
    runs = {}
    for name, process in processes.items():
        runs[name] = client.create_run(store.experiment, tags={PROCESS_TAG: process}).info.run_id
    end_abandoned(client, store.experiment)
    statuses = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert statuses == {
        "gone": "KILLED",
        "written by an earlier version": "KILLED",
        "our number, long ago": "KILLED",
        "live": "RUNNING",
        "elsewhere": "RUNNING",
    }
    assert client.get_run(store.parent).info.status == "RUNNING"


def test_runs_of_a_live_session_stay_where_they_are(store, sae_file):
    client = store.recorder.client
    store.record_sae(store.parent, sae_file)
    (child,) = find_saes(client, store.experiment).values()
    session = client.create_run(store.experiment).info.run_id

    def parent_after(operation: str) -> str:
        if operation == "sae":
            assert store.record_sae(session, sae_file)
        else:
            assert store.recorder.do(operation, session, child=child.info.run_id)
        return str(client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"])

    for process in (this_process(), "elsewhere:1:1000000000", "elsewhere:1"):
        client.set_tag(store.parent, PROCESS_TAG, process)
        assert parent_after("sae") == store.parent
        assert parent_after("adopt") == store.parent
    client.set_terminated(store.parent, "FAILED")
    assert parent_after("adopt") == session


def test_runs_can_be_selected_by_their_tags(store, sae_file):
    store.record_sae(store.parent, sae_file)
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

    store.record_sae(store.parent, sae_file)
    file = TensorFile.from_bytes(sae_file, "s")
    for _ in range(2):
        store.recorder.do(
            "register",
            store.parent,
            sae_id="s",
            file=str(store.folder / "trained" / "s.safetensors"),
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


def test_a_file_that_is_gone_or_holds_another_sae_is_skipped(store, sae_file, caplog):
    store.away = True
    store.record_sae(store.parent, sae_file)
    path = store.folder / "trained" / "s.safetensors"
    file = TensorFile.from_bytes(sae_file, "s")
    other = {**file.header, "config": {**file.header["config"], "init_seed": 7}}
    path.write_bytes(tensors_to_bytes(file.tensors, other))
    store.away = False
    assert store.recorder.flush()
    assert "now has another SAE" in caplog.text
    store.away = True
    store.record_sae(store.parent, sae_file)
    path.unlink()
    store.away = False
    assert store.recorder.flush()
    assert "does not exist any more" in caplog.text
    assert not find_saes(store.recorder.client, store.experiment)
    assert not (store.folder / "spool" / "rejected.jsonl").exists()


def test_parameters_of_an_sae_are_those_that_differ_between_saes(sae_file):
    header = dict(TensorFile.from_bytes(sae_file, "s").header)
    about = {"group": "topk d8 k2", "seed": 3, "model": "trained", "variant": ""}
    about |= {"hook_name": "blocks.0.hook_resid_post", "position": -1}
    header["provenance"] = {**header["provenance"], "campaign": about}
    params = sae_runs.sae_params(header, "0123456789abcdef")
    chosen = {name: value for name, value in params.items() if "." not in name}
    assert chosen == {
        "architecture": "topk",
        "d_sae": 8,
        "k": 2,
        "seed": 3,
        "model": "trained",
        "transformer": "0123456789abcdef",
    }
    # others sort after these three, which MLflow's page of compared runs draws by itself
    assert sorted(params)[:3] == ["architecture", "d_sae", "k"]
    assert params["plan.group"] == "topk d8 k2"
    assert params["plan.hook"] == "blocks.0.hook_resid_post@-1"
    assert params["sae.learning_rate"] == header["config"]["learning_rate"]
    assert None not in params.values()


def test_the_results_of_an_sae_are_means_over_its_live_latents(store, sae_file):
    latents = pd.DataFrame(
        {
            "id": ["s", "s", "s", "s", "alone"],
            "space": ["full", "full", "full", "data", "full"],
            "reproducibility": [0.9, 0.6, 0.3, 1.0, np.nan],
            "n_seeds_found": [2, 2, 1, 2, np.nan],
            "n_other_seeds": [2, 2, 2, 2, 0],
        }
    )
    found = sae_runs.found_about_saes(latents, 0.9)
    assert found["alone"] == {"n_live": 1.0}
    assert found["s"] == pytest.approx(
        {"n_live": 3.0, "reproducibility": 0.6, "found_in_every_seed": 2 / 3}
    )
    grouped = sae_runs.found_about_saes(latents.assign(group="g"), 0.9, {"g": 0.5})
    assert grouped["s"]["corrected"] == pytest.approx((0.6 - 0.5) / (1 - 0.5))
    other = sae_runs.found_about_saes(latents.assign(group="h"), 0.9, {"g": 0.5})
    assert "corrected" not in other["s"]
    labelled = latents.assign(
        kind=["answer", "answer", "operand, several", "answer", "other"],
        family=["answer", "answer", "token", "answer", ""],
        label=["answer = 3", "answer = 3", "token = 1", "answer = 4", ""],
        f1_best=[0.95, 0.99, 0.5, 1.0, 0.0],
    )
    found = sae_runs.found_about_saes(labelled, 0.9)
    assert found["s"] == pytest.approx(
        {"n_live": 3.0, "reproducibility": 0.6, "found_in_every_seed": 2 / 3}
        # two latents stand for one answer
        | {"kind.answer": 2.0, "reproducibility.answer": 0.75, "covered.answer": 1.0}
        | {"kind.operand several": 1.0, "reproducibility.operand several": 0.3}
    )
    store.record_sae(store.parent, sae_file)
    ((_, known, study),) = find_saes(store.recorder.client, store.experiment)
    about = {"identity": known, "study": study}
    results = [{"sae_id": name, **about, "metrics": found[name]} for name in ("alone", "s")]
    store.recorder.do(
        "sae_results", store.parent, results=results, experiment=store.experiment, at=9
    )
    (run,) = find_saes(store.recorder.client, store.experiment).values()
    assert run.data.metrics["reproducibility"] == pytest.approx(0.6)
    # the first that is recorded, as MLflow's page of compared runs draws the first one
    assert next(iter(run.data.metrics)) == "reproducibility"
    assert run.info.status == "FINISHED"
