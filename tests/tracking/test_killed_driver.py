"""A campaign whose driver is killed has one complete MLflow run for every SAE."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from husai.activations import Activations
from husai.storage import read_header, write_tensors
from husai.tracking.sae_runs import ID_TAG, PARENT_TAG, find_saes, sae_params
from husai.tracking.signals import ENDING

PROJECT = Path(__file__).parents[2]
PARAMS = "campaign.plan.untrained=none,campaign.plan.variants=null"
TERMINATED_AFTER, KILLED_AFTER = 1, 4
"""SAEs that are saved when the driver is ended by SIGTERM, and when the next one is killed."""


def drive(data_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HUSAI_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    command = ["run", "--env=test", "--pipelines=sae_training", f"--params={PARAMS}"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "kedro", *command],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def write_rows(data_dir: Path) -> None:
    """Write rows of activations for the SAEs to read."""
    values = torch.randn(289, 16, generator=torch.Generator().manual_seed(0))
    hook = "blocks.0.hook_resid_post"
    rows = Activations(values, torch.zeros(289, dtype=torch.int64), hook, -1)
    write_tensors(data_dir / "activations" / f"{rows.key}.safetensors", *rows.to_tensors())


def test_a_stopped_and_a_killed_driver_leave_one_run_for_every_sae(tmp_path, empty_mlflow):
    data_dir, log = tmp_path / "data", tmp_path / "log"
    write_rows(data_dir)
    shutil.copy(empty_mlflow, data_dir / "mlflow.db")
    trained = data_dir / "saes" / "trained"
    client = MlflowClient(f"sqlite:///{data_dir / 'mlflow.db'}")

    def sessions() -> list[Run]:
        experiment = client.get_experiment_by_name("husai-test").experiment_id
        runs = client.search_runs([experiment], "attributes.run_name LIKE 'sae_training%'")
        return sorted(runs, key=lambda run: run.info.start_time)

    def drive_until(n_saes: int) -> subprocess.Popen[bytes]:
        driver = drive(data_dir, log)
        while len(list(trained.glob("*.safetensors"))) < n_saes:
            assert driver.poll() is None, log.read_text()
            time.sleep(0.002)
        return driver

    driver = drive_until(TERMINATED_AFTER)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=120) == 128 + signal.SIGTERM, log.read_text()
    (ended,) = sessions()
    assert ended.info.status == "KILLED"
    assert ended.info.end_time is not None

    driver = drive_until(len(list(trained.glob("*.safetensors"))) + KILLED_AFTER)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    plan = pd.read_parquet(data_dir / "saes" / "plan.parquet")["sae_id"].tolist()
    saved = {path.stem: path.read_bytes() for path in trained.glob("*.safetensors")}
    assert TERMINATED_AFTER + KILLED_AFTER <= len(saved) < len(plan)
    _, killed = sessions()
    assert killed.info.status == "RUNNING"

    again = drive(data_dir, log)
    assert again.wait(timeout=120) == 0, log.read_text()
    assert {name: (trained / f"{name}.safetensors").read_bytes() for name in saved} == saved
    *_, last = sessions()
    assert [run.info.status for run in sessions()] == ["KILLED", "KILLED", "FINISHED"]
    runs = client.search_runs([last.info.experiment_id])
    children = [run for run in runs if PARENT_TAG in run.data.tags]
    assert len(runs) == 3 + len(children)
    assert len(plan) == 18
    assert sorted(run.data.tags[ID_TAG] for run in children) == sorted(plan)
    assert len(find_saes(client, last.info.experiment_id)) == len(plan)
    assert {run.info.status for run in children} == {"FINISHED"}
    # those that the killed session had made are below the one that ended what it began
    assert {run.data.tags[PARENT_TAG] for run in children} == {last.info.run_id}
    for run in children:
        header = read_header(trained / f"{run.data.tags[ID_TAG]}.safetensors")
        planned = sae_params(header)
        assert planned["plan.hook"] == "blocks.0.hook_resid_post@-1"
        assert run.data.params == {
            name: json.dumps(value) if isinstance(value, list) else str(value)
            for name, value in planned.items()
        }
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "training.fvu")]
        assert steps == [20, 40, 60]
        weights = client.list_artifacts(run.info.run_id, "weights")
        assert [item.file_size for item in weights] == [
            (trained / f"{run.data.tags[ID_TAG]}.safetensors").stat().st_size
        ]
        assert run.data.metrics["campaign.device_seconds"] > 0
    noted = (data_dir / "saes" / "campaign" / "runs.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["sae_id"] for line in noted) == sorted(plan)
    total = last.data.metrics
    assert (total["campaign.saes"], total["campaign.failed"]) == (18, 0)


WAIT = """
import atexit, time
from husai.tracking.signals import exit_on_signals
atexit.register(print, "closed", flush=True)
exit_on_signals()
print("ready", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_process_that_is_ended_by_a_signal_closes_what_is_open(number):
    with subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"closed\n"
    assert process.returncode == 128 + number
