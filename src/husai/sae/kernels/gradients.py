"""Each latent's gradient, from the entries of the batch that belong to it."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import numpy as np

from husai.sae.kernels.reconstruct import prefix_of
from husai.sae.kernels.types import (
    F32,
    TINY,
    ZERO,
    AuxK,
    Batch,
    Codes,
    GhostGradients,
    Gradients,
    GradientSums,
    LatentOrder,
    Loss,
    Parameters,
    kernel,
)


@kernel
def order_by_latent(codes: Codes, factor: float) -> None:
    """Sort entries by latent, rows ascending within each: a fixed order of summation.

    Values and gradients are multiplied by ``factor`` on the way.
    """
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    order = codes.order
    out_start, out_row, out_value, out_gradient = (
        order.start,
        order.row,
        order.value,
        order.gradient,
    )
    B = len(start) - 1
    F = len(out_start) - 1
    factor32 = np.float32(factor)
    out_start[:] = 0
    for q in range(start[B]):
        out_start[latent[q] + 1] += 1
    for j in range(F):
        out_start[j + 1] += out_start[j]
    for r in range(B):
        for q in range(start[r], start[r + 1]):
            j = latent[q]
            at = out_start[j]
            out_row[at] = r
            out_value[at] = factor32 * value[q]
            out_gradient[at] = factor32 * gradient[q]
            out_start[j] = at + 1
    for j in range(F, 0, -1):
        out_start[j] = out_start[j - 1]
    out_start[0] = 0


@kernel
def _gather_latent(
    order: LatentOrder, j: int, error: F32, p: int, x: F32, gradients: Gradients, slot: int
) -> np.float32:
    """Add ``Σ value · error[row]`` and ``Σ gradient · x[row]`` to row ``slot``; give Σ gradient."""
    row, value, gradient = order.row, order.value, order.gradient
    g_enc, g_dec = gradients.W_enc, gradients.W_dec
    d = x.shape[1]
    bias = ZERO
    q, end = order.start[j], order.start[j + 1]
    while q + 4 <= end:
        r0, r1, r2, r3 = row[q], row[q + 1], row[q + 2], row[q + 3]
        v0, v1, v2, v3 = value[q], value[q + 1], value[q + 2], value[q + 3]
        w0, w1, w2, w3 = gradient[q], gradient[q + 1], gradient[q + 2], gradient[q + 3]
        for c in range(d):
            g_dec[slot, c] += (
                v0 * error[p, r0, c]
                + v1 * error[p, r1, c]
                + v2 * error[p, r2, c]
                + v3 * error[p, r3, c]
            )
        for c in range(d):
            g_enc[slot, c] += w0 * x[r0, c] + w1 * x[r1, c] + w2 * x[r2, c] + w3 * x[r3, c]
        bias += w0 + w1 + w2 + w3
        q += 4
    while q < end:
        r, v, w = row[q], value[q], gradient[q]
        for c in range(d):
            g_dec[slot, c] += v * error[p, r, c]
            g_enc[slot, c] += w * x[r, c]
        bias += w
        q += 1
    return bias


@kernel
def _finish_latent(
    sae: Parameters, j: int, slot: int, unit_norm: bool, gradients: Gradients
) -> None:
    """Account for b_dec inside the pre-activations; drop the decoder's parallel gradient."""
    W_enc, W_dec, b_dec = sae.W_enc, sae.W_dec, sae.b_dec
    g_enc, g_dec = gradients.W_enc, gradients.W_dec
    g_b, g_b_dec = gradients.b_enc, gradients.b_dec
    d = len(g_b_dec)
    dot = ZERO
    for c in range(d):
        g_enc[slot, c] -= g_b[j] * b_dec[c]
        g_b_dec[c] -= g_b[j] * W_enc[j, c]
        dot += g_dec[slot, c] * W_dec[j, c]
    if unit_norm:
        for c in range(d):
            g_dec[slot, c] -= dot * W_dec[j, c]


@kernel
def latent_gradients(
    lo: int,
    hi: int,
    sae: Parameters,
    batch: Batch,
    loss: Loss,
    codes: Codes,
    auxk: AuxK,
    gradients: Gradients,
) -> None:
    """Gradients of latents ``lo … hi − 1``, whose rows of ``gradients`` start at 0.

    Codes come in latent order. The gradients' ``b_enc`` and ``fired`` are set, ``b_dec`` is added
    to.
    """
    W_dec, x, prefixes, norms, order = sae.W_dec, batch.x, loss.prefixes, loss.norms, codes.order
    start, value = order.start, order.value
    g_enc, g_dec, g_b = gradients.W_enc, gradients.W_dec, gradients.b_enc
    B, d = x.shape
    P = len(prefixes)
    scale = np.float32(2.0 / (d * B * P))
    pen = np.float32(loss.l1 / (d * B))
    for j in range(lo, hi):
        slot = j - lo
        p = prefix_of(prefixes, j) if P > 1 else 0
        for c in range(d):
            g_dec[slot, c] = ZERO
            g_enc[slot, c] = ZERO
        g_b[j] = _gather_latent(order, j, batch.error, p, x, gradients, slot)
        total, count = ZERO, 0
        for q in range(start[j], start[j + 1]):
            total += value[q]
            count += np.int64(value[q] > ZERO)
        gradients.fired[j] = count
        # the penalty's own gradient for the decoder: λ·Σ f · W / ‖W‖
        along = pen * total / max(norms[j], TINY)
        for c in range(d):
            g_dec[slot, c] = scale * g_dec[slot, c] + along * W_dec[j, c]
        if len(auxk.dead) > 0:
            g_b[j] += _gather_latent(auxk.codes.order, j, auxk.error, 0, x, gradients, slot)
        _finish_latent(sae, j, slot, loss.unit_norm, gradients)


@kernel
def summed_gradients(
    lo: int,
    hi: int,
    sae: Parameters,
    batch: Batch,
    loss: Loss,
    sums: GradientSums,
    auxk: AuxK,
    gradients: Gradients,
) -> None:
    """Do as :func:`latent_gradients`, where the sums over the batch are there already."""
    W_dec, x, norms = sae.W_dec, batch.x, loss.norms
    g_enc, g_dec, g_b = gradients.W_enc, gradients.W_dec, gradients.b_enc
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(loss.l1 / (d * B))
    for j in range(lo, hi):
        slot = j - lo
        along = pen * sums.activations[j] / max(norms[j], TINY)
        for c in range(d):
            g_dec[slot, c] = scale * sums.W_dec[j, c] + along * W_dec[j, c]
            g_enc[slot, c] = sums.W_enc[j, c]
        if len(auxk.dead) > 0:
            g_b[j] += _gather_latent(auxk.codes.order, j, auxk.error, 0, x, gradients, slot)
        _finish_latent(sae, j, slot, loss.unit_norm, gradients)


@kernel
def add_ghost(
    sae: Parameters, unit_norm: bool, ghost: GhostGradients, gradients: Gradients
) -> None:
    """Add what ghost gradients found to the gradients of all latents."""
    W_enc, W_dec, b_dec = sae.W_enc, sae.W_dec, sae.b_dec
    g_enc, g_dec = gradients.W_enc, gradients.W_dec
    g_b, g_b_dec = gradients.b_enc, gradients.b_dec
    d = len(g_b_dec)
    for j in range(len(g_b)):
        at = ghost.place[j]
        if at < 0:
            continue
        from_bias = ghost.b_enc[at]
        g_b[j] += from_bias
        dot = ZERO
        for c in range(d):
            g_enc[j, c] += ghost.W_enc[at, c] - from_bias * b_dec[c]
            g_b_dec[c] -= from_bias * W_enc[j, c]
            dot += ghost.W_dec[at, c] * W_dec[j, c]
        along = dot if unit_norm else ZERO
        for c in range(d):
            g_dec[j, c] += ghost.W_dec[at, c] - along * W_dec[j, c]


@kernel
def sum_errors(error: F32, g_b_dec: F32) -> None:
    """The reconstruction's gradient of b_dec ``[d]``: all prefixes' errors, added up."""
    P, B, d = error.shape
    scale = np.float32(2.0 / (d * B * P))
    g_b_dec[:] = ZERO
    for r in range(B):
        for c in range(d):
            g_b_dec[c] += error[0, r, c]
    for c in range(d):
        g_b_dec[c] *= scale


@kernel
def square_sum(values: F32) -> float:
    """Σ v² over a matrix, rows in float32 and their sum in float64."""
    total = 0.0
    for q in range(values.shape[0]):
        row = ZERO
        for c in range(values.shape[1]):
            row += values[q, c] * values[q, c]
        total += row
    return total
