"""What dead latents do in a step: they are counted, and reconstruct what the others leave."""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import math

import numpy as np

from husai.sae.kernels.reconstruct import add_weighted
from husai.sae.kernels.types import (
    F32,
    I32,
    I64,
    TINY,
    ZERO,
    AuxK,
    Batch,
    GhostGradients,
    Parameters,
    kernel,
)


@kernel
def list_dead(since_fired: I64, dead_rows: float, dead: I32) -> int:
    """List the latents that have not fired for ``dead_rows`` rows in ``dead [F + 1]``."""
    n = 0
    for j in range(len(since_fired)):
        dead[n] = j
        n += np.int64(since_fired[j] >= dead_rows)
    return n


@kernel
def count_since_fired(since_fired: I64, fired: I64, B: int) -> None:
    """Rows since each latent fired, after a batch of ``B``."""
    for j in range(len(fired)):
        since_fired[j] = 0 if fired[j] > 0 else since_fired[j] + B


@kernel
def residual_variance(error: F32) -> float:
    """Mean over rows of ‖r − r̄‖² of the residual r = x − x̂, from ``error [P, B, d]``."""
    P, B, d = error.shape
    squared = 0.0
    mean = np.zeros(d, np.float64)
    for r in range(B):
        total = ZERO
        for c in range(d):
            value = error[P - 1, r, c]
            total += value * value
            mean[c] += value
        squared += total
    for c in range(d):
        squared -= mean[c] * mean[c] / B
    return squared / B


@kernel
def reconstruct_residual(W_dec: F32, error: F32, auxk: AuxK) -> tuple[float, float]:
    """AuxK (Gao et al., arXiv 2406.04093, §2.3): dead latents reconstruct the residual.

    Fills the gradients of AuxK's codes, unscaled, and its error.

    Returns
    -------
    auxiliary, variance
        Mean squared error per row over the residual's variance, and that variance; 0 and 0
        where there is no residual.
    """
    codes, whole = auxk.codes, auxk.error[0]
    start, latent, value, gradient = codes.start, codes.latent, codes.value, codes.gradient
    P, B, d = error.shape
    squared = 0.0
    for r in range(B):
        begin, end = start[r], start[r + 1]
        for c in range(d):
            whole[r, c] = error[P - 1, r, c]
        add_weighted(W_dec, latent, value, begin, end, whole, r)
        total = ZERO
        for c in range(d):
            total += whole[r, c] * whole[r, c]
        squared += total
        for q in range(begin, end):
            j = latent[q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[j, c] * whole[r, c]
            gradient[q] = dot
    variance = residual_variance(error)
    if variance > 0:
        return squared / B / variance, variance
    return 0.0, 0.0


@kernel
def ghost_gradients(
    sae: Parameters, batch: Batch, bias: F32, dead: I32, coefficient: float, ghost: GhostGradients
) -> float:
    """Ghost gradients (Anthropic, January 2024): dead latents through exp(pre).

    Their output, scaled to half the residual's norm, is compared with the residual. ``ghost`` is
    filled.

    Returns
    -------
    float
        Mean squared error per row over the residual's variance.
    """
    W_enc, W_dec, x, error = sae.W_enc, sae.W_dec, batch.x, batch.error
    P, B, d = error.shape
    n_dead = len(dead)
    enc = np.empty((n_dead, d), np.float32)
    dec = np.empty((n_dead, d), np.float32)
    ghost.place[:] = -1
    for q in range(n_dead):
        j = dead[q]
        ghost.place[j] = q
        for c in range(d):
            enc[q, c] = W_enc[j, c]
            dec[q, c] = W_dec[j, c]
    code = np.dot(x, enc.T)
    for r in range(B):
        for q in range(n_dead):
            code[r, q] = np.float32(math.exp(code[r, q] + bias[dead[q]]))
    guess = np.dot(code, dec)
    variance = residual_variance(error)
    factor = np.float32(2.0 * coefficient / (B * variance)) if variance > 0 else ZERO
    squared = 0.0
    for r in range(B):
        residual, size, total = ZERO, ZERO, ZERO
        for c in range(d):
            residual += error[P - 1, r, c] * error[P - 1, r, c]
            size += guess[r, c] * guess[r, c]
        ratio = np.float32(0.5) * np.sqrt(residual) / max(np.sqrt(size), TINY)
        for c in range(d):
            value = ratio * guess[r, c] + error[P - 1, r, c]
            total += value * value
            guess[r, c] = factor * ratio * value
        squared += total
    ghost.W_dec[:n_dead] = np.dot(code.T, guess)
    to_pre = np.dot(guess, dec.T)
    g_b = ghost.b_enc
    g_b[:] = ZERO
    for r in range(B):
        for q in range(n_dead):
            to_pre[r, q] *= code[r, q]
            g_b[q] += to_pre[r, q]
    ghost.W_enc[:n_dead] = np.dot(to_pre.T, x)
    return squared / B / variance if variance > 0 else 0.0
