"""Everything that depends on the step: learning rate, penalty, k, and the rows of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from husai.sae.config import BankTrainingConfig, SAEConfig

BATCH_TOPK_BETA = 0.999
"""Decay of BatchTopK's running inference threshold (Bussmann et al., arXiv 2412.06410)."""


def threshold_decay(step: int) -> float:
    """Compute the decay of BatchTopK's running inference threshold at a step.

    The mean is over the last tenth of the steps, and over 1,000 steps at most. With 0.999 from the
    start, the threshold would be that of much earlier weights: after 1,000 steps only 11 latents
    would pass it instead of 32.
    """
    return min(BATCH_TOPK_BETA, 1 - 10 / (step + 10))


@dataclass(frozen=True)
class StepTable:
    """Per-SAE settings of a run of steps; arrays ``[n_steps, N]``, one column per SAE.

    ``penalty`` is λ (L1 or L0), with its warm-up. ``k`` is 0 for architectures without k.
    """

    first_step: int
    learning_rate: NDArray[np.float64]
    penalty: NDArray[np.float64]
    k: NDArray[np.int64]


def step_table(
    configs: Sequence[SAEConfig], training: BankTrainingConfig, first: int, last: int
) -> StepTable:
    """Compute the settings of the steps ``first … last − 1`` (steps count from 0).

    Warm-up is linear and reaches the full rate at step ``warmup_steps``; the last
    ``decay_fraction`` of the steps falls linearly to 0.
    """
    step = np.arange(first, last, dtype=np.float64)[:, None]

    def ramp(length: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.minimum(1.0, (step + 1) / np.maximum(length, 1.0))

    warmup = np.array(
        [training.warmup_steps if c.warmup_steps is None else c.warmup_steps for c in configs],
        dtype=np.float64,
    )
    rate = np.array([c.learning_rate for c in configs]) * ramp(warmup)
    decay_steps = training.decay_fraction * training.steps
    if decay_steps > 0:
        rate = rate * np.minimum(1.0, (training.steps - step) / decay_steps)
    penalty = np.array([c.l0_coefficient or c.l1_coefficient or 0.0 for c in configs])
    penalty = penalty * ramp(np.full(len(configs), float(training.sparsity_warmup_steps)))
    k = np.array([c.k or 0 for c in configs], dtype=np.float64)
    if training.k_anneal_steps:
        d_sae = np.array([c.d_sae for c in configs])
        start = np.minimum(training.k_anneal_factor * k, d_sae)
        k = k + (start - k) * np.maximum(0.0, 1 - step / training.k_anneal_steps)
    k = np.broadcast_to(k, (last - first, len(configs)))
    return StepTable(first, rate, penalty, np.rint(k).astype(np.int64))


def batch_rows(
    data_seed: int, n_rows: int, batch_size: int, first: int, last: int
) -> NDArray[np.int64]:
    """Compute the rows of the batches of steps ``first … last − 1``: ``[n_steps, batch_size]``.

    Training goes over the rows in many passes. The order of a pass depends only on ``data_seed``
    and the number of the pass, and the passes are cut into batches without a gap. So no state of a
    random generator is needed: the step determines the batch, and resuming is exact.
    """
    begin, end = first * batch_size, last * batch_size
    passes = [
        np.random.default_rng([data_seed, number]).permutation(n_rows)
        for number in range(begin // n_rows, (end - 1) // n_rows + 1)
    ]
    stream = np.concatenate(passes)
    offset = begin - begin // n_rows * n_rows
    return stream[offset : offset + end - begin].reshape(last - first, batch_size)
