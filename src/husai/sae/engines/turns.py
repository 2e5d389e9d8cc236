"""Divide the SAEs of a bank among the threads of the sparse engine."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import NamedTuple

STRETCH_STEPS = 10
"""Steps a thread advances some SAEs before it takes those that are furthest behind."""


class Turn(NamedTuple):
    """SAEs that see the same batches, for a thread to advance from step ``begin`` to ``end``."""

    saes: list[int]
    seed: int
    begin: int
    end: int


class Turns:
    """Divides the SAEs of a bank among threads, stretch by stretch.

    Parameters
    ----------
    seeds
        The data seed of each SAE that is to be advanced.
    n_steps
        How many steps all of them make.
    threads
        How many threads take turns.
    """

    def __init__(self, seeds: Mapping[int, int], n_steps: int, threads: int) -> None:
        self.seeds, self.n_steps, self.threads = seeds, n_steps, threads
        self.waiting = dict.fromkeys(seeds, 0)
        self.unfinished = len(seeds)
        self.lock = threading.Lock()

    def take(self) -> Turn | None:
        """Take a thread's share of the SAEs that are furthest behind; None when none waits."""
        with self.lock:
            if not self.waiting:
                return None
            begin = min(self.waiting.values())
            behind = [sae for sae, step in self.waiting.items() if step == begin]
            seed = self.seeds[behind[0]]
            share = math.ceil(self.unfinished / self.threads)
            saes = [sae for sae in behind if self.seeds[sae] == seed][:share]
            for sae in saes:
                del self.waiting[sae]
            return Turn(saes, seed, begin, min(begin + STRETCH_STEPS, self.n_steps))

    def give_back(self, turn: Turn) -> None:
        """Say that the steps of a turn are made."""
        with self.lock:
            if turn.end < self.n_steps:
                self.waiting |= dict.fromkeys(turn.saes, turn.end)
            else:
                self.unfinished -= len(turn.saes)
