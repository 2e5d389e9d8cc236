"""What goes into a bank's work and what comes out: its rows, and how it ended or what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from husai.activations import ActivationStore

    BankRows = torch.Tensor | ActivationStore


@dataclass(frozen=True)
class Trained:
    """A bank that ended: each SAE's file as bytes, in the order of its ids."""

    files: tuple[bytes, ...]
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Broken:
    """A bank whose training raised.

    Attributes
    ----------
    reason
        The exception in one line.
    traceback
        In full.
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

    ``measuring`` is how many seconds measuring it took, ``load`` what else the machine did then:
    processes that wanted a core, for each core it has (None where the system does not say).
    """

    fixed: float
    step: float
    entry: float
    peak_bytes: int
    measuring: float = 0.0
    load: float | None = None

    def seconds(self, steps: int, eval_interval: int) -> float:
        """Seconds for so many steps, with an entry of the history at every interval."""
        return self.fixed + steps * self.step + -(-steps // eval_interval) * self.entry

    def part(self, share: float) -> Calibration:
        """The expected cost of this part of the bank."""
        return replace(
            self, fixed=self.fixed * share, step=self.step * share, entry=self.entry * share
        )
