"""Everything after the reconstruction, in one visit to each latent."""

from __future__ import annotations

from husai.sae.kernels.adam import update_biases, update_latents
from husai.sae.kernels.dead import count_since_fired
from husai.sae.kernels.gradients import (
    latent_gradients,
    order_by_latent,
    sum_errors,
    summed_gradients,
)
from husai.sae.kernels.types import (
    AdamStep,
    AuxK,
    Batch,
    Codes,
    Gradients,
    GradientSums,
    Held,
    Loss,
    SAEState,
    kernel,
)


@kernel
def step_latents(
    state: SAEState,
    batch: Batch,
    loss: Loss,
    codes: Codes,
    auxk: AuxK,
    aux_scale: float,
    gradients: Gradients,
    adam: AdamStep,
    held: Held,
) -> None:
    """Gradients and updates of one SAE without clipping or ghost gradients.

    Latents are visited in blocks as long as ``gradients`` has rows: gradient and update while both
    are in cache.
    """
    sae = state.parameters
    F, block = len(sae.W_enc), len(gradients.W_enc)
    order_by_latent(codes, 1.0)
    if len(auxk.dead) > 0:
        order_by_latent(auxk.codes, aux_scale)
    sum_errors(batch.error, gradients.b_dec)
    for lo in range(0, F, block):
        hi = min(lo + block, F)
        latent_gradients(lo, hi, sae, batch, loss, codes, auxk, gradients)
        update_latents(lo, hi, state, gradients, 1.0, adam, loss.unit_norm, held)
    update_biases(state, gradients, 1.0, adam)
    count_since_fired(state.since_fired, gradients.fired, len(batch.x))


@kernel
def step_summed(
    state: SAEState,
    batch: Batch,
    loss: Loss,
    sums: GradientSums,
    auxk: AuxK,
    aux_scale: float,
    gradients: Gradients,
    adam: AdamStep,
    held: Held,
) -> None:
    """Do as :func:`step_latents`, where the sums over the batch are there already."""
    sae = state.parameters
    F, block = len(sae.W_enc), len(gradients.W_enc)
    if len(auxk.dead) > 0:
        order_by_latent(auxk.codes, aux_scale)
    for lo in range(0, F, block):
        hi = min(lo + block, F)
        summed_gradients(lo, hi, sae, batch, loss, sums, auxk, gradients)
        update_latents(lo, hi, state, gradients, 1.0, adam, loss.unit_norm, held)
    update_biases(state, gradients, 1.0, adam)
    count_since_fired(state.since_fired, gradients.fired, len(batch.x))
