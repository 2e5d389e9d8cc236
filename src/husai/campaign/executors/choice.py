"""Chooses the executor of a campaign."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from husai.campaign.config import ComputeConfig
from husai.campaign.executors.base import Executor, Progress
from husai.errors import InputError

WORTH_A_PROCESS = 2e12
"""Least multiplications for which worker processes are started: about ten seconds on a core."""


def check_backend(compute: ComputeConfig) -> None:
    """Refuse a backend that is not installed.

    Raises
    ------
    InputError
        With the command that installs it.
    """
    if compute.backend == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError(
            "campaign.compute.backend: ray is not installed; pip install 'ray>=2.50', or set it "
            "to local"
        )


def make_executor(
    compute: ComputeConfig,
    *,
    work: float,
    device: str,
    checkpoints: Path | None,
    on_progress: Callable[[Progress], None],
) -> Executor:
    """Make the executor that the configuration asks for.

    Parameters
    ----------
    compute
        The configuration.
    work
        Multiplications to be done in all; for little work no process is started.
    device
        ``cpu``, ``cuda`` or ``auto``, as in the training parameters.
    checkpoints
        Folder of the banks' checkpoints.
    on_progress
        Called with the progress of a bank by executors that train in this process.
    """
    check_backend(compute)
    if compute.backend == "ray":
        from husai.campaign.executors.ray import RayExecutor

        return RayExecutor(compute, checkpoints)
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    processes = compute.processes
    if processes is None:
        processes = gpus or cores
        if processes == 1 or work < WORTH_A_PROCESS:
            processes = 0
    if processes == 0:
        from husai.campaign.executors.inline import InlineExecutor

        return InlineExecutor(checkpoints, compute.threads, on_progress, on_gpu=gpus > 0)
    from husai.campaign.executors.local import ProcessExecutor

    threads = compute.threads or max(1, cores // processes)
    return ProcessExecutor(checkpoints, processes, threads, gpus)
