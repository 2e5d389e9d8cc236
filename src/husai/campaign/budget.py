"""What banks will take, and whether the budget has it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from husai.campaign.banks import Bank, steps_done
from husai.campaign.config import BudgetConfig
from husai.campaign.work import Calibration
from husai.storage import atomic_path

MULTIPLICATIONS_A_SECOND = 1e11
"""What a core does, roughly: only where no bank could be measured at all."""


class Calibrations:
    """Measured costs of banks, kept in a file so that no shape is measured twice.

    Parameters
    ----------
    path
        A JSON file.
    backend, devices
        Of the executor: what was measured with one says nothing of another.
    """

    def __init__(self, path: Path, backend: str, devices: float) -> None:
        self._path = path
        self._where = [platform.node(), os.cpu_count(), backend, devices]
        self._known: dict[str, dict[str, float]] = {}
        # none yet, or torn: they are measured again
        with suppress(OSError, ValueError):
            self._known = json.loads(path.read_text())

    def get(self, bank: Bank) -> Calibration | None:
        """Give what was measured for a bank of this shape and size, or None."""
        found = self._known.get(self.key(bank))
        return None if found is None else Calibration(**found)  # type: ignore[arg-type]

    def put(self, bank: Bank, calibration: Calibration) -> None:
        """Keep what was measured."""
        self._known[self.key(bank)] = asdict(calibration)
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps(self._known, indent=1, sort_keys=True))

    def took(self, bank: Bank, seconds: float, peak_bytes: int) -> None:
        """Keep what a bank took that was trained from its first step to its last.

        It is worth more than what the first steps let expect: SAEs get faster as they get sparse.
        """
        self.put(bank, Calibration(0.0, seconds / bank.training.steps, 0.0, peak_bytes))

    def key(self, bank: Bank) -> str:
        """Digest of what a bank's cost depends on."""
        training = bank.training.model_dump(mode="json", exclude={"steps", "eval_interval"})
        per_sae = sorted(
            json.dumps(c.model_dump(mode="json", exclude={"init_seed", "data_seed"}))
            for c in bank.configs
        )
        content = json.dumps([self._where, training, per_sae, bank.rows.d_in, bank.rows.n_rows])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Estimates:
    """How long banks take: as measured, corrected by how long those took that have ended.

    Parameters
    ----------
    checkpoints
        Folder of the banks' checkpoints: what is done of a bank takes no more time.

    Attributes
    ----------
    measured
        What was measured; None: nothing is known.
    """

    def __init__(self, checkpoints: Path, measured: Calibrations | None = None) -> None:
        self.measured = measured
        self._checkpoints = checkpoints
        self._derived: dict[str, Calibration] = {}
        self._expected: dict[str, float] = {}
        self._expected_in_all = 0.0
        self._taken_in_all = 0.0

    def known(self, bank: Bank) -> Calibration | None:
        """Give what was measured of a bank, or else what follows from others; None: nothing."""
        found = None if self.measured is None else self.measured.get(bank)
        return self._derived.get(bank.name) if found is None else found

    def complete(self, banks: Sequence[Bank]) -> None:
        """Have banks that could not be measured take as long for their work as the others do.

        With a limit no bank may seem to take nothing.
        """
        known = [(bank, found) for bank in banks if (found := self.known(bank)) is not None]
        taken = sum(
            found.seconds(bank.training.steps, bank.training.eval_interval) for bank, found in known
        )
        work = sum(bank.work for bank, _ in known)
        ratio = taken / work if known else 1 / MULTIPLICATIONS_A_SECOND
        for bank in banks:
            if self.known(bank) is None:
                step = bank.work * ratio / bank.training.steps
                self._derived[bank.name] = Calibration(0.0, step, 0.0, int(bank.bytes))

    def divide(self, bank: Bank, halves: Sequence[Bank]) -> None:
        """Have a bank's halves, which nobody measured, take their share of what it takes."""
        found = self.known(bank)
        self.forget(bank)
        if found is not None:
            for half in halves:
                self._derived[half.name] = found.part(half.work / bank.work)

    def forget(self, bank: Bank) -> None:
        """Forget what was expected of a bank that runs no longer and did not end."""
        self._expected.pop(bank.name, None)

    def seconds(self, bank: Bank) -> float:
        """Estimate how long a bank takes from where it is now; 0 when nothing is known."""
        expected = self._expect(bank)
        if not self._expected_in_all:
            return expected
        # that some took less than expected is no promise
        return expected * max(1.0, self._taken_in_all / self._expected_in_all)

    def start(self, bank: Bank) -> None:
        """Remember what is expected of a bank that is submitted now."""
        self.forget(bank)
        self._expected[bank.name] = self._expect(bank)

    def learn(self, bank: Bank, seconds: float) -> None:
        """Learn from how long a bank took since it was submitted."""
        self._expected_in_all += self._expected.pop(bank.name, 0.0)
        self._taken_in_all += seconds

    def _expect(self, bank: Bank) -> float:
        if bank.name in self._expected:
            return self._expected[bank.name]
        found = self.known(bank)
        if found is None:
            return 0.0
        left = bank.training.steps - steps_done(self._checkpoints, bank)
        return found.seconds(max(0, left), bank.training.eval_interval)


class Budget:
    """What may still be submitted.

    Parameters
    ----------
    config
        Rate and limits.
    devices
        Devices that a bank holds.
    spent
        Cost of earlier starts.
    """

    def __init__(self, config: BudgetConfig, devices: float, spent: float) -> None:
        self.config = config
        self._devices = devices
        self._started = time.monotonic()
        self.spent = spent

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self.config.max_cost is not None or self.config.max_hours is not None

    def cost(self, seconds: float) -> float:
        """What a bank costs that runs for so long."""
        return seconds * self._devices / 3600 * self.config.rate

    def refusal(self, seconds: float, committed: float) -> str | None:
        """Say which limit a bank of so many seconds would pass, or None.

        Parameters
        ----------
        seconds
            How long it is expected to take.
        committed
            Cost that running banks are expected to end at.
        """
        maximum = self.config.max_cost
        if maximum is not None:
            total = self.spent + committed + self.cost(seconds)
            if total > maximum:
                currency = self.config.currency
                return (
                    f"campaign.budget.max_cost = {maximum:g} {currency}: {self.spent:.4g} spent, "
                    f"and the next bank would bring it to {total:.4g}"
                )
        if self.config.max_hours is not None:
            hours = (time.monotonic() - self._started + seconds) / 3600
            if hours > self.config.max_hours:
                return (
                    f"campaign.budget.max_hours = {self.config.max_hours:g}: the next bank would "
                    f"end after {hours:.4g} hours"
                )
        return None
