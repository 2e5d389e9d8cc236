"""Executors: each gives the same results, and reports which bank was lost and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.campaign.conftest import ROWS, TRAINING

from husai.campaign.banks import Bank, RowsInfo, make_banks
from husai.campaign.config import ComputeConfig
from husai.campaign.executors import Done, Event, Executor, Lost, Progress, make_executor
from husai.campaign.executors.inline import InlineExecutor
from husai.campaign.executors.local import ProcessExecutor
from husai.campaign.executors.outcomes import Broken, Trained
from husai.campaign.executors.ray import RayExecutor, banks_on, check_room, ended
from husai.campaign.executors.rows import LOCK, RowsFolder
from husai.errors import InputError
from husai.sae import BankTrainingConfig, SAEConfig
from husai.storage import TensorFile


def bank_of(training: BankTrainingConfig = TRAINING, seed: int = 0) -> Bank:
    config = SAEConfig(architecture="topk", d_sae=8, k=2, init_seed=seed)
    (bank,) = make_banks([f"s{seed}"], [config], [training], [RowsInfo("h@-1", 240, 8, "f")])
    return bank


LONG = TRAINING.model_copy(update={"steps": 100_000, "checkpoint_interval": 20})


def weights(event: Event) -> torch.Tensor:
    assert isinstance(event, Done)
    assert isinstance(event.result, Trained), event.result
    (content,) = event.result.files
    return TensorFile.from_bytes(content, "s").tensors["W_dec"]


def next_of(executor: Executor, *kinds: type) -> Any:
    """Return the next event of a kind."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        for event in executor.wait(0.1):
            if isinstance(event, kinds):
                return event
    raise AssertionError("nothing happened")


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    executor = InlineExecutor(None, 1, lambda progress: None)
    executor.put("h@-1", ROWS)
    executor.submit(bank_of())
    (event,) = executor.wait(0)
    return weights(event)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that nobody else uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def break_bank(executor: ProcessExecutor, folder: Path) -> int:
    """Make a bank break that cannot write its checkpoints; return the process that had it."""
    bank = bank_of(seed=1)
    (folder / bank.name).write_text("where its folder should be")
    executor.submit(bank)
    (pid,) = executor.pids()
    done = next_of(executor, Done, Lost)
    assert isinstance(done.result, Broken)
    assert done.result.kind == "other"
    return pid


def test_a_process_outlives_a_broken_bank_and_a_killed_process_frees_its_slot(tmp_path, expected):
    executor = ProcessExecutor(tmp_path, 1, 1, 0)
    try:
        executor.put("h@-1", ROWS)
        assert executor.room == 1
        pid = break_bank(executor, tmp_path)
        assert executor.pids() == [pid]
        executor.submit(bank_of(LONG))
        assert (executor.room, executor.pids()) == (0, [pid])
        progress = next_of(executor, Progress)
        os.kill(pid, signal.SIGKILL)
        lost = next_of(executor, Lost, Done)
        assert lost == Lost(progress.name, f"process {pid} was killed by signal 9", progress.worker)
        assert (executor.room, executor.pids()) == (1, [])
        executor.submit(bank_of())
        assert torch.equal(weights(next_of(executor, Done)), expected)
    finally:
        executor.close()


def test_a_process_in_which_a_bank_broke_on_a_gpu_is_not_used_again(tmp_path):
    # (here it trains on the CPU, which the executor does not know)
    executor = ProcessExecutor(tmp_path, 1, 1, 1)
    try:
        executor.put("h@-1", ROWS)
        break_bank(executor, tmp_path)
        # at once, so that the next bank cannot be given to what is about to end
        assert (executor.room, executor.pids()) == (1, [])
    finally:
        executor.close()


def test_rows_of_a_killed_driver_are_removed_by_the_next(temporary):
    code = (
        "import sys; from husai.campaign.executors.rows import RowsFolder\n"
        "folder = RowsFolder(); print(folder.path, flush=True); sys.stdin.read()"
    )
    theirs = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        theirs.append((process, Path(process.stdout.readline().strip())))
    (killed, abandoned), (lives, in_use) = theirs
    (abandoned / "h.npy").write_text("rows")
    killed.kill()
    killed.wait()
    (temporary / "husai-rows-without-a-lock").mkdir()
    mine = RowsFolder()
    try:
        assert not abandoned.exists()
        assert (in_use / LOCK).exists()
        assert (temporary / "husai-rows-without-a-lock").exists()
    finally:
        mine.close()
        lives.kill()
        lives.wait()
    assert not mine.path.exists()


@pytest.mark.parametrize(("device", "devices"), [("cpu", 3.0), ("auto", 1.0)])
def test_only_training_on_a_gpu_counts_a_gpu(monkeypatch, device, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    executor = make_executor(
        ComputeConfig(processes=0),
        work=1.0,
        device=device,
        checkpoints=None,
        on_progress=lambda progress: None,
    )
    assert executor.devices == devices


@pytest.mark.parametrize(
    ("compute", "node", "banks"),
    [
        ({}, {"CPU": 4.0}, 4),
        ({"cpus_per_bank": 0.1}, {"CPU": 1.0}, 10),
        ({"cpus_per_bank": 2}, {"CPU": 1.0}, 0),
        ({"cpus_per_bank": 2}, {"CPU": 5.0}, 2),
        ({"gpus_per_bank": 0.5}, {"CPU": 4.0}, 0),
        ({"gpus_per_bank": 0.5}, {"CPU": 4.0, "GPU": 1.0}, 2),
        ({"gpus_per_bank": 0.6}, {"CPU": 8.0, "GPU": 2.0}, 2),
        ({"gpus_per_bank": 2}, {"CPU": 8.0, "GPU": 3.0}, 1),
        ({}, {"memory": 1e9}, 0),
    ],
)
def test_the_number_of_slots_of_a_node_is_what_ray_would_start_there(compute, node, banks):
    assert banks_on(ComputeConfig.model_validate(compute), node) == banks


@pytest.mark.parametrize(
    ("compute", "nodes", "message"),
    [
        ({"cpus_per_bank": 2}, [{"CPU": 1.0}] * 3, r"cpus_per_bank: 2, .* 3 nodes has 1 CPUs"),
        ({"gpus_per_bank": 0.5}, [{"CPU": 4.0}], r"gpus_per_bank: 0.5, .* 1 nodes has 0 GPUs"),
        (
            {"gpus_per_bank": 1, "cpus_per_bank": 4},
            [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 8.0}],
            r"gpus_per_bank: 1, .* also has 4 CPUs",
        ),
        ({}, [], r"cpus_per_bank: 1, .* 0 nodes has 0 CPUs"),
    ],
)
def test_a_bank_that_fits_on_no_node_is_refused(compute, nodes, message):
    with pytest.raises(InputError, match=message):
        check_room(ComputeConfig.model_validate(compute), nodes)


def test_errors_of_ray_are_told_apart():
    exceptions = pytest.importorskip("ray.exceptions")

    def of_task(cause: BaseException) -> Exception:
        error = exceptions.RayTaskError("f", "Traceback\n  somewhere", cause, "ray::f", 1, "::1")
        return error.as_instanceof_cause()  # type: ignore[no-any-return]

    for cause, kind in (
        (ModuleNotFoundError("no husai here"), "other"),
        (InputError("campaign.plan: no"), "input"),
        (OSError(28, "No space left on device"), "machine"),
        (Exception("plain"), "other"),
        (exceptions.RayError("not serializable"), "other"),
    ):
        event = ended("b", of_task(cause), "w")
        assert isinstance(event, Done), cause
        assert isinstance(event.result, Broken)
        assert event.result.kind == kind
        assert str(cause) in event.result.reason
        assert "somewhere" in event.result.traceback
    for error in (
        exceptions.OutOfDiskError("no space for objects"),
        exceptions.RaySystemError("broken"),
        exceptions.RuntimeEnvSetupError("no environment"),
        exceptions.TaskUnschedulableError("nowhere"),
        exceptions.WorkerCrashedError(),
        of_task(exceptions.OwnerDiedError("00" * 28, None, "")),
    ):
        event = ended("b", error, "w")
        assert isinstance(event, Lost), error
        assert event.reason


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_on_ray_a_bank_is_trained_lost_or_broken(cluster, tmp_path, expected):
    with pytest.raises(InputError, match=r"cpus_per_bank: 3, but the largest .* 2 CPUs"):
        RayExecutor(ComputeConfig(backend="ray", cpus_per_bank=3), None)
    executor = RayExecutor(ComputeConfig(backend="ray"), tmp_path)
    assert (executor.slots, executor.devices) == (2, 1.0)
    executor.put("h@-1", ROWS)
    executor.submit(bank_of())
    assert torch.equal(weights(next_of(executor, Done, Lost)), expected)
    # a worker that is killed
    executor.submit(bank_of(LONG))
    progress = next_of(executor, Progress, Done, Lost)
    os.kill(int(progress.worker.split()[-1]), signal.SIGKILL)
    lost = next_of(executor, Lost, Done)
    assert isinstance(lost, Lost)
    assert (lost.name, lost.worker) == (progress.name, progress.worker)
    assert "WorkerCrashedError" in lost.reason
    # a task that raises where no bank is to blame
    executor._rows["h@-1"] = cluster.put("no rows")
    executor.submit(bank_of())
    broken = next_of(executor, Done, Lost)
    assert isinstance(broken.result, Broken)
    assert "AttributeError" in broken.result.reason
    executor.put("h@-1", ROWS)
    executor.submit(bank_of())
    assert torch.equal(weights(next_of(executor, Done, Lost)), expected)
    executor.close()
