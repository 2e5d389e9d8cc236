"""relu and jumprelu through dense products, for batches with many active latents."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import numpy as np

from husai.sae.kernels.select import collect_dead
from husai.sae.kernels.types import (
    F32,
    ZERO,
    AuxK,
    Batch,
    BlockMemory,
    Gradients,
    GradientSums,
    JumpReLU,
    Loss,
    Means,
    Parameters,
    kernel,
)


@kernel
def dense_pass(
    sae: Parameters,
    batch: Batch,
    bias: F32,
    loss: Loss,
    jump: JumpReLU,
    memory: BlockMemory,
    sums: GradientSums,
    gradients: Gradients,
    auxk: AuxK,
) -> Means:
    """Select, reconstruct and add up gradients, block of rows by block.

    The same results as listing and reconstructing. Fills the batch's error, ``sums``, the
    gradients' ``b_enc``, ``b_dec`` and ``fired``, ``jump.gradient`` and the AuxK codes.
    """
    W_enc, W_dec, b_dec = sae.W_enc, sae.W_dec, sae.b_dec
    x, error, norms, pre = batch.x, batch.error, loss.norms, memory.pre
    edge, g_threshold = jump.edge, jump.gradient
    dense_enc, dense_dec, dense_sum = sums.W_enc, sums.W_dec, sums.activations
    g_b, g_b_dec, fired = gradients.b_enc, gradients.b_dec, gradients.fired
    B, d = x.shape
    F = W_enc.shape[0]
    jumps = jump.bandwidth > 0
    scale = np.float32(2.0 / (d * B))
    pen = np.float32((jump.l0 if jumps else loss.l1) / (d * B))
    half, width = np.float32(0.5 * jump.bandwidth), np.float32(jump.bandwidth)
    squared, cost, n_active, aux_count = 0.0, 0.0, 0, 0
    for j in range(F):
        dense_sum[j] = ZERO
        g_b[j] = ZERO
        g_threshold[j] = ZERO
        fired[j] = 0
    g_b_dec[:] = ZERO
    block_rows = len(pre) // F
    for r0 in range(0, B, block_rows):
        rows = min(block_rows, B - r0)
        block = x[r0 : r0 + rows]
        p = pre[: rows * F].reshape(rows, F)
        f = sums.f[: rows * F].reshape(rows, F)
        np.dot(block, W_enc.T, p)
        for r in range(rows):
            for j in range(F):
                p[r, j] += bias[j]
            if len(auxk.dead) > 0:
                aux_count = collect_dead(memory, r * F, 1, auxk, r0 + r, aux_count)
            if jumps:
                for j in range(F):
                    f[r, j] = p[r, j] if p[r, j] > edge[j] + half else ZERO
            else:
                for j in range(F):
                    f[r, j] = p[r, j] if p[r, j] > ZERO else ZERO
            active, paid = 0, ZERO
            for j in range(F):
                on = np.int64(f[r, j] > ZERO)
                fired[j] += on
                active += on
                dense_sum[j] += f[r, j]
                paid += f[r, j] * norms[j]
            n_active += active
            cost += np.float64(active) if jumps else np.float64(paid)
        block_error = np.dot(f, W_dec)
        for r in range(rows):
            total = ZERO
            for c in range(d):
                value = block_error[r, c] + b_dec[c] - block[r, c]
                block_error[r, c] = value
                error[0, r0 + r, c] = value
                g_b_dec[c] += scale * value
                total += value * value
            squared += total
        product = np.dot(f.T, block_error)
        if r0 == 0:
            dense_dec[:] = product
        else:
            dense_dec += product
        np.dot(block_error, W_dec.T, f)
        for r in range(rows):
            for j in range(F):
                to_value = scale * f[r, j]
                limit = ZERO
                if jumps:
                    limit = edge[j] + half
                    if abs(p[r, j] - limit) < half:
                        g_threshold[j] -= limit * (limit * to_value + pen) / width
                else:
                    to_value += pen * norms[j]
                to_value = to_value if p[r, j] > limit else ZERO
                f[r, j] = to_value
                g_b[j] += to_value
        product = np.dot(f.T, block)
        if r0 == 0:
            dense_enc[:] = product
        else:
            dense_enc += product
    auxk.codes.start[B] = aux_count
    return squared / (d * B), cost / B, n_active / B, np.inf
