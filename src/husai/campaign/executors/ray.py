"""The executor that trains banks on a Ray cluster: a running one, or one started here."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from husai.campaign.banks import Bank
from husai.campaign.config import ComputeConfig
from husai.campaign.executors.base import Done, Event, Lost, Progress
from husai.campaign.executors.tasks import broken
from husai.errors import InputError

if TYPE_CHECKING:
    from husai.campaign.executors.outcomes import BankRows

logger = logging.getLogger(__name__)

COLOURS = re.compile(r"\x1b\[\d+m")
"""Colour codes that Ray puts into a traceback."""


class RayExecutor:
    """Ray tasks, one per bank.

    Ray queues tasks until a node has room for them. The rows are put into Ray's store once. Ray
    itself does not retry tasks, since the campaign counts the attempts. A bank that is submitted
    again continues from its checkpoint if the folder is on a disk that all nodes see, and starts
    from the beginning otherwise.

    Parameters
    ----------
    compute
        Address of the cluster, and CPUs and GPUs of a bank.
    checkpoints
        Folder of the banks' checkpoints.

    Raises
    ------
    InputError
        When no node has enough CPUs and GPUs for a bank: Ray would wait for one for ever.
    """

    def __init__(self, compute: ComputeConfig, checkpoints: Path | None) -> None:
        # Ray reads this when it is imported: no usage statistics are sent
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
        try:
            check_room(compute, self._nodes())
        except InputError:
            self._shut_down()
            raise
        self._checkpoints = None if checkpoints is None else checkpoints.resolve()
        self._rows: dict[str, Any] = {}
        self._running: dict[Any, str] = {}
        self._parts: dict[str, tuple[float, str]] = {}
        self._task = ray.remote(
            num_cpus=compute.cpus_per_bank,
            num_gpus=compute.gpus_per_bank,
            max_retries=0,
            # a bank that fails on a GPU can break its process for later banks
            max_calls=1 if compute.gpus_per_bank else 0,
        )(_carry_out)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()

    @property
    def slots(self) -> int:
        """Banks that fit on the cluster's nodes now, at least 1; nodes may come and go."""
        return max(1, sum(banks_on(self._compute, node) for node in self._nodes()))

    @property
    def room(self) -> int:
        """Banks that may be submitted now: a few more than can run, so that no node waits."""
        return self.slots + self._compute.queued_banks - len(self._running)

    def put(self, key: str, rows: BankRows) -> None:
        """Put the rows into Ray's store; rows on disk stay in their folder.

        Every node must see this folder under the same path.
        """
        from husai.activations import ActivationStore

        if isinstance(rows, ActivationStore):
            self._rows[key] = self._ray.put(str(rows.folder.resolve()))
        else:
            self._rows[key] = self._ray.put(rows.numpy())

    def submit(self, bank: Bank, *, measure: bool = False) -> None:
        """Submit the bank as a task."""
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
        """Return new results in the order of their arrival; without any, progress of the others."""
        if not self._running:
            return []
        from ray import exceptions

        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        events: list[Event] = []
        for reference in ready:
            name = self._running.pop(reference)
            worker = self._parts.pop(name, (0.0, ""))[1]
            try:
                events.append(Done(name, *self._ray.get(reference)))
            except exceptions.RayError as error:
                events.append(ended(name, error, worker))
        if ready:
            return events
        try:
            board = self._ray.get(self._board.read.remote(), timeout=5)
        except exceptions.RayError:
            return events  # only the progress bar does not move
        running = set(self._running.values())
        for name, progress in board.items():
            if name in running and self._parts.get(name) != progress:
                self._parts[name] = progress
                events.append(Progress(name, *progress))
        return events

    def close(self) -> None:
        """End the tasks, and the cluster if it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._shut_down()

    def _nodes(self) -> list[dict[str, float]]:
        """Return the resources of each node."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _shut_down(self) -> None:
        if self._ours:
            self._ray.shutdown()


def banks_on(compute: ComputeConfig, node: Mapping[str, float]) -> int:
    """Count the banks that fit on a node; a bank is never spread over several nodes."""
    fits = math.floor(node.get("CPU", 0) / compute.cpus_per_bank + 1e-9)
    if compute.gpus_per_bank:
        gpus = node.get("GPU", 0)
        if compute.gpus_per_bank < 1:  # a fraction cannot be spread over several GPUs
            on_gpus = int(gpus) * math.floor(1 / compute.gpus_per_bank + 1e-9)
        else:
            on_gpus = math.floor(gpus / compute.gpus_per_bank + 1e-9)
        fits = min(fits, on_gpus)
    return fits


def check_room(compute: ComputeConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse banks that fit on no node.

    Raises
    ------
    InputError
        With the name of the field, and the resources of the largest node.
    """
    if any(banks_on(compute, node) for node in nodes):
        return
    for field, resource in (("cpus_per_bank", "CPU"), ("gpus_per_bank", "GPU")):
        asked = getattr(compute, field)
        largest = max((node.get(resource, 0) for node in nodes), default=0)
        if asked > largest:
            raise InputError(
                f"campaign.compute.{field}: {asked:g}, but the largest of the cluster's "
                f"{len(nodes)} nodes has {largest:g} {resource}s; lower it, or start a larger node"
            )
    raise InputError(
        f"campaign.compute.gpus_per_bank: {compute.gpus_per_bank:g}, but no node with as many GPUs "
        f"also has {compute.cpus_per_bank:g} CPUs (cpus_per_bank); lower one of them, or start a "
        "larger node"
    )


def ended(name: str, error: Exception, worker: str) -> Done | Lost:
    """Turn an error of Ray into an event: the bank itself failed, or its worker was lost."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        # a task that cannot start (its rows are gone) is reported as an error of the task;
        # a cause that cannot be serialised is reported as a plain RayError
        if type(cause) is exceptions.RayError or not isinstance(cause, exceptions.RayError):
            return Done(name, replace(broken(cause), traceback=COLOURS.sub("", str(error))), worker)
    reason = str(error).strip().splitlines()
    return Lost(name, f"{type(error).__name__}: {reason[0] if reason else ''}", worker)


class _Board:
    """A Ray actor to which the tasks report their progress."""

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
    """Train a bank or measure its cost on this node; return the result and the worker's name."""
    if not on_gpu:  # other tasks may use the node's GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import ray
    import torch

    from husai.campaign.executors.tasks import calibrate, read_bank_rows, train_task

    torch.set_num_threads(threads)
    context = ray.get_runtime_context()
    worker = f"node {context.get_node_id()[:8]} process {os.getpid()}"
    board.tell.remote(bank.name, 0.0, worker)
    # a copy: Ray's arrays are read-only, which torch does not support
    stored = isinstance(rows, str)
    values = read_bank_rows(Path(rows)) if stored else torch.from_numpy(rows.copy())
    if measure:
        return calibrate(bank, values), worker
    result = train_task(
        bank, values, checkpoints, lambda part: board.tell.remote(bank.name, part, worker)
    )
    return result, worker
