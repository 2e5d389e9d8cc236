"""Whether the budget allows another bank."""

from __future__ import annotations

import time

from husai.campaign.config import BudgetConfig


class Budget:
    """The limits of a campaign, and whether they allow another bank.

    Parameters
    ----------
    config
        Rate and limits.
    devices
        Number of devices that a bank uses.
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
        """Cost of a bank that runs for this many seconds."""
        return seconds * self._devices / 3600 * self.config.rate

    def refusal(self, seconds: float, committed: float) -> str | None:
        """Return which limit another bank would exceed; None if it fits.

        Parameters
        ----------
        seconds
            Expected time of the bank.
        committed
            Expected cost of the running banks at their end.
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
