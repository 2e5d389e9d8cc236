"""A campaign whose driver is killed in the middle has one whole MLflow run for every SAE."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from husai.activations import Activations
from husai.storage import read_header, write_tensors
from husai.tracking.sae_runs import ID_TAG, PARENT_TAG, find_saes, sae_params

PROJECT = Path(__file__).parents[2]
PARAMS = "campaign.plan.untrained=none,campaign.plan.variants=null"
KILL_AFTER = 4
"""SAEs that are saved when the driver is killed."""


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


def test_a_killed_driver_leaves_one_run_for_every_sae(tmp_path):
    data_dir, log = tmp_path / "data", tmp_path / "log"
    write_rows(data_dir)
    trained = data_dir / "saes" / "trained"

    driver = drive(data_dir, log)
    while len(list(trained.glob("*.safetensors"))) < KILL_AFTER:
        assert driver.poll() is None, log.read_text()
        time.sleep(0.002)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    client = MlflowClient(f"sqlite:///{data_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("husai-test").experiment_id
    plan = pd.read_parquet(data_dir / "saes" / "plan.parquet")["sae_id"].tolist()
    saved = {path.stem: path.read_bytes() for path in trained.glob("*.safetensors")}
    assert KILL_AFTER <= len(saved) < len(plan)
    (killed,) = client.search_runs([experiment], "attributes.run_name LIKE 'sae_training%'")
    assert killed.info.status == "RUNNING"

    again = drive(data_dir, log)
    assert again.wait(timeout=120) == 0, log.read_text()
    assert {name: (trained / f"{name}.safetensors").read_bytes() for name in saved} == saved
    runs = client.search_runs([experiment])
    sessions = {run.info.run_id: run for run in runs if PARENT_TAG not in run.data.tags}
    children = [run for run in runs if PARENT_TAG in run.data.tags]
    assert len(plan) == 18
    assert sorted(run.data.tags[ID_TAG] for run in children) == sorted(plan)
    assert len(find_saes(client, experiment)) == len(plan)
    assert {run.info.status for run in children} == {"FINISHED"}
    last = next(run_id for run_id in sessions if run_id != killed.info.run_id)
    assert {run_id: run.info.status for run_id, run in sessions.items()} == {
        killed.info.run_id: "KILLED",
        last: "FINISHED",
    }
    # those that the killed session had made are below the one that ended what it began
    assert {run.data.tags[PARENT_TAG] for run in children} == {last}
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
    total = sessions[last].data.metrics
    assert (total["campaign.saes"], total["campaign.failed"]) == (18, 0)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_driver_that_is_ended_by_a_signal_closes_its_run(tmp_path, name):
    data_dir, log = tmp_path / "data", tmp_path / "log"
    write_rows(data_dir)
    driver = drive(data_dir, log)
    trained = data_dir / "saes" / "trained"
    while not list(trained.glob("*.safetensors")):
        assert driver.poll() is None, log.read_text()
        time.sleep(0.002)
    number = getattr(signal, name)
    driver.send_signal(number)
    assert driver.wait(timeout=120) == 128 + number, log.read_text()
    client = MlflowClient(f"sqlite:///{data_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("husai-test").experiment_id
    runs = client.search_runs([experiment], "attributes.run_name LIKE 'sae_training%'")
    assert [run.info.status for run in runs] == ["KILLED"]
    assert runs[0].info.end_time is not None
