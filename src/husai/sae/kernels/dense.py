"""relu and jumprelu through dense products, for batches with many active latents.

The products are torch's (see :mod:`husai.sae.engines.products`); these kernels do what comes
between them. A block's pre-activations lie latent by latent, so that every loop runs over many rows
of one latent and its sums stay in registers.
"""

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
    kernel,
)


@kernel
def activate(
    r0: int,
    rows: int,
    bias: F32,
    jump: JumpReLU,
    memory: BlockMemory,
    sums: GradientSums,
    gradients: Gradients,
    auxk: AuxK,
) -> None:
    """Add the bias to a block's products; fill its activations ``sums.f [F, rows]``.

    The block is rows ``r0 … r0 + rows − 1`` of the batch; the first one clears what is added up
    over the batch. Adds to ``sums.activations`` and the gradients' ``fired``; appends to AuxK's
    codes.
    """
    F = len(bias)
    pre, active, state = memory.pre, sums.f, memory.state
    jumps, half = jump.bandwidth > 0, np.float32(0.5 * jump.bandwidth)
    if r0 == 0:
        sums.activations[:] = ZERO
        jump.gradient[:] = ZERO
        gradients.b_enc[:] = ZERO
        gradients.b_dec[:] = ZERO
        gradients.fired[:] = 0
        state[1] = 0
    for j in range(F):
        add = bias[j]
        threshold = jump.edge[j] + half if jumps else ZERO
        value, kept = pre[j * rows : (j + 1) * rows], active[j * rows : (j + 1) * rows]
        total, count = ZERO, np.int32(0)
        for r in range(rows):
            v = value[r] + add
            value[r] = v
            on = v > threshold
            v = v if on else ZERO
            kept[r] = v
            total += v
            count += np.int32(on)
        sums.activations[j] += total
        gradients.fired[j] += np.int64(count)
    if len(auxk.dead) > 0:
        aux_count = state[1]
        for r in range(rows):
            aux_count = collect_dead(memory, r, rows, auxk, r0 + r, aux_count)
        state[1] = aux_count
    auxk.codes.start[r0 + rows] = state[1]


@kernel
def finish_errors(r0: int, rows: int, b_dec: F32, batch: Batch, gradients: Gradients) -> float:
    """Make a block's errors of its products with the decoder; give the sum of their squares.

    Adds to the gradients' ``b_dec``.
    """
    x, error, g_b_dec = batch.x, batch.error[0], gradients.b_dec
    d = x.shape[1]
    scale = np.float32(2.0 / (d * len(x)))
    squared = 0.0
    for r in range(r0, r0 + rows):
        total = ZERO
        for c in range(d):
            value = error[r, c] + b_dec[c] - x[r, c]
            error[r, c] = value
            g_b_dec[c] += scale * value
            total += value * value
        squared += total
    return squared


@kernel
def gradients_to_pre(
    rows: int,
    n_rows: int,
    d: int,
    loss: Loss,
    jump: JumpReLU,
    memory: BlockMemory,
    sums: GradientSums,
    gradients: Gradients,
) -> None:
    """Turn a block's products of errors and decoder into gradients of the pre-activations.

    They are in ``sums.f [F, rows]``, and stay there. Adds to the gradients' ``b_enc`` and to
    ``jump.gradient``, the gradient of log θ by the rectangle kernel (arXiv 2407.14435, eqs. 11 and
    12). The batch has ``n_rows`` rows of ``d`` numbers.
    """
    F = len(gradients.b_enc)
    pre, to_pre = memory.pre, sums.f
    jumps, width = jump.bandwidth > 0, np.float32(jump.bandwidth)
    half = np.float32(0.5 * jump.bandwidth)
    scale = np.float32(2.0 / (d * n_rows))
    pen = np.float32((jump.l0 if jumps else loss.l1) / (d * n_rows))
    for j in range(F):
        value, g = pre[j * rows : (j + 1) * rows], to_pre[j * rows : (j + 1) * rows]
        threshold, penalty, total = ZERO, pen * loss.norms[j], ZERO
        if jumps:
            threshold, penalty, at_edge = jump.edge[j] + half, ZERO, ZERO
            for r in range(rows):
                slope = threshold * (threshold * scale * g[r] + pen)
                at_edge += slope if abs(value[r] - threshold) < half else ZERO
            jump.gradient[j] -= at_edge / width
        for r in range(rows):
            to_value = scale * g[r] + penalty
            to_value = to_value if value[r] > threshold else ZERO
            g[r] = to_value
            total += to_value
        gradients.b_enc[j] += total
