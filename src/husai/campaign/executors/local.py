"""The executor that trains banks in worker processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from husai.campaign.banks import Bank
from husai.campaign.executors.base import Done, Event, Lost, Progress
from husai.campaign.executors.outcomes import Broken
from husai.campaign.executors.rows import RowsFolder

if TYPE_CHECKING:
    from husai.campaign.executors.outcomes import BankRows

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass
class _Worker:
    """One process and the pipe to it."""

    number: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    bank: str | None = None
    rows: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"process {self.process.pid}"


class ProcessExecutor:
    """Several processes, each with one bank at a time.

    A worker is a new Python process that reads its work from a pipe. Nothing is forked, so threads
    and the context of a GPU are its own, and its number of threads is set before any library is
    loaded. It ends when the pipe closes, which happens however this process ends. On a GPU it also
    ends after a bank that failed, since an error there can break the context for all later work in
    the same process.

    A worker that hangs is waited for, also after ``campaign.budget.max_hours``. Stop the campaign
    and start it again: it continues.

    Parameters
    ----------
    checkpoints
        Folder of the banks' checkpoints.
    processes
        Number of processes.
    threads
        CPU threads of each.
    gpus
        GPUs shared among them, 0 for none.
    """

    def __init__(self, checkpoints: Path | None, processes: int, threads: int, gpus: int) -> None:
        self.slots = processes
        self.devices = 1.0 if gpus else float(threads)
        self._checkpoints = checkpoints
        self._threads = threads
        self._gpus = gpus
        self._numbers: Iterator[int] = count()
        self._workers: list[_Worker] = []
        self._rows = RowsFolder()
        self._stores: dict[str, Path] = {}

    @property
    def room(self) -> int:
        """Number of idle workers."""
        return self.slots - sum(worker.bank is not None for worker in self._workers)

    def put(self, key: str, rows: BankRows) -> None:
        """Write the rows to a file that all workers read; a store is read in its own folder."""
        import numpy as np

        from husai.activations import ActivationStore

        if isinstance(rows, ActivationStore):
            self._stores[key] = rows.folder.resolve()
            return
        np.save(self._path(key), rows.numpy())

    def submit(self, bank: Bank, *, measure: bool = False) -> None:
        """Give the bank to an idle worker, or to a new one."""
        worker = next((w for w in self._workers if w.bank is None), None) or self._start()
        worker.bank = bank.name
        # if the worker has died, the next wait finds it
        with suppress(OSError):
            worker.pipe.send((bank, str(self._path(bank.rows.key)), measure))

    def wait(self, timeout: float) -> list[Event]:
        """Collect the events that the workers sent."""
        events: list[Event] = []
        by_pipe = {worker.pipe: worker for worker in self._workers}
        if not by_pipe:
            time.sleep(timeout)
            return events
        for pipe in wait(list(by_pipe), timeout):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                while worker.pipe.poll():
                    kind, value = worker.pipe.recv()
                    if kind == "progress":
                        events.append(Progress(worker.bank or "", value, worker.name))
                    else:
                        events.append(Done(worker.bank or "", value, worker.name))
                        worker.bank = None
                        if self._gpus and isinstance(value, Broken) and value.kind == "other":
                            self._end(worker)
                            break
            except (EOFError, OSError):
                code = self._end(worker, kill=False)
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                if worker.bank is not None:
                    events.append(Lost(worker.bank, f"{worker.name} {how}", worker.name))
        return events

    def pids(self) -> list[int]:
        """Return the workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kill the workers; their unfinished banks can continue from the checkpoints."""
        for worker in self._workers:
            worker.process.kill()
        for worker in list(self._workers):
            self._end(worker)
        self._rows.close()

    def _end(self, worker: _Worker, kill: bool = True) -> int:
        """End a worker's process, and return its exit code."""
        self._workers.remove(worker)
        worker.pipe.close()
        if kill:
            worker.process.kill()
        return worker.process.wait()

    def _path(self, key: str) -> Path:
        return self._stores.get(key, self._rows.path / f"{key}.npy")

    def _start(self) -> _Worker:
        number = next(self._numbers)
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self._threads))}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % self._gpus)
        mine, theirs = Pipe()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "husai.campaign.executors.worker",
                str(theirs.fileno()),
                str(self._checkpoints or ""),
            ],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        worker = _Worker(number, process, mine)
        self._workers.append(worker)
        return worker
