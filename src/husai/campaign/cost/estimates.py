"""Estimates of how long banks will take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from husai.campaign.banks import Bank, steps_done
from husai.campaign.cost.calibrations import Calibrations
from husai.campaign.executors.outcomes import Calibration

MULTIPLICATIONS_A_SECOND = 1e11
"""Rough speed of a core, used only when no bank could be measured."""


class Estimates:
    """Expected times of banks: as measured, corrected by the times of banks that have ended.

    Parameters
    ----------
    checkpoints
        Folder of the banks' checkpoints; steps before a checkpoint take no more time.

    Attributes
    ----------
    measured
        The measured costs; None if nothing is known.
    """

    def __init__(self, checkpoints: Path, measured: Calibrations | None = None) -> None:
        self.measured = measured
        self._checkpoints = checkpoints
        self._derived: dict[str, Calibration] = {}
        self._expected: dict[str, float] = {}
        self._expected_in_all = 0.0
        self._taken_in_all = 0.0

    def known(self, bank: Bank) -> Calibration | None:
        """Return the measured cost of a bank, or an estimate from others, or None."""
        found = None if self.measured is None else self.measured.get(bank)
        return self._derived.get(bank.name) if found is None else found

    def complete(self, banks: Sequence[Bank]) -> None:
        """Estimate banks that could not be measured from the others, in proportion to their work.

        Without an estimate such a bank would count as free in the budget.
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
        """Divide a bank's estimate among its halves, which were not measured."""
        found = self.known(bank)
        self.forget(bank)
        if found is not None:
            for half in halves:
                self._derived[half.name] = found.part(half.work / bank.work)

    def forget(self, bank: Bank) -> None:
        """Forget the estimate of a bank that stopped running before its end."""
        self._expected.pop(bank.name, None)

    def seconds(self, bank: Bank) -> float:
        """Estimate how long the rest of a bank takes; 0 when nothing is known."""
        expected = self._expect(bank)
        if not self._expected_in_all:
            return expected
        # banks that took less than expected do not lower the estimate of the others
        return expected * max(1.0, self._taken_in_all / self._expected_in_all)

    def start(self, bank: Bank) -> None:
        """Remember the estimate of a bank that is submitted now."""
        self.forget(bank)
        self._expected[bank.name] = self._expect(bank)

    def learn(self, bank: Bank, seconds: float) -> None:
        """Correct later estimates by how long a bank took since it was submitted."""
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
