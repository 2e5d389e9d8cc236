"""Reconstruct a batch from its codes, and the gradients of the pre-activations."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import math

import numpy as np

from husai.sae.kernels.rows import add_row, decode_row, project_row
from husai.sae.kernels.types import (
    F32,
    I64,
    ZERO,
    Batch,
    Codes,
    Gradients,
    GradientSums,
    JumpReLU,
    Loss,
    Means,
    Parameters,
    kernel,
)


@kernel
def set_edges(log_threshold: F32, bandwidth: float, edge: F32) -> None:
    """``edge = θ − ε/2`` ``[F]``: where jumprelu's kernel begins."""
    half = np.float32(0.5 * bandwidth)
    for j in range(len(edge)):
        edge[j] = np.float32(math.exp(log_threshold[j])) - half


@kernel
def set_norms(W_dec: F32, norms: F32) -> None:
    """Norms of decoder rows ``[F]``."""
    for j in range(len(norms)):
        total = ZERO
        for c in range(W_dec.shape[1]):
            total += W_dec[j, c] * W_dec[j, c]
        norms[j] = np.sqrt(total)


@kernel
def reconstruct(
    sae: Parameters,
    batch: Batch,
    loss: Loss,
    codes: Codes,
    keep: bool,
    sums: GradientSums,
    gradients: Gradients,
) -> Means:
    """Reconstruct a batch; fill the gradient of each entry of the codes.

    The batch's errors are filled where they are to be kept. Where ``sums`` is in use, the weights'
    gradients are added up while a row is in cache, which needs no order by latent: ``sums`` and the
    gradients' ``b_enc``, ``b_dec`` and ``fired`` are filled.
    """
    W_dec, b_dec, x, norms = sae.W_dec, sae.b_dec, batch.x, loss.norms
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    g_b, g_b_dec, fired = gradients.b_enc, gradients.b_dec, gradients.fired
    sum_enc, sum_dec, activations = sums.W_enc, sums.W_dec, sums.activations
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(loss.l1 / (d * B))
    if sums.used:
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
        decode_row(W_dec, latent, value, begin, end, error, at)
        total = ZERO
        for c in range(d):
            total += error[at, c] * error[at, c]
        squared += total
        project_row(W_dec, latent, begin, end, error, at, scale, gradient)
        for q in range(begin, end):
            j, v = latent[q], value[q]
            to_pre = gradient[q] + pen * norms[j]
            gradient[q] = to_pre
            cost += v * norms[j]
            smallest = min(smallest, np.float64(v))
            if sums.used:
                activations[j] += v
                fired[j] += 1
                g_b[j] += to_pre
                add_row(sum_dec, j, error, at, v)
                add_row(sum_enc, j, x, r, to_pre)
        if sums.used:
            for c in range(d):
                g_b_dec[c] += error[at, c]
    if sums.used:
        for c in range(d):
            g_b_dec[c] *= scale
    return squared / (d * B), cost / B, start[B] / B, smallest


@kernel
def prefix_of(prefixes: I64, j: int) -> int:
    """First prefix that holds latent ``j``."""
    p = 0
    while j >= prefixes[p]:
        p += 1
    return p


@kernel
def reconstruct_nested(
    sae: Parameters, batch: Batch, loss: Loss, codes: Codes, group: F32
) -> Means:
    """Reconstruct with every nested prefix (Matryoshka, arXiv 2503.17547).

    As :func:`reconstruct`, but row p of ``batch.error`` ends as the sum of the errors of prefixes
    p … P − 1, those that a latent whose first prefix is p takes part in. The last row is the error
    of the whole. ``group [P, d]`` is memory.
    """
    W_dec, b_dec, norms, prefixes = sae.W_dec, sae.b_dec, loss.norms, loss.prefixes
    x, error = batch.x, batch.error
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    B, d = x.shape
    P = len(prefixes)
    scale = np.float32(2.0 / (d * B * P))
    pen = np.float32(loss.l1 / (d * B))
    squared, cost, smallest, n_active = 0.0, 0.0, np.inf, 0
    for r in range(B):
        begin, end = start[r], start[r + 1]
        group[:] = ZERO
        for q in range(begin, end):
            j, v = latent[q], value[q]
            p = prefix_of(prefixes, j)
            for c in range(d):
                group[p, c] += v * W_dec[j, c]
        for p in range(P):
            total = ZERO
            for c in range(d):
                before = b_dec[c] - x[r, c] if p == 0 else error[p - 1, r, c]
                after = before + group[p, c]
                error[p, r, c] = after
                total += after * after
            squared += total
        for p in range(P - 2, -1, -1):
            for c in range(d):
                error[p, r, c] += error[p + 1, r, c]
        n_active += end - begin
        for q in range(begin, end):
            j = latent[q]
            p = prefix_of(prefixes, j)
            dot = ZERO
            for c in range(d):
                dot += W_dec[j, c] * error[p, r, c]
            gradient[q] = scale * dot + pen * norms[j]
            cost += value[q] * norms[j]
            smallest = min(smallest, np.float64(value[q]))
    return squared / (d * B * P), cost / B, n_active / B, smallest


@kernel
def reconstruct_jump(sae: Parameters, batch: Batch, jump: JumpReLU, codes: Codes) -> Means:
    """Reconstruct with jumprelu; see :func:`reconstruct`. The cost is L0.

    The values come as the distance from the edge and leave as the activation, 0 below θ.
    ``jump.gradient`` gets the gradient of log θ by the rectangle kernel of width ε (arXiv
    2407.14435, eqs. 11 and 12).
    """
    W_dec, b_dec, x = sae.W_dec, sae.b_dec, batch.x
    edge, g_threshold = jump.edge, jump.gradient
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(jump.l0 / (d * B))
    half = np.float32(0.5 * jump.bandwidth)
    width = np.float32(jump.bandwidth)
    row = batch.error[0]
    squared, n_active = 0.0, 0
    g_threshold[:] = ZERO
    for r in range(B):
        begin, end = start[r], start[r + 1]
        for q in range(begin, end):
            distance = value[q]
            # kept aside until the error is known
            gradient[q] = distance
            active = distance > half
            value[q] = distance + edge[latent[q]] if active else ZERO
            n_active += np.int64(active)
        for c in range(d):
            row[r, c] = b_dec[c] - x[r, c]
        decode_row(W_dec, latent, value, begin, end, row, r)
        total = ZERO
        for c in range(d):
            total += row[r, c] * row[r, c]
        squared += total
        for q in range(begin, end):
            j = latent[q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[j, c] * row[r, c]
            to_value = scale * dot
            distance = gradient[q]
            if distance < width:
                theta = edge[j] + half
                g_threshold[j] -= theta * (theta * to_value + pen) / width
            gradient[q] = to_value if distance > half else ZERO
    return squared / (d * B), n_active / B, n_active / B, np.inf
