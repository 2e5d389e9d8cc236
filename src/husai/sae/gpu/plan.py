"""Decide before a run which SAEs the CUDA engine trains together, with what memory and kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from husai.sae.architectures import architecture
from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.sae.gpu.codes import selects
from husai.sae.schedule import StepTable

CHUNK_BYTES = 2**31
"""Pre-activations, and errors, held at once: as many SAEs are taken at a time as fit, one at least.

With codes, a step needs as much for pre-activations, as much for errors, and 250 bytes a code
beyond the state of the bank; where one SAE is too large for it, its rows are taken so many at a
time (not those of a BatchTopK SAE). With dense products it needs six times as much at most.
"""

DENSE_BELOW = {"float32": 16, "tf32": 64, "bf16": 256}
"""Dense products of codes are the faster ones where d_sae is below so many times k."""


class Chunk(NamedTuple):
    """Neighbouring SAEs that see the same rows."""

    first: int
    last: int
    data_seed: int


def supports(training: BankTrainingConfig, configs: Sequence[SAEConfig]) -> bool:
    """Whether the engine trains such SAEs: not with ghost gradients, nor thousands of k of 32k."""
    first = configs[0]
    if training.dead_latent_method(first.architecture) == "ghost":
        return False
    if architecture(first.architecture).selection != "row":
        return True
    return selects(first.d_sae, largest_k(training, configs))


def largest_k(training: BankTrainingConfig, configs: Sequence[SAEConfig]) -> int:
    """Give the largest k of the SAEs at any step, 1 where they take none."""
    factor = training.k_anneal_factor if training.k_anneal_steps else 1.0
    return max(min(c.d_sae, round((c.k or 1) * factor)) for c in configs)


def uses_codes(training: BankTrainingConfig, configs: Sequence[SAEConfig]) -> bool:
    """Whether gradients are summed over codes, and not dense products."""
    first = configs[0]
    if architecture(first.architecture).selection not in ("row", "batch"):
        return False
    return DENSE_BELOW[training.precision] * largest_k(training, configs) <= first.d_sae


def cut_into_chunks(bank: SAEBank, batch_size: int) -> list[Chunk]:
    """Cut the SAEs that still train into runs that fit into :data:`CHUNK_BYTES`."""
    values = batch_size * max(bank.d_sae, len(bank.prefixes) * bank.d_in)
    most = max(1, CHUNK_BYTES // (4 * values))
    found: list[Chunk] = []
    for i in bank.active():
        seed = bank.configs[i].data_seed
        last = found[-1] if found else None
        if last and last.last == i and last.data_seed == seed and i - last.first < most:
            found[-1] = last._replace(last=i + 1)
        else:
            found.append(Chunk(i, i + 1, seed))
    return found


def kernel_settings(bank: SAEBank, training: BankTrainingConfig, table: StepTable) -> torch.Tensor:
    """Settings of the steps as :mod:`husai.sae.gpu.update` reads them ``[n_steps, N, 8]``."""
    B, d = training.batch_size, bank.d_in
    n_steps, n = table.learning_rate.shape
    step = table.first_step + 1 + np.arange(n_steps)[:, None]
    values = np.empty((n_steps, n, 8))
    values[..., 0] = table.learning_rate
    values[..., 1] = 1 - training.beta1**step
    values[..., 2] = 1 - training.beta2**step
    values[..., 3] = 1.0
    values[..., 4] = 2 / (B * len(bank.prefixes) * d)
    values[..., 5] = table.penalty / (B * d)
    values[..., 6] = [c.jumprelu_bandwidth for c in bank.configs]
    values[..., 7] = [c.least_cosine for c in bank.configs]
    return torch.from_numpy(values).float()
