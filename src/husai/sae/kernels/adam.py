"""Adam (Kingma & Ba, arXiv 1412.6980): the update of each parameter from its gradient."""

from __future__ import annotations

import numpy as np

from husai.sae.kernels.types import F32, TINY, ZERO, AdamStep, Gradients, Held, SAEState, kernel


@kernel
def _update_row(
    parameter: F32, m: F32, v: F32, g: F32, factor: float, adam: AdamStep, decay: float
) -> None:
    """``p = (1 − decay)·p − rate·m / (√v·correction + ε)``; ``factor`` clips the gradient."""
    clip, a, b = np.float32(factor), np.float32(adam.rate), np.float32(adam.correction)
    beta1, beta2 = np.float32(adam.beta1), np.float32(adam.beta2)
    epsilon, keep, one = np.float32(adam.epsilon), np.float32(1.0 - decay), np.float32(1.0)
    for c in range(len(parameter)):
        gradient = clip * g[c]
        first = beta1 * m[c] + (one - beta1) * gradient
        second = beta2 * v[c] + (one - beta2) * gradient * gradient
        first = ZERO if abs(first) < TINY else first
        second = ZERO if second < TINY else second
        m[c] = first
        v[c] = second
        parameter[c] = keep * parameter[c] - a * first / (np.sqrt(second) * b + epsilon)


@kernel
def turn_back(row: F32, start: F32, cosine: float) -> None:
    """Turn a row to the nearest direction whose cosine to ``start`` is ``cosine``, if it is less.

    Its norm is kept; ``start`` has norm 1.
    """
    along, squares = ZERO, ZERO
    for c in range(len(row)):
        along += row[c] * start[c]
        squares += row[c] * row[c]
    norm, least = np.sqrt(squares), np.float32(cosine)
    if along >= least * norm:
        return
    across = ZERO
    for c in range(len(row)):
        rest = row[c] - along * start[c]
        across += rest * rest
    sine = np.sqrt(np.float32(1.0) - least * least)
    scale = norm * sine / max(np.sqrt(across), TINY)
    for c in range(len(row)):
        row[c] = norm * least * start[c] + scale * (row[c] - along * start[c])


@kernel
def update_latents(
    lo: int,
    hi: int,
    state: SAEState,
    gradients: Gradients,
    factor: float,
    adam: AdamStep,
    unit_norm: bool,
    held: Held,
) -> None:
    """Update encoder and decoder rows ``lo … hi − 1``; where asked, the decoder's get norm 1."""
    sae, m, v = state.parameters, state.first, state.second
    W_dec = sae.W_dec
    for j in range(lo, hi):
        g_enc, g_dec = gradients.W_enc[j - lo], gradients.W_dec[j - lo]
        if not held.encoder:
            _update_row(sae.W_enc[j], m.W_enc[j], v.W_enc[j], g_enc, factor, adam, adam.decay)
        if held.decoder:
            continue
        _update_row(W_dec[j], m.W_dec[j], v.W_dec[j], g_dec, factor, adam, 0.0)
        if unit_norm:
            total = ZERO
            for c in range(W_dec.shape[1]):
                total += W_dec[j, c] * W_dec[j, c]
            inverse = np.float32(1.0) / max(np.sqrt(total), TINY)
            for c in range(W_dec.shape[1]):
                W_dec[j, c] *= inverse
        if held.cosine > -1.0:
            turn_back(W_dec[j], held.W_dec[j], held.cosine)


@kernel
def update_vector(parameter: F32, m: F32, v: F32, g: F32, factor: float, adam: AdamStep) -> None:
    """Update one vector of an SAE ``[n]``."""
    _update_row(parameter, m, v, g, factor, adam, 0.0)


@kernel
def update_biases(state: SAEState, gradients: Gradients, factor: float, adam: AdamStep) -> None:
    """Update ``b_enc`` and ``b_dec``."""
    sae, m, v = state.parameters, state.first, state.second
    _update_row(sae.b_enc, m.b_enc, v.b_enc, gradients.b_enc, factor, adam, 0.0)
    _update_row(sae.b_dec, m.b_dec, v.b_dec, gradients.b_dec, factor, adam, 0.0)
