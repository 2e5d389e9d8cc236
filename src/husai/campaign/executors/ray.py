"""A Ray cluster: one that is running, by its address, or one started on this machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from husai.campaign.banks import Bank
from husai.campaign.config import ComputeConfig
from husai.campaign.executors.base import Done, Event, Lost, Progress

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class RayExecutor:
    """Ray tasks, one a bank.

    Ray holds back what has no room yet and starts it where there is some. The rows are put into
    its store once. Ray itself retries nothing: the campaign counts the attempts, and a bank that
    is submitted again goes on from its checkpoint where its folder is on a disk that all nodes
    see, and from the start otherwise.

    Parameters
    ----------
    compute
        Address, CPUs and GPUs of a bank.
    checkpoints
        Folder of the banks' checkpoints.
    """

    def __init__(self, compute: ComputeConfig, checkpoints: Path | None) -> None:
        # Ray's own way of saying so, before it is imported: nothing is reported to its makers
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            address = compute.address or os.environ.get("RAY_ADDRESS")
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.WARNING,
                **({} if address else {"include_dashboard": False}),
            )
        self.devices = compute.gpus_per_bank or compute.cpus_per_bank
        self._compute = compute
        self._checkpoints = None if checkpoints is None else checkpoints.resolve()
        self._rows: dict[str, Any] = {}
        self._running: dict[Any, str] = {}
        self._parts: dict[str, tuple[float, str]] = {}
        self._task = ray.remote(
            num_cpus=compute.cpus_per_bank,
            num_gpus=compute.gpus_per_bank,
            max_retries=0,
        )(_carry_out)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()

    @property
    def slots(self) -> int:
        """Banks that the cluster's CPUs and GPUs have room for; it may grow."""
        there = self._ray.cluster_resources()
        fits = there.get("CPU", 0) / self._compute.cpus_per_bank
        if self._compute.gpus_per_bank:
            fits = min(fits, there.get("GPU", 0) / self._compute.gpus_per_bank)
        return max(1, int(fits + 1e-9))

    @property
    def room(self) -> int:
        """Banks that may be handed over: some more than can run, so that no node waits."""
        return self.slots + self._compute.queued_banks - len(self._running)

    def put(self, key: str, rows: torch.Tensor) -> None:
        """Put the rows into Ray's store."""
        self._rows[key] = self._ray.put(rows.numpy())

    def submit(self, bank: Bank, *, measure: bool = False) -> None:
        """Hand the bank to Ray."""
        threads = self._compute.threads or max(1, int(self._compute.cpus_per_bank))
        reference = self._task.remote(
            bank,
            self._rows[bank.rows.key],
            self._checkpoints,
            measure,
            threads,
            self._compute.gpus_per_bank > 0,
            self._board,
        )
        self._running[reference] = bank.name

    def wait(self, timeout: float) -> list[Event]:
        """Give the results that came, in the order in which they came, and how far the rest is."""
        if not self._running:
            return []
        from ray import exceptions

        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        events: list[Event] = []
        for reference in ready:
            name = self._running.pop(reference)
            self._parts.pop(name, None)
            try:
                events.append(Done(name, *self._ray.get(reference)))
            except (
                exceptions.WorkerCrashedError,
                exceptions.NodeDiedError,
                exceptions.ObjectLostError,
                exceptions.OutOfMemoryError,
                exceptions.LocalRayletDiedError,
            ) as error:
                reason = str(error).strip().splitlines()
                events.append(Lost(name, f"{type(error).__name__}: {reason[0] if reason else ''}"))
        if ready:
            return events
        try:
            board = self._ray.get(self._board.read.remote(), timeout=5)
        except (exceptions.RayActorError, exceptions.GetTimeoutError):
            return events  # the view stands still; training does not
        running = set(self._running.values())
        for name, told in board.items():
            if name in running and self._parts.get(name) != told:
                self._parts[name] = told
                events.append(Progress(name, *told))
        return events

    def close(self) -> None:
        """End the tasks, and the cluster where it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        if self._ours:
            self._ray.shutdown()


class _Board:
    """Where the tasks write how far they are."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[float, str]] = {}

    def tell(self, name: str, part: float, worker: str) -> None:
        self._parts[name] = (part, worker)

    def read(self) -> dict[str, tuple[float, str]]:
        return self._parts


def _carry_out(
    bank: Bank,
    rows: Any,
    checkpoints: Path | None,
    measure: bool,
    threads: int,
    on_gpu: bool,
    board: Any,
) -> Any:
    """Train a bank or measure it, on the node where this runs; say also where that was."""
    if not on_gpu:  # a GPU that was not asked for belongs to others
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import ray
    import torch

    from husai.campaign.work import calibrate, train_task

    torch.set_num_threads(threads)
    context = ray.get_runtime_context()
    worker = f"node {context.get_node_id()[:8]} process {os.getpid()}"
    board.tell.remote(bank.name, 0.0, worker)
    # Ray's arrays may not be written to, which torch has no way of knowing
    values = torch.from_numpy(rows.copy())
    if measure:
        return calibrate(bank, values), worker
    result = train_task(
        bank, values, checkpoints, lambda part: board.tell.remote(bank.name, part, worker)
    )
    return result, worker
