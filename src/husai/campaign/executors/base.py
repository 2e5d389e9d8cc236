"""The interface of every executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from husai.campaign.banks import Bank
from husai.campaign.executors.outcomes import Broken, Calibration, Trained

if TYPE_CHECKING:
    from husai.campaign.executors.outcomes import BankRows

POLL_SECONDS = 0.5
"""Longest time that a driver waits for events before it checks budget and ledger again."""


@dataclass(frozen=True)
class Progress:
    """A bank's worker has done this part of it, 0 … 1; the first one says that it started."""

    name: str
    part: float
    worker: str


@dataclass(frozen=True)
class Done:
    """A bank's worker gave its result."""

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
    """Carries out banks. Everything is called from one thread."""

    devices: float
    """Devices that one bank holds: GPUs where it trains on one, else CPU threads."""

    @property
    def slots(self) -> int:
        """Banks that can run at once."""
        ...

    @property
    def room(self) -> int:
        """Banks that may be submitted now."""
        ...

    def put(self, key: str, rows: BankRows) -> None:
        """Make rows, or a store of them, known to every worker, once."""
        ...

    def submit(self, bank: Bank, *, measure: bool = False) -> None:
        """Have a bank trained, or with ``measure`` its cost measured."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Give what happened since; wait for something up to ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """End all workers, also those that are busy."""
        ...
