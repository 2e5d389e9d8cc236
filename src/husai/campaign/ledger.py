"""The ledger: a file with one line for each event of a campaign, to which lines are only added."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from husai.storage import append_line, read_lines

logger = logging.getLogger(__name__)

PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"


@dataclass
class Entry:
    """The state of one SAE, from the events in the ledger.

    Attributes
    ----------
    status
        planned, running, done or failed.
    attempts
        How often its training was started or continued.
    seconds
        Device-seconds spent on it, all attempts and measurements together.
    cost
        What these device-seconds cost.
    bank, worker
        Where it was last trained.
    started, ended
        Unix times of the first attempt and of the end.
    reason, traceback
        Why it failed, or why it was last started again.
    """

    sae_id: str
    status: str = PLANNED
    attempts: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    bank: str = ""
    worker: str = ""
    started: float | None = None
    ended: float | None = None
    reason: str = ""
    traceback: str = ""


class Ledger:
    """One line of JSON for each event; it is flushed to disk before the campaign continues.

    A line that is incomplete, because its writer was killed, is skipped.

    Parameters
    ----------
    path
        The file; its folder is made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._before: dict[str, tuple[float, float]] = {}
        for line in read_lines(path):
            try:
                self._apply(line)
            except (ValueError, KeyError, TypeError, OverflowError):
                logger.warning("%s: a line that is not an event is skipped", path)

    def record(self, event: str, ids: Sequence[str], **fields: Any) -> None:
        """Append an event of some SAEs.

        Parameters
        ----------
        event
            ``planned``; ``measured`` (``seconds`` and ``cost`` of measuring the training time, for
            each SAE); ``running`` (an attempt starts); ``spent`` (``seconds`` and ``cost`` of this
            attempt so far, for each SAE); ``lost`` (planned again); ``done``; ``failed``.
        ids
            The SAEs.
        **fields
            ``bank``, ``worker``, ``seconds``, ``cost``, ``reason``, ``traceback``.
        """
        if not ids:
            return
        line = {"time": time.time(), "event": event, "ids": list(ids), **fields}
        append_line(self.path, json.dumps(line))
        self._apply(line)

    def table(self, ids: Iterable[str] | None = None) -> pd.DataFrame:
        """Return one row per SAE, of these or of all, with the fields of :class:`Entry`."""
        chosen = self.entries if ids is None else ids
        rows = [asdict(self.entries.get(sae_id, Entry(sae_id))) for sae_id in chosen]
        return pd.DataFrame(rows, columns=list(Entry.__dataclass_fields__))

    def before(self, sae_id: str) -> tuple[float, float]:
        """Return the device-seconds and the cost of an SAE before its present attempt."""
        return self._before.get(sae_id, (0.0, 0.0))

    def cost(self) -> float:
        """Cost of the whole campaign so far."""
        return sum(entry.cost for entry in self.entries.values())

    def _apply(self, line: dict[str, Any]) -> None:
        event, at = line["event"], float(line["time"])
        for sae_id in line["ids"]:
            entry = self.entries.setdefault(sae_id, Entry(sae_id))
            entry.bank = line.get("bank", entry.bank)
            entry.worker = line.get("worker", entry.worker)
            if event == PLANNED:
                entry.status = PLANNED
                entry.reason = line.get("reason", "")
                entry.traceback, entry.ended = "", None
            elif event == "measured":
                entry.seconds += float(line["seconds"])
                entry.cost += float(line["cost"])
            elif event == RUNNING:
                entry.status = RUNNING
                entry.attempts += 1
                entry.started = entry.started or at
                self._before[sae_id] = (entry.seconds, entry.cost)
            elif event in ("spent", "lost", DONE, FAILED):
                # totals of this attempt so far, which may be recorded several times
                if "seconds" in line:
                    seconds, cost = self._before.get(sae_id, (0.0, 0.0))
                    entry.seconds = seconds + float(line["seconds"])
                    entry.cost = cost + float(line["cost"])
                if event == "lost":
                    entry.status, entry.reason = PLANNED, line["reason"]
                elif event in (DONE, FAILED):
                    entry.status, entry.ended = event, at
                    entry.reason = line.get("reason", "")
                    entry.traceback = line.get("traceback", "")
            else:
                raise ValueError(f"event: {event!r} is not known")
