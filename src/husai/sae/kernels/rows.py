"""What is done with a few latents' weights and one row: decode it, and project it on them."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import numpy as np

from husai.sae.kernels.types import F32, I32, ZERO, inlined
from husai.sae.kernels.vectors import LANES, add_four, add_one


@inlined
def add_row(out: F32, i: int, values: F32, r: int, scale: np.float32) -> None:
    """``out[i] += scale · values[r]`` of two matrices with ``d`` columns."""
    d = out.shape[1]
    whole = d // LANES * LANES
    for c in range(0, whole, LANES):
        add_one(out, i * d + c, values, r * d + c, scale)
    if whole < d:  # to come here costs as much as a loop
        for c in range(whole, d):
            out[i, c] += scale * values[r, c]


@inlined
def decode_row(W: F32, latent: I32, value: F32, begin: int, end: int, out: F32, r: int) -> None:
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
        add_row(out, r, W, latent[q], value[q])
        q += 1


@inlined
def project_row(
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
