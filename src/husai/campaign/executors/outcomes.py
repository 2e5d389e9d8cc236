"""The results of a bank's work: trained SAEs, an error, or a measured cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from husai.activations import ActivationStore

    BankRows = torch.Tensor | ActivationStore


@dataclass(frozen=True)
class Trained:
    """A bank that was trained: each SAE's file as bytes, in the order of the bank's ids."""

    files: tuple[bytes, ...]
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Broken:
    """A bank whose training raised an exception.

    Attributes
    ----------
    reason
        The exception in one line.
    traceback
        The full traceback.
    kind
        ``input``: bad configuration; ``machine``: no space, an unreadable disk; ``other``.
    """

    reason: str
    traceback: str
    kind: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Measured cost of a bank: ``fixed + steps · step + entries · entry`` seconds.

    ``measuring`` is the time that the measurement took, in seconds; ``load`` the load of the
    machine at its start, in running processes per core (None if the system does not report it).
    """

    fixed: float
    step: float
    entry: float
    peak_bytes: int
    measuring: float = 0.0
    load: float | None = None

    def seconds(self, steps: int, eval_interval: int) -> float:
        """Seconds for this many steps, with an entry of the history at every interval."""
        return self.fixed + steps * self.step + -(-steps // eval_interval) * self.entry

    def part(self, share: float) -> Calibration:
        """The expected cost of a part of the bank with this share of its work."""
        return replace(
            self, fixed=self.fixed * share, step=self.step * share, entry=self.entry * share
        )
