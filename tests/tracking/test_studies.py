"""Deleting a study deletes its MLflow runs, and nothing of other studies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tracking.conftest import Store

from husai.cli import main
from husai.studies import Study, now
from husai.tracking.sae_runs import find_saes
from husai.tracking.studies import STUDY_TAG


def make_study(folder: Path, name: str, root: str) -> None:
    (folder / "saes" / "trained").mkdir(parents=True)
    about = {"environment": "base", "command": "kedro run", "process": "elsewhere:1:0"}
    Study(name=name, root=root, started=now(), state="finished", parts=("saes",), **about).write(
        folder
    )


@pytest.fixture
def two_studies(store: Store, sae_file: bytes) -> Store:
    """Studies a and b with a run each, and an SAE of a's."""
    client = store.recorder.client
    for name in ("a", "b"):
        make_study(store.folder / "studies" / name, name, "../..")
        client.create_run(store.experiment, tags={STUDY_TAG: name})
    runs = store.folder / "studies" / "a" / "saes" / "campaign" / "runs.jsonl"
    store.record_sae(store.parent, sae_file, runs=str(runs))
    return store


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["studies", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def left(store: Store) -> list[str]:
    runs = store.recorder.client.search_runs([store.experiment])
    return sorted(tag for run in runs if (tag := run.data.tags.get(STUDY_TAG)))


def test_studies_are_listed(two_studies, capsys):
    code, out, _ = run(capsys, "--data", str(two_studies.folder))
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["name", "a", "b"]
    assert "0 of 0" in out
    code, out, _ = run(capsys, "--data", str(two_studies.folder), "--json")
    assert [(row["name"], row["state"]) for row in json.loads(out)] == [
        ("a", "finished"),
        ("b", "finished"),
    ]


def test_deleting_one_takes_its_runs_and_leaves_the_other(two_studies, capsys):
    folder = two_studies.folder
    assert len(find_saes(two_studies.recorder.client, two_studies.experiment)) == 1
    code, out, _ = run(capsys, "--data", str(folder), "delete", "a", "--yes")
    assert code == 0
    assert "study 'a': 2 MLflow runs" in out
    assert "mlflow gc" in out
    assert left(two_studies) == ["b"]
    assert not find_saes(two_studies.recorder.client, two_studies.experiment)
    assert [path.name for path in (folder / "studies").iterdir()] == ["b"]
    assert main(["studies", "--data", str(folder), "delete", "a", "--yes"]) == 2


def test_without_confirmation_nothing_is_deleted(two_studies, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: PTH123, SIM115
    code, _, err = run(capsys, "--data", str(two_studies.folder), "delete", "a")
    assert code == 2
    assert "nothing is deleted" in err
    assert left(two_studies) == ["a", "b"]


def test_a_study_that_is_running_is_not_deleted(two_studies, capsys):
    from husai.processes import this_process
    from husai.studies import read_study

    folder = two_studies.folder / "studies" / "a"
    study = read_study(folder)
    assert study is not None
    study.model_copy(update={"state": "running", "process": this_process()}).write(folder)
    code, _, err = run(capsys, "--data", str(two_studies.folder), "delete", "a", "--yes")
    assert code == 2
    assert "works on it" in err
    assert err.count("\n") == 1
    assert left(two_studies) == ["a", "b"]
