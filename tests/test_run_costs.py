"""What runs took, read from a tracking database whose rows are known."""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "run_costs.py"
SPEC = importlib.util.spec_from_file_location("run_costs", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
run_costs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_costs)

# run, status, start, end in milliseconds, tags
STUDY = {"mlflow.source.name": "kedro run", "husai.study": "home"}
CLEAN = {**STUDY, "git.dirty": "false"}
RUNS = [
    ("first", "FINISHED", 0, 1000, CLEAN),
    ("second", "FINISHED", 2000, 9500, CLEAN),
    ("changed", "FINISHED", 10000, 11000, {**STUDY, "git.dirty": "true"}),
    ("failed", "FAILED", 12000, 13000, CLEAN),
    ("child", "FINISHED", 3000, 4000, {**CLEAN, "mlflow.parentRunId": "second"}),
]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table runs (run_uuid, status, start_time, end_time)")
        connection.execute("create table tags (run_uuid, key, value)")
        connection.execute("create table latest_metrics (run_uuid, key, value)")
        connection.execute("create table metrics (run_uuid, key, value)")
        for name, status, start, end, tags in RUNS:
            connection.execute("insert into runs values (?, ?, ?, ?)", [name, status, start, end])
            rows = [(name, key, value) for key, value in tags.items()]
            connection.executemany("insert into tags values (?, ?, ?)", rows)
        memory = "system/system_memory_usage_megabytes"
        for value in (100.0, 300.0, 200.0):
            connection.execute("insert into metrics values ('second', ?, ?)", [memory, value])
        connection.execute("insert into latest_metrics values ('second', 'campaign.saes', 36)")
    return path


def test_the_last_run_that_finished_from_a_clean_copy_counts(database, tmp_path):
    target = tmp_path / "costs.csv"
    run_costs.main(target, [database])
    (row,) = pd.read_csv(target).to_dict("records")
    assert row["command"] == "kedro run"
    assert (row["seconds"], row["saes"], row["machine_memory_mb"]) == (7.5, 36, 300)


def test_rows_of_other_studies_stay(database, tmp_path):
    target = tmp_path / "costs.csv"
    pd.DataFrame([{"command": "kedro run --env=own", "study": "own", "seconds": 3.0}]).to_csv(
        target, index=False
    )
    run_costs.main(target, [database])
    assert list(pd.read_csv(target)["command"]) == ["kedro run --env=own", "kedro run"]
