"""Resampling of dead latents (Bricken et al. 2023); AuxK and ghost gradients are in the losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from husai.sae.bank import SAEBank
from husai.sae.config import BankTrainingConfig
from husai.sae.selection import active_latents

ENCODER_SCALE = 0.2
"""Norm of a resampled encoder row over the mean norm of the live ones (Bricken et al.)."""

COMPETING_ENCODER_SCALE = 1.0
"""The same if latents compete for k places: with 0.2 a resampled latent would never be active."""

ROWS = 8192
"""Number of rows from which the new directions are drawn, by their losses."""


def resample_dead_latents(
    bank: SAEBank,
    draw: Callable[[np.random.Generator, int], torch.Tensor],
    n_rows: int,
    training: BankTrainingConfig,
    step: int,
) -> list[int]:
    """Give dead latents new directions: rows that the SAE reconstructs badly.

    The new decoder row is an input drawn with probability ∝ loss². The encoder row has the same
    direction and 0.2 × the mean encoder norm of the live latents (1 × if latents compete for k
    places); the bias is 0 and the optimiser state is new. Draws depend on both seeds and the step,
    so that SAEs of different seeds do not get the same directions. Baselines
    (``SAEConfig.baseline``) are not changed.

    Parameters
    ----------
    bank
        Changed in place.
    draw
        Gives scaled training rows ``[n, d]``, drawn with a generator: see
        :class:`husai.sae.rows.Rows`. From all rows, and anew for each SAE: with a sample that
        seeds share, the rows that are reconstructed worst would be the same ones in all of them.
    n_rows
        Training rows of a pass.
    training
        When a latent is dead, and whether decoder rows have norm 1.
    step
        Number of steps done.

    Returns
    -------
    list of int
        Latents resampled, per SAE.
    """
    counts = [0] * len(bank)
    dead_all = bank.since_fired >= training.dead_after_passes * n_rows
    for index in bank.active():
        dead = torch.nonzero(dead_all[index]).flatten()
        config = bank.configs[index]
        # a baseline keeps its initial directions
        if not len(dead) or config.baseline != "none":
            continue
        generator = np.random.default_rng([config.init_seed, config.data_seed, step])
        x = draw(generator, ROWS).to(bank.parameters["W_dec"])
        p = {name: tensor[index] for name, tensor in bank.parameters.items()}
        centred = x - p["b_dec"]
        loss = (centred - _codes(bank, index, centred) @ p["W_dec"]).square().sum(1)
        weight = loss.double().cpu().numpy() ** 2
        draws = generator.choice(len(x), size=len(dead), p=weight / weight.sum())
        directions = centred[torch.from_numpy(draws).to(x.device)]
        directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-30)
        live = ~dead_all[index]
        norms = p["W_enc"][live].norm(dim=1) if bool(live.any()) else p["W_enc"].norm(dim=1)
        p["W_dec"][dead] = directions
        scale = COMPETING_ENCODER_SCALE if bank.architecture.needs_k else ENCODER_SCALE
        p["W_enc"][dead] = directions * (scale * norms.mean())
        p["b_enc"][dead] = 0.0
        for moments in (bank.first_moment, bank.second_moment):
            for name in ("W_enc", "W_dec", "b_enc"):
                moments[name][index, dead] = 0.0
        bank.since_fired[index, dead] = 0
        counts[index] = len(dead)
    return counts


def _codes(bank: SAEBank, index: int, centred: torch.Tensor) -> torch.Tensor:
    p = {name: tensor[index] for name, tensor in bank.parameters.items()}
    pre = centred @ p["W_enc"].T + p["b_enc"]
    selection = bank.architecture.selection
    threshold = p["log_threshold"].exp() if selection == "threshold" else None
    # these rows are not a training batch, so BatchTopK uses the k largest of each row
    rule = "row" if selection == "batch" else selection
    return active_latents(rule, pre, k=bank.configs[index].k, threshold=threshold)
