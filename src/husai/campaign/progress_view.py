"""The progress bar of a campaign, with its whole state in one line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from husai.progress import progress_bar

FORMAT = "{percentage:3.0f}% |{bar:10}| {desc}"


class ProgressView:
    """Shows done, running, waiting and failed SAEs, rate, time left and cost so far.

    Parameters
    ----------
    work
        Work of each bank, in any unit.
    saes
        Number of SAEs that each bank has to train.
    name
        Name of the campaign.
    done, failed
        Number of SAEs that were done or had failed before this start.
    currency
        Currency of the cost; with an empty one no cost is shown.
    show
        Whether to show the bar.
    """

    def __init__(
        self,
        work: Mapping[str, float],
        saes: Mapping[str, int],
        *,
        name: str,
        done: int,
        failed: int,
        currency: str,
        show: bool,
    ) -> None:
        self._name = name
        self._work = dict(work)
        self._saes = dict(saes)
        self._parts: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self.done, self.failed, self.cost = done, failed, 0.0
        self._currency = currency
        self._started = time.monotonic()
        self._before = done
        self._bar: Any = progress_bar(
            sum(work.values()), name, unit="", bar_format=FORMAT, disable=not show
        )
        self._refresh()

    def replace(self, name: str, parts: Mapping[str, tuple[float, int]]) -> None:
        """Replace a bank by smaller ones that divide its work and its SAEs."""
        for known in (self._parts, self._first, self._saes, self._work):
            known.pop(name, None)
        for part, (work, saes) in parts.items():
            self._work[part], self._saes[part] = work, saes
        self._refresh()

    def progress(self, name: str, part: float) -> None:
        """Note that a bank runs, and the share of its work that is done."""
        # work that was done before, in a checkpoint, does not count for the rate
        self._first.setdefault(name, part)
        self._parts[name] = part
        self._refresh()

    def waits(self, name: str) -> None:
        """Note that a bank was stopped and waits to run again."""
        self._parts.pop(name, None)
        self._refresh()

    def ended(self, name: str, done: int, failed: int) -> None:
        """Note that a bank has ended."""
        self.done += done
        self.failed += failed
        self._parts.pop(name, None)
        self._saes.pop(name, None)
        self._refresh()

    def seconds_left(self) -> float | None:
        """Estimate the time left from the work done since the start; None without any."""
        elapsed = time.monotonic() - self._started
        begun = sum(self._work[name] * part for name, part in self._first.items())
        done = self._done_work()
        if done <= begun or elapsed <= 0:
            return None
        return (sum(self._work.values()) - done) * elapsed / (done - begun)

    def text(self) -> str:
        """The text of the line, without the bar."""
        running = sum(self._saes[name] for name in self._parts if name in self._saes)
        waiting = sum(self._saes.values()) - running
        parts = [f"{self.done} done", f"{running} running", f"{waiting} waiting"]
        parts.append(f"{self.failed} failed")
        minutes = (time.monotonic() - self._started) / 60
        if self.done > self._before and minutes > 0:
            parts.append(f"{(self.done - self._before) / minutes:.1f} SAEs/min")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        if self._currency:
            parts.append(f"{self.cost:.3f} {self._currency}")
        return " · ".join(parts)

    def close(self) -> None:
        """Show the last state and leave it on the terminal."""
        self._refresh()
        self._bar.close()

    def _done_work(self) -> float:
        running = sum(self._work[name] * part for name, part in self._parts.items())
        ended = sum(work for name, work in self._work.items() if name not in self._saes)
        return running + ended

    def _refresh(self) -> None:
        self._bar.set_description_str(f"{self._name}: {self.text()}", refresh=False)
        self._bar.update(self._done_work() - self._bar.n)


def duration(seconds: float) -> str:
    """Write seconds in a readable unit: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
