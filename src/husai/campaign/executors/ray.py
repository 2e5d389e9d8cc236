"""A Ray cluster: one that is running, by its address, or one started on this machine."""

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

    Ray holds back what has no room yet and starts it where there is some. The rows are put into
    its store once. Ray itself retries nothing: the campaign counts the attempts, and a bank that
    is submitted again continues from its checkpoint if its folder is on a disk that all nodes
    see, and from the start otherwise.

    Parameters
    ----------
    compute
        Address, CPUs and GPUs of a bank.
    checkpoints
        Folder of the banks' checkpoints.

    Raises
    ------
    InputError
        When no node has what a bank holds: Ray would wait for one for ever.
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
            # a bank that broke on a GPU can spoil its process for those that come after
            max_calls=1 if compute.gpus_per_bank else 0,
        )(_carry_out)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()

    @property
    def slots(self) -> int:
        """Banks that the cluster's nodes have room for; it may grow, and lose all of them."""
        return max(1, sum(banks_on(self._compute, node) for node in self._nodes()))

    @property
    def room(self) -> int:
        """Banks that may be handed over: some more than can run, so that no node waits."""
        return self.slots + self._compute.queued_banks - len(self._running)

    def put(self, key: str, rows: BankRows) -> None:
        """Put the rows into Ray's store; those of a store on disk stay in its folder.

        Every node must see that folder under the same path.
        """
        from husai.activations import ActivationStore

        if isinstance(rows, ActivationStore):
            self._rows[key] = self._ray.put(str(rows.folder.resolve()))
        else:
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
            return events  # the view stands still; training does not
        running = set(self._running.values())
        for name, progress in board.items():
            if name in running and self._parts.get(name) != progress:
                self._parts[name] = progress
                events.append(Progress(name, *progress))
        return events

    def close(self) -> None:
        """End the tasks, and the cluster where it was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._shut_down()

    def _nodes(self) -> list[dict[str, float]]:
        """Give the resources of each node."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _shut_down(self) -> None:
        if self._ours:
            self._ray.shutdown()


def banks_on(compute: ComputeConfig, node: Mapping[str, float]) -> int:
    """Count the banks that a node has room for: what one holds is all on one node."""
    fits = math.floor(node.get("CPU", 0) / compute.cpus_per_bank + 1e-9)
    if compute.gpus_per_bank:
        gpus = node.get("GPU", 0)
        if compute.gpus_per_bank < 1:  # a fraction is one of a single GPU
            on_gpus = int(gpus) * math.floor(1 / compute.gpus_per_bank + 1e-9)
        else:
            on_gpus = math.floor(gpus / compute.gpus_per_bank + 1e-9)
        fits = min(fits, on_gpus)
    return fits


def check_room(compute: ComputeConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse what no node has room for.

    Raises
    ------
    InputError
        Naming the field, and what the largest node has.
    """
    if any(banks_on(compute, node) for node in nodes):
        return
    for field, resource in (("cpus_per_bank", "CPU"), ("gpus_per_bank", "GPU")):
        asked = getattr(compute, field)
        largest = max((node.get(resource, 0) for node in nodes), default=0)
        if asked > largest:
            raise InputError(
                f"campaign.compute.{field}: {asked:g}, but the largest of the cluster's "
                f"{len(nodes)} nodes has {largest:g} {resource}s; take less, or start a node that "
                "has them"
            )
    raise InputError(
        f"campaign.compute.gpus_per_bank: {compute.gpus_per_bank:g}, but no node with as many GPUs "
        f"also has {compute.cpus_per_bank:g} CPUs (cpus_per_bank); take less, or start one that has"
    )


def ended(name: str, error: Exception, worker: str) -> Done | Lost:
    """Say what an error of Ray means for a bank: its own fault, or that of what carried it out."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        # a task that cannot be started (its rows are gone) comes back as an error of the task;
        # a cause that cannot be serialised comes as a bare RayError
        if type(cause) is exceptions.RayError or not isinstance(cause, exceptions.RayError):
            return Done(name, replace(broken(cause), traceback=COLOURS.sub("", str(error))), worker)
    reason = str(error).strip().splitlines()
    return Lost(name, f"{type(error).__name__}: {reason[0] if reason else ''}", worker)


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

    from husai.campaign.executors.tasks import calibrate, read_bank_rows, train_task

    torch.set_num_threads(threads)
    context = ray.get_runtime_context()
    worker = f"node {context.get_node_id()[:8]} process {os.getpid()}"
    board.tell.remote(bank.name, 0.0, worker)
    # Ray's arrays may not be written to, which torch has no way of knowing
    stored = isinstance(rows, str)
    values = read_bank_rows(Path(rows)) if stored else torch.from_numpy(rows.copy())
    if measure:
        return calibrate(bank, values), worker
    result = train_task(
        bank, values, checkpoints, lambda part: board.tell.remote(bank.name, part, worker)
    )
    return result, worker
