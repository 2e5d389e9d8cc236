"""The executor that trains bank after bank in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from husai.campaign.banks import Bank
from husai.campaign.executors.base import Done, Event, Progress
from husai.campaign.executors.tasks import calibrate, train_task

if TYPE_CHECKING:
    from husai.campaign.executors.outcomes import BankRows

WORKER = "this process"


class InlineExecutor:
    """Trains a bank inside each call of :meth:`wait`.

    Parameters
    ----------
    checkpoints
        Folder of the banks' checkpoints.
    threads
        CPU threads; torch's setting when None.
    on_progress
        Called with the progress of a bank while it runs.
    on_gpu
        Whether banks train on a GPU.
    """

    slots = 1

    def __init__(
        self,
        checkpoints: Path | None,
        threads: int | None,
        on_progress: Callable[[Progress], None],
        on_gpu: bool = False,
    ) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.devices = 1.0 if on_gpu else float(torch.get_num_threads())
        self._checkpoints = checkpoints
        self._on_progress = on_progress
        self._rows: dict[str, BankRows] = {}
        self._next: tuple[Bank, bool] | None = None

    @property
    def room(self) -> int:
        """One bank at a time."""
        return int(self._next is None)

    def put(self, key: str, rows: BankRows) -> None:
        """Keep the rows in memory."""
        self._rows[key] = rows

    def submit(self, bank: Bank, *, measure: bool = False) -> None:
        """Keep the bank for the next :meth:`wait`, which trains it."""
        self._next = (bank, measure)

    def wait(self, timeout: float) -> list[Event]:
        """Train the bank."""
        if self._next is None:
            return []
        (bank, measure), self._next = self._next, None
        rows = self._rows[bank.rows.key]
        if measure:
            return [Done(bank.name, calibrate(bank, rows), WORKER)]
        result = train_task(
            bank,
            rows,
            self._checkpoints,
            lambda part: self._on_progress(Progress(bank.name, part, WORKER)),
        )
        return [Done(bank.name, result, WORKER)]

    def close(self) -> None:
        """Do nothing: there are no workers."""
