"""Sparse steps of SAEs that fit in cache: reconstruct a row and add up its gradients at once."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import numpy as np

from husai.sae.kernels.types import (
    F32,
    I32,
    ZERO,
    Batch,
    Codes,
    Gradients,
    GradientSums,
    Loss,
    Means,
    Parameters,
    inlined,
    kernel,
)
from husai.sae.kernels.vectors import LANES, add_four, add_one


@inlined
def _add_row(out: F32, i: int, values: F32, r: int, scale: np.float32) -> None:
    """``out[i] += scale · values[r]`` of two matrices with ``d`` columns."""
    d = out.shape[1]
    whole = d // LANES * LANES
    for c in range(0, whole, LANES):
        add_one(out, i * d + c, values, r * d + c, scale)
    if whole < d:
        for c in range(whole, d):
            out[i, c] += scale * values[r, c]


@inlined
def _decode(W: F32, latent: I32, value: F32, begin: int, end: int, out: F32, r: int) -> None:
    """``out[r] += Σ value · W[latent]`` over the entries ``begin … end − 1``."""
    d = out.shape[1]
    whole = d // LANES * LANES
    q = begin
    while q + 4 <= end:
        j0, j1, j2, j3 = latent[q], latent[q + 1], latent[q + 2], latent[q + 3]
        v0, v1, v2, v3 = value[q], value[q + 1], value[q + 2], value[q + 3]
        for c in range(0, whole, LANES):
            add_four(
                *(out, r * d + c, W, j0 * d + c, j1 * d + c, j2 * d + c, j3 * d + c),
                *(v0, v1, v2, v3),
            )
        if whole < d:
            for c in range(whole, d):
                out[r, c] += v0 * W[j0, c] + v1 * W[j1, c] + v2 * W[j2, c] + v3 * W[j3, c]
        q += 4
    while q < end:
        _add_row(out, r, W, latent[q], value[q])
        q += 1


@inlined
def _to_codes(
    W: F32, latent: I32, begin: int, end: int, error: F32, r: int, scale: np.float32, out: F32
) -> None:
    """``out = scale · W[latent] · error[r]`` for the entries ``begin … end − 1``."""
    d = error.shape[1]
    q = begin
    while q + 4 <= end:
        j0, j1, j2, j3 = latent[q], latent[q + 1], latent[q + 2], latent[q + 3]
        dot_0, dot_1, dot_2, dot_3 = ZERO, ZERO, ZERO, ZERO
        for c in range(d):
            dot_0 += W[j0, c] * error[r, c]
            dot_1 += W[j1, c] * error[r, c]
            dot_2 += W[j2, c] * error[r, c]
            dot_3 += W[j3, c] * error[r, c]
        out[q], out[q + 1] = scale * dot_0, scale * dot_1
        out[q + 2], out[q + 3] = scale * dot_2, scale * dot_3
        q += 4
    while q < end:
        j, dot = latent[q], ZERO
        for c in range(d):
            dot += W[j, c] * error[r, c]
        out[q] = scale * dot
        q += 1


@kernel
def sum_over_rows(
    sae: Parameters,
    batch: Batch,
    loss: Loss,
    codes: Codes,
    keep: bool,
    sums: GradientSums,
    gradients: Gradients,
) -> Means:
    """Reconstruct each row of a batch and add up its gradients while it is in cache.

    The same results as :func:`husai.sae.kernels.reconstruct.reconstruct` and the gradients from
    codes in latent order, which this needs no ordering for. Fills ``sums``, the gradients'
    ``b_enc``, ``b_dec`` and ``fired``, and, where they are to be kept, the batch's errors.
    """
    W_dec, b_dec, x, norms = sae.W_dec, sae.b_dec, batch.x, loss.norms
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    g_b, g_b_dec, fired = gradients.b_enc, gradients.b_dec, gradients.fired
    B, d = x.shape
    whole = d // LANES * LANES
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(loss.l1 / (d * B))
    sum_enc, sum_dec, activations = sums.W_enc, sums.W_dec, sums.activations
    sum_enc[:] = ZERO
    sum_dec[:] = ZERO
    activations[:] = ZERO
    g_b[:] = ZERO
    g_b_dec[:] = ZERO
    fired[:] = 0
    squared, cost, smallest = 0.0, 0.0, np.inf
    error = batch.error[0]
    for r in range(B):
        begin, end = start[r], start[r + 1]
        at = r if keep else 0
        for c in range(d):
            error[at, c] = b_dec[c] - x[r, c]
        _decode(W_dec, latent, value, begin, end, error, at)
        total = ZERO
        for c in range(d):
            total += error[at, c] * error[at, c]
        squared += total
        for c in range(d):
            g_b_dec[c] += error[at, c]
        _to_codes(W_dec, latent, begin, end, error, at, scale, gradient)
        for q in range(begin, end):
            j, v = latent[q], value[q]
            to_pre = gradient[q] + pen * norms[j]
            cost += v * norms[j]
            smallest = min(smallest, np.float64(v))
            activations[j] += v
            fired[j] += 1
            g_b[j] += to_pre
            for c in range(0, whole, LANES):
                add_one(sum_dec, j * d + c, error, at * d + c, v)
                add_one(sum_enc, j * d + c, x, r * d + c, to_pre)
            if whole < d:  # to come here costs as much as a loop
                for c in range(whole, d):
                    sum_dec[j, c] += v * error[at, c]
                    sum_enc[j, c] += to_pre * x[r, c]
    for c in range(d):
        g_b_dec[c] *= scale
    return squared / (d * B), cost / B, start[B] / B, smallest
