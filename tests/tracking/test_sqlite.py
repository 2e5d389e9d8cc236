"""MLflow's SQLite file after starts that were killed, and after two starts at once."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from sqlalchemy import create_engine

from husai.tracking.sqlite import WHOLE, prepare_sqlite

PREPARE = (
    "import sys; from pathlib import Path; from husai.tracking.sqlite import prepare_sqlite; "
    "prepare_sqlite(Path(sys.argv[1]), 'file:///unused')"
)


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(path)], stderr=subprocess.DEVNULL)


def works(path: Path) -> bool:
    """Whether MLflow writes to the file and reads it back."""
    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment("e")
    run = client.create_run(experiment).info.run_id
    return [found.info.run_id for found in client.search_runs([experiment])] == [run]


def half_made(path: Path) -> None:
    """Make only the first of MLflow's tables, as an interrupted migration does."""
    path.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{path}")
    InitialBase.metadata.create_all(engine)
    engine.dispose()


def execute(path: Path, command: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(command)
        connection.commit()


@pytest.mark.parametrize("content", [None, b""])
def test_a_half_made_file_without_runs_is_made_again(tmp_path, content):
    path = tmp_path / "mlflow.db"
    half_made(path) if content is None else path.write_bytes(content)
    (tmp_path / ".mlflow.db.x.tmp").write_bytes(b"half")
    prepare_sqlite(path, tmp_path.as_uri())
    assert works(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.parametrize("kind", ["with a run", "no database"])
def test_a_file_that_may_hold_runs_is_kept(tmp_path, kind):
    path = tmp_path / "mlflow.db"
    if kind == "with a run":
        half_made(path)
        execute(path, "INSERT INTO runs (run_uuid, name) VALUES ('0123', 'kept')")
    else:
        path.write_bytes(b"this is no database" * 100)
    content = path.read_bytes()
    prepare_sqlite(path, tmp_path.as_uri())
    assert works(path)
    (aside,) = tmp_path.glob("mlflow.db.2*")
    assert aside.read_bytes() == content


def test_a_whole_file_that_mlflow_made_is_kept_with_its_runs(tmp_path):
    path = tmp_path / "mlflow.db"
    prepare_sqlite(path, tmp_path.as_uri())
    assert works(path)
    execute(path, "PRAGMA user_version = 0")
    before = path.read_bytes()
    prepare_sqlite(path, tmp_path.as_uri())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (WHOLE,)
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert len(path.read_bytes()) == len(before)


def test_a_killed_start_and_two_starts_at_once_leave_a_working_file(tmp_path):
    path = tmp_path / "mlflow.db"
    killed = start(path)
    while not (temporary := list(tmp_path.glob(".mlflow.db.*.tmp"))) or (
        temporary[0].stat().st_size < 100_000
    ):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not path.exists()
    both = [start(path), start(path)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert works(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
