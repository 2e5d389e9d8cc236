"""A run that wrote the page ends by printing where it is and its main sentence."""

from __future__ import annotations

from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.text import TextDataset

from husai.hooks.ending import RunEnding, kedro

WRITE = Node(lambda: "", inputs=None, outputs="study_report", name="write_report")
OTHER = Node(lambda: "", inputs=None, outputs="other", name="other")
SENTENCE = "Answers come back."


def test_the_page_its_main_sentence_and_two_commands_are_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    catalog = DataCatalog(
        {
            "study_report": TextDataset(filepath=str(tmp_path / "reporting" / "home_study.md")),
            "study_sentence": MemoryDataset(SENTENCE),
        }
    )
    RunEnding().after_pipeline_run({"env": "test"}, Pipeline([WRITE]), catalog)
    said = capsys.readouterr().out
    assert "The page: reporting/home_study.md\n" in said
    assert said.startswith(f"\n{SENTENCE}\n")
    assert "kedro viz run --env=test\n" in said
    assert said.endswith("make ui\n")
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: "http://me:planted@127.0.0.1:5000")
    RunEnding().after_pipeline_run({"env": "test"}, Pipeline([WRITE]), catalog)
    said = capsys.readouterr().out
    assert "in the browser: http://" in said.splitlines()[-1]
    assert "planted" not in said


def test_the_command_is_printed_as_it_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert kedro() == ".venv/bin/kedro"
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")
    assert kedro() == "kedro"


def test_other_runs_end_without_it(capsys):
    RunEnding().after_pipeline_run({"env": None}, Pipeline([OTHER]), DataCatalog())
    assert capsys.readouterr().out == ""
