"""A planted secret is nowhere in what a run writes or prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from husai.campaign import results
from husai.campaign.ledger import Ledger
from husai.provenance import without_secrets
from husai.tracking.recorder import Recorder
from husai.tracking.servers import use_credentials

SECRET = "planted-s3cret"
PROJECT = Path(__file__).parents[2]


def holders(folder: Path) -> list[str]:
    """Return the names of the files that hold the secret."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"at http://me:{SECRET}@host:5000/x failed", "at http://***@host:5000/x failed"),
        (f"https://{SECRET}@github.com/a/b.git", "https://***@github.com/a/b.git"),
        (
            f"postgresql+psycopg://u:{SECRET}@h/db?sslmode=on",
            "postgresql+psycopg://***@h/db?sslmode=on",
        ),
        (f"s3://bucket/a?access_token={SECRET}&b=1", "s3://bucket/a?access_token=***&b=1"),
        ("http://host/path?who=me@home, a@b", "http://host/path?who=me@home, a@b"),
        (f"it said {SECRET}", "it said ***"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(monkeypatch, text, expected):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert without_secrets(text) == expected


def test_credentials_move_from_the_address_to_mlflows_variables(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    assert use_credentials("https://me:a%2Fb@host:5000/x") == "https://host:5000/x"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "a/b"
    assert use_credentials("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"


def test_waiting_and_rejected_records_hold_no_secret(tmp_path, server, caplog):
    address = server(503).replace("://", f"://me:{SECRET}@")
    recorder = Recorder(address, tmp_path / "spool")
    assert recorder.do("tags", "r", values={"error": f"no answer of {address}"})
    server(400)
    recorder = Recorder(address, tmp_path / "spool")  # the first one waits before it tries again
    assert not recorder.do("params", "r", values={"where": address})
    recorder.close()
    assert (tmp_path / "spool" / "rejected.jsonl").is_file()
    assert holders(tmp_path) == []
    assert SECRET not in caplog.text


def test_the_list_of_runs_and_the_table_of_results_hold_no_secret(store, sae_file, tmp_path):
    store.recorder.address = without_secrets(f"postgresql://u:{SECRET}@h/db")
    runs = tmp_path / "campaign" / "runs.jsonl"
    store.record_sae(store.parent, sae_file, runs=str(runs))
    assert "postgresql://***@h/db" in runs.read_text()
    assert holders(tmp_path) == []
    # a file that an earlier release wrote
    (tmp_path / "trained").mkdir(exist_ok=True)
    (tmp_path / "trained" / "s.safetensors").write_bytes(sae_file)
    runs.write_text(runs.read_text().replace("***", f"u:{SECRET}"))
    Ledger(tmp_path / "campaign" / "ledger.jsonl").record("planned", ["s"])
    assert results(tmp_path)["tracking_uri"].tolist() == ["postgresql://***@h/db"]


def test_a_run_shows_and_writes_no_secret(tmp_path, server):
    """A run on a server that refuses, and one on SQLite with a token in the git remote."""
    (tmp_path / "git").mkdir()
    remote = f'[remote "origin"]\n\turl = https://{SECRET}@github.com/a/b.git\n'
    (tmp_path / "git" / "config").write_text(remote)
    said = ""
    for env, extra in (
        ("team", {"MLFLOW_TRACKING_URI": server(401).replace("://", f"://me:{SECRET}@")}),
        ("test", {"MLFLOW_TRACKING_PASSWORD": SECRET}),
    ):
        found = subprocess.run(
            [sys.executable, "-m", "kedro", "run", f"--env={env}", "--pipelines=data_generation"],
            cwd=PROJECT,
            env={
                **os.environ,
                "HUSAI_DATA_DIR": str(tmp_path / "data"),
                "XDG_CONFIG_HOME": str(tmp_path),
                **extra,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said += found.stdout + found.stderr
        assert found.returncode == (2 if env == "team" else 0), said
    assert "answers 401" in said
    assert SECRET not in said
    assert (tmp_path / "data" / "mlflow.db").is_file()
    assert holders(tmp_path / "data") == []
