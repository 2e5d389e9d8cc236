"""Reconstruct a batch from its codes, and the gradients of the pre-activations."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import math

import numpy as np

from husai.sae.kernels.types import (
    F32,
    I32,
    I64,
    ZERO,
    Batch,
    Codes,
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
def add_weighted(W: F32, latent: I32, value: F32, begin: int, end: int, out: F32, r: int) -> None:
    """``out[r] += Σ value · W[latent]`` over the entries ``begin … end − 1``."""
    d = out.shape[1]
    q = begin
    while q + 4 <= end:
        j0, j1, j2, j3 = latent[q], latent[q + 1], latent[q + 2], latent[q + 3]
        v0, v1, v2, v3 = value[q], value[q + 1], value[q + 2], value[q + 3]
        for c in range(d):
            out[r, c] += v0 * W[j0, c] + v1 * W[j1, c] + v2 * W[j2, c] + v3 * W[j3, c]
        q += 4
    while q < end:
        j, v = latent[q], value[q]
        for c in range(d):
            out[r, c] += v * W[j, c]
        q += 1


@kernel
def reconstruct(sae: Parameters, batch: Batch, loss: Loss, codes: Codes) -> Means:
    """Reconstruct a batch; fill its error and the gradient of each entry of the codes."""
    W_dec, b_dec, x, norms = sae.W_dec, sae.b_dec, batch.x, loss.norms
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(loss.l1 / (d * B))
    row = batch.error[0]
    squared, cost, smallest, n_active = 0.0, 0.0, np.inf, 0
    for r in range(B):
        begin, end = start[r], start[r + 1]
        for c in range(d):
            row[r, c] = b_dec[c] - x[r, c]
        add_weighted(W_dec, latent, value, begin, end, row, r)
        total = ZERO
        for c in range(d):
            total += row[r, c] * row[r, c]
        squared += total
        n_active += end - begin
        for q in range(begin, end):
            j = latent[q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[j, c] * row[r, c]
            gradient[q] = scale * dot + pen * norms[j]
            cost += value[q] * norms[j]
            smallest = min(smallest, np.float64(value[q]))
    return squared / (d * B), cost / B, n_active / B, smallest


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
        add_weighted(W_dec, latent, value, begin, end, row, r)
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
