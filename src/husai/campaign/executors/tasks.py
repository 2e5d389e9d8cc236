"""The work of a worker: train one bank, or measure how long its training would take."""

from __future__ import annotations

import errno
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from husai.campaign.banks import Bank, write_manifest
from husai.campaign.executors.outcomes import Broken, Calibration, Trained
from husai.errors import InputError
from husai.progress import progress_to

if TYPE_CHECKING:
    from husai.campaign.executors.outcomes import BankRows

logger = logging.getLogger(__name__)

Report = Callable[[float], None]
"""Called in the worker with the share of the bank's work that is done, 0 … 1."""

# errors of the disk: no SAE causes them, and trying again would not help
MACHINE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})

REPORT_SECONDS = 0.2
"""Least time between two progress reports of a worker."""

CALIBRATION_SECONDS = 0.5
"""Least difference in time between the longer and the shorter calibration run."""


def read_bank_rows(path: Path) -> BankRows:
    """Read rows from the file that an executor wrote, or open the store in a folder."""
    import numpy as np
    import torch

    from husai.activations import ActivationStore

    return ActivationStore(path) if path.is_dir() else torch.from_numpy(np.load(path))


def train_task(
    bank: Bank, rows: BankRows, checkpoints: Path | None, report: Report
) -> Trained | Broken:
    """Train a bank, from its checkpoint if there is one; an exception becomes ``Broken``.

    Parameters
    ----------
    bank
        The bank.
    rows
        ``[n, d]`` training rows, or a store of them.
    checkpoints
        Folder of all banks' checkpoints; None for no checkpoints.
    report
        Called with the share of the work that is done.
    """
    from husai import __version__
    from husai.sae import to_tensors, train_bank
    from husai.storage import tensors_to_bytes

    last = 0.0

    def report_part(done: float, total: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS or done >= total:
            last = now
            report(done / total)

    started = time.perf_counter()
    try:
        folder = None if checkpoints is None else checkpoints / bank.name
        with alone_in(folder), progress_to(report_part), peak_memory() as peak:
            if folder is not None:
                write_manifest(folder, bank)
                set_aside_damaged(folder)
            trained = train_bank(
                rows, bank.configs, bank.training, checkpoint_dir=folder, progress=True
            )
        files = []
        for sae in trained:
            provenance = {**sae.provenance, "husai": __version__}
            files.append(tensors_to_bytes(*to_tensors(replace(sae, provenance=provenance))))
        return Trained(tuple(files), peak.bytes, time.perf_counter() - started)
    except Exception as error:
        return replace(broken(error), seconds=time.perf_counter() - started)


def broken(error: BaseException) -> Broken:
    """Turn an exception into a ``Broken`` with its kind: input, machine or other."""
    kind = "other"
    if isinstance(error, InputError):
        kind = "input"
    elif isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        kind = "machine"
    text = "".join(traceback.format_exception(error))
    message = str(error).strip().splitlines()
    return Broken(f"{type(error).__name__}: {message[0] if message else ''}", text, kind)


def calibrate(bank: Bank, rows: BankRows) -> Calibration | Broken:
    """Measure the cost of a bank's training, with runs of a few steps.

    There are three runs: one step; enough steps to take clearly longer; and the same steps with
    one more entry of the history. They give the cost of a step, of an entry and of the rest. Each
    is run twice and the faster one counts: delays by other work, or by kernels that are compiled
    when the first latent is dead, would otherwise be multiplied by thousands of steps.
    """
    from husai.sae import train_bank

    def run(steps: int, interval: int) -> float:
        training = bank.training.model_copy(
            update={
                "steps": steps,
                "eval_interval": interval,
                "checkpoint_interval": 10**9,
                # latents die late in training, and the work for dead ones takes most of the time
                "dead_after_passes": bank.training.batch_size / max(1, len(rows)),
            }
        )
        started = time.perf_counter()
        with progress_to(lambda done, total: None):
            train_bank(rows, bank.configs, training)
        return time.perf_counter() - started

    def faster(steps: int, interval: int) -> float:
        return min(run(steps, interval), run(steps, interval))

    begun, load = time.perf_counter(), load_per_core()
    try:
        run(1, 1)  # compiles kernels, and reads the rows
        with peak_memory() as peak:
            once, steps, longer = faster(1, 1), 1, 0.0
            while longer - once < CALIBRATION_SECONDS and steps < bank.training.steps:
                steps *= 2
                longer = faster(steps, steps)
            halved = faster(steps, -(-steps // 2))
        step = max((longer - once) / max(1, steps - 1), 1e-9)
        entry = max(halved - longer, 0.0)
        fixed = max(once - step - entry, 0.0)
        return Calibration(fixed, step, entry, peak.bytes, time.perf_counter() - begun, load)
    except Exception as error:
        return replace(broken(error), seconds=time.perf_counter() - begun)


def load_per_core() -> float | None:
    """Return the machine's load of the last minute per core; None if the system has none."""
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] / (os.cpu_count() or 1)


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Wait until no other worker uses a bank's folder.

    After a campaign was killed, its worker may still be ending there.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        yield


def set_aside_damaged(folder: Path) -> None:
    """Rename damaged checkpoints, so that training continues from the one before."""
    from husai.sae.checkpoint import checkpoint_files
    from husai.storage import read_header

    for path in reversed(checkpoint_files(folder)):
        try:
            read_header(path)
            return
        except InputError as error:
            logger.warning("%s; training continues from the checkpoint before", error)
            path.replace(path.with_suffix(".torn"))


class PeakMemory:
    """The largest memory in use, in bytes, filled in by :func:`peak_memory`."""

    bytes = 0


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the largest memory that is in use in the block: on the GPU if it runs there.

    If the system cannot reset its count, it is the peak since the start of the process.
    """
    import torch

    peak = PeakMemory()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("the peak of memory is counted from the start of the process")
    yield peak
    if on_gpu and torch.cuda.max_memory_allocated():
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        peak.bytes = int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        peak.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
