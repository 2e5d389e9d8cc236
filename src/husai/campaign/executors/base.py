"""The interface of every executor, and the events that it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from husai.campaign.banks import Bank
from husai.campaign.executors.outcomes import Broken, Calibration, Trained

if TYPE_CHECKING:
    from husai.campaign.executors.outcomes import BankRows

POLL_SECONDS = 0.5
"""Longest time in seconds to wait for events before budget and ledger are updated again."""


@dataclass(frozen=True)
class Progress:
    """A bank's worker has done this share of its work, 0 … 1; the first event marks its start."""

    name: str
    part: float
    worker: str


@dataclass(frozen=True)
class Done:
    """A bank's worker returned its result."""

    name: str
    result: Trained | Broken | Calibration
    worker: str


@dataclass(frozen=True)
class Lost:
    """A bank's worker, or its node, is gone; the bank may be submitted again."""

    name: str
    reason: str
    worker: str = ""


Event = Progress | Done | Lost


class Executor(Protocol):
    """Trains banks. All methods are called from one thread."""

    devices: float
    """Devices that one bank uses: GPUs if it trains on one, else CPU threads."""

    @property
    def slots(self) -> int:
        """Banks that can run at once."""
        ...

    @property
    def room(self) -> int:
        """Banks that may be submitted now."""
        ...

    def put(self, key: str, rows: BankRows) -> None:
        """Give all workers access to rows, or to a store of rows."""
        ...

    def submit(self, bank: Bank, *, measure: bool = False) -> None:
        """Start the training of a bank, or with ``measure`` the measurement of its cost."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Return the events since the last call; wait up to ``timeout`` seconds for one."""
        ...

    def close(self) -> None:
        """End all workers, including busy ones."""
        ...
