"""Adam (Kingma & Ba, arXiv 1412.6980) on a CUDA device, with the sum of each latent's gradients.

``settings [N, 8]`` float32 holds the settings of an SAE's step: learning rate, 1 − β1^t, 1 − β2^t,
the clipping factor, 2 / (B·P·d), the penalty of an activation (JumpReLU: of an active latent), the
bandwidth, and the smallest allowed cosine to the initial decoder.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from husai.sae.gpu.gradients import add_pairs, group_of

TRAINS, TRAINS_ENCODER, TRAINS_DECODER = 1, 2, 4
"""Bits of what an SAE's step may change."""


@triton.jit
def adam(p, g, m, v, settings, beta1, beta2, epsilon, decay):
    """New values of a parameter and its moments."""
    rate = tl.load(settings)
    m = m + (1 - beta1) * (g - m)
    v = v + (1 - beta2) * (g * g - v)
    change = (m / tl.load(settings + 1)) / (tl.sqrt(v / tl.load(settings + 2)) + epsilon)
    return p - rate * (change + decay * p), m, v


@triton.jit
def update_latents(
    # parameters, moments, and what is counted
    W_enc,
    b_enc,
    W_dec,
    m_W_enc,
    m_b_enc,
    m_W_dec,
    v_W_enc,
    v_b_enc,
    v_W_dec,
    W_dec_init,
    since_fired,
    # the step
    trains,
    settings,
    b_dec,
    # where the gradients come from
    totals,
    start,
    pair_row,
    pair_value,
    part_begin,
    sums,
    scalars,
    x,
    error,
    prefixes,
    to_W_enc,
    to_W_dec,
    to_b_enc,
    activations,
    place,
    extra_W_enc,
    extra_W_dec,
    extra_b_enc,
    # what is left for b_dec, and for clipping
    to_b_dec,
    squares,
    # sizes
    capacity,
    extra_capacity,
    B,
    F,
    d,
    beta1,
    beta2,
    epsilon,
    decay,
    # choices
    PAIRS: tl.constexpr,
    EXTRA: tl.constexpr,
    UPDATE: tl.constexpr,
    UNIT: tl.constexpr,
    TURN: tl.constexpr,
    LENGTH: tl.constexpr,
    PREFIXES: tl.constexpr,
    LATENTS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gradients of some latents and, where ``UPDATE``, their new parameters.

    Grid ``(F / LATENTS, N)``. With ``PAIRS`` the gradients are sums over the codes in the order of
    latents (those of :func:`husai.sae.gpu.gradients.add_parts` where a latent has more than
    ``LENGTH``); without, they are in ``to_W_enc`` and ``to_W_dec [N, F, d]`` (not centred and not
    scaled), ``to_b_enc`` and ``activations [N, F]``. ``place [N, F]`` is a dead latent's place in
    ``extra_*``, or −1. ``to_b_dec [N, programs, d]`` gets −Σ g·W_enc, ``squares [N, programs]`` the
    squared norm of the gradients.
    """
    program, sae = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, WIDTH)
    inside = c < d
    mine = settings + sae * 8
    what = tl.load(trains + sae)
    scale = tl.load(mine + 4)
    price = tl.load(mine + 5)
    factor = tl.load(mine + 3)
    centre = tl.load(b_dec + sae * d + c, mask=inside, other=0.0)
    left = tl.zeros([WIDTH], tl.float32)
    # a part's place may need 64 bits
    wide = sae.to(tl.int64) * 0 + d
    total_squares = 0.0
    for j in range(program * LATENTS, tl.minimum(program * LATENTS + LATENTS, F)):
        which = sae * F + j
        at = which.to(tl.int64) * d + c
        enc = tl.load(W_enc + at, mask=inside, other=0.0)
        dec = tl.load(W_dec + at, mask=inside, other=0.0)
        if UPDATE:
            # asked for before the codes are gone through, which takes as long as they need
            m_enc = tl.load(m_W_enc + at, mask=inside, other=0.0)
            v_enc = tl.load(v_W_enc + at, mask=inside, other=0.0)
            m_dec = tl.load(m_W_dec + at, mask=inside, other=0.0)
            v_dec = tl.load(v_W_dec + at, mask=inside, other=0.0)
        norm = 1.0
        if not UNIT:
            norm = tl.sqrt(tl.sum(dec * dec))
        n = tl.load(totals + which)
        if PAIRS:
            if n > LENGTH:
                g_dec = tl.zeros([WIDTH], tl.float32)
                g_enc = tl.zeros([WIDTH], tl.float32)
                g_b = 0.0
                activation = 0.0
                first = tl.load(part_begin + which)
                for i in range(first, first + (n + LENGTH - 1) // LENGTH):
                    part = sums + i * 2 * wide + c
                    g_dec += tl.load(part, mask=inside, other=0.0)
                    g_enc += tl.load(part + d, mask=inside, other=0.0)
                    g_b += tl.load(scalars + i * 2)
                    activation += tl.load(scalars + i * 2 + 1)
            else:
                group = group_of(prefixes, j, PREFIXES)
                base = sae.to(tl.int64) * capacity
                first = tl.load(start + which)
                g_dec, g_enc, g_b, activation = add_pairs(
                    first,
                    first + n,
                    pair_row + base,
                    pair_value + base,
                    x,
                    error + (sae * PREFIXES + group).to(tl.int64) * B * d,
                    dec,
                    scale,
                    price * norm,
                    d,
                    TILE,
                    WIDTH,
                )
        else:
            g_dec = tl.load(to_W_dec + at, mask=inside, other=0.0)
            g_enc = tl.load(to_W_enc + at, mask=inside, other=0.0)
            g_b = tl.load(to_b_enc + which)
            activation = tl.load(activations + which)
        g_enc -= g_b * centre
        g_dec = scale * g_dec + (price * activation / tl.maximum(norm, 1e-30)) * dec
        if EXTRA:
            slot = tl.load(place + which)
            if slot >= 0:
                extra = (sae.to(tl.int64) * extra_capacity + slot) * d + c
                g_enc += tl.load(extra_W_enc + extra, mask=inside, other=0.0)
                g_dec += tl.load(extra_W_dec + extra, mask=inside, other=0.0)
                g_b += tl.load(extra_b_enc + sae * extra_capacity + slot)
        # the encoder's product with x − b_dec: its gradient reaches b_dec, held or not
        left -= g_b * enc
        if UNIT:
            g_dec -= tl.sum(g_dec * dec) * dec
        if (what & 2) == 0:
            g_enc = tl.zeros([WIDTH], tl.float32)
        if (what & 4) == 0:
            g_dec = tl.zeros([WIDTH], tl.float32)
        if UPDATE:
            if (what & 2) != 0:
                enc, m_enc, v_enc = adam(
                    enc, factor * g_enc, m_enc, v_enc, mine, beta1, beta2, epsilon, decay
                )
                tl.store(W_enc + at, enc, mask=inside)
                tl.store(m_W_enc + at, m_enc, mask=inside)
                tl.store(v_W_enc + at, v_enc, mask=inside)
            if (what & 4) != 0:
                dec, m_dec, v_dec = adam(
                    dec, factor * g_dec, m_dec, v_dec, mine, beta1, beta2, epsilon, 0.0
                )
                if UNIT:
                    squared = tl.sum(tl.where(inside, dec * dec, 0.0))
                    dec = dec / tl.maximum(tl.sqrt(squared), 1e-30)
                if TURN:
                    least = tl.load(mine + 7)
                    origin = tl.load(W_dec_init + at, mask=inside, other=0.0)
                    along = tl.sum(dec * origin)
                    length = tl.sqrt(tl.sum(tl.where(inside, dec * dec, 0.0)))
                    rest = tl.where(inside, dec - along * origin, 0.0)
                    across = tl.maximum(tl.sqrt(tl.sum(rest * rest)), 1e-30)
                    sine = tl.sqrt(tl.maximum(1.0 - least * least, 0.0))
                    turned = length * (least * origin + (sine / across) * rest)
                    dec = tl.where((least > -1.0) & (along < least * length), turned, dec)
                tl.store(W_dec + at, dec, mask=inside)
                tl.store(m_W_dec + at, m_dec, mask=inside)
                tl.store(v_W_dec + at, v_dec, mask=inside)
            if (what & 1) != 0:
                old = tl.load(b_enc + which)
                m0 = tl.load(m_b_enc + which)
                v0 = tl.load(v_b_enc + which)
                new, m0, v0 = adam(old, factor * g_b, m0, v0, mine, beta1, beta2, epsilon, 0.0)
                tl.store(b_enc + which, new)
                tl.store(m_b_enc + which, m0)
                tl.store(v_b_enc + which, v0)
                idle = tl.load(since_fired + which)
                tl.store(since_fired + which, tl.where(n > 0, 0, idle + B))
        else:
            g_enc = tl.where(inside, g_enc, 0.0)
            g_dec = tl.where(inside, g_dec, 0.0)
            total_squares += tl.sum(g_enc * g_enc) + tl.sum(g_dec * g_dec) + g_b * g_b
    out = sae * tl.num_programs(0) + program
    tl.store(to_b_dec + out.to(tl.int64) * d + c, left, mask=inside)
    if not UPDATE:
        tl.store(squares + out, total_squares)


@triton.jit
def update_vectors(p, g, m, v, trains, settings, n, beta1, beta2, epsilon, WIDTH: tl.constexpr):
    """Update vectors ``[N, n]`` from their gradients. Grid ``(n / WIDTH, N)``."""
    sae = tl.program_id(1)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    at = sae.to(tl.int64) * n + c
    mine = settings + sae * 8
    if (tl.load(trains + sae) & 1) != 0:
        gradient = tl.load(mine + 3) * tl.load(g + at, mask=c < n, other=0.0)
        old = tl.load(p + at, mask=c < n, other=0.0)
        m0 = tl.load(m + at, mask=c < n, other=0.0)
        v0 = tl.load(v + at, mask=c < n, other=0.0)
        new, m0, v0 = adam(old, gradient, m0, v0, mine, beta1, beta2, epsilon, 0.0)
        tl.store(p + at, new, mask=c < n)
        tl.store(m + at, m0, mask=c < n)
        tl.store(v + at, v0, mask=c < n)
