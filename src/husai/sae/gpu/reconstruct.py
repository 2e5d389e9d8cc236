"""Reconstruct rows on a CUDA device from their active latents; the bias that centres the rows."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encoder_bias(W_enc, b_enc, b_dec, bias, F, d, LATENTS: tl.constexpr, WIDTH: tl.constexpr):
    """``b_enc − W_enc·b_dec``: with it, rows need no centring. Grid ``(F / LATENTS, N)``."""
    sae = tl.program_id(1)
    j = tl.program_id(0) * LATENTS + tl.arange(0, LATENTS)
    c = tl.arange(0, WIDTH)
    at = (sae.to(tl.int64) * F + j)[:, None] * d + c[None, :]
    w = tl.load(W_enc + at, mask=(j < F)[:, None] & (c < d)[None, :], other=0.0)
    b = tl.load(b_dec + sae * d + c, mask=c < d, other=0.0)
    own = tl.load(b_enc + sae * F + j, mask=j < F, other=0.0)
    tl.store(bias + sae * F + j, own - tl.sum(w * b[None, :], axis=1), mask=j < F)


@triton.jit
def reconstruct(
    x,
    W_dec,
    b_dec,
    prefixes,
    begin,
    count,
    latent,
    value,
    error,
    squared,
    cost,
    smallest,
    capacity,
    B,
    F,
    d,
    PREFIXES: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Errors of the reconstructions of a row from its active latents. Grid ``(B, N)``.

    ``x [B, d]``. ``error [N, PREFIXES, B, d]``: entry p is the sum of x̂ − x over the prefixes p and
    above, which is what a latent between prefixes p − 1 and p is pulled by. ``squared``, ``cost``
    and ``smallest [N, B]``: ‖x̂ − x‖² over all prefixes, Σ f‖W_dec‖, and the smallest activation.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, WIDTH)
    inside = c < d
    n = tl.load(count + sae * B + row)
    at = sae.to(tl.int64) * capacity + tl.load(begin + sae * B + row)
    guess = tl.load(b_dec + sae * d + c, mask=inside, other=0.0)
    total = tl.zeros([TILE], tl.float32)
    least = tl.full([TILE], float("inf"), tl.float32)
    for start in range(0, n, TILE):
        q = start + tl.arange(0, TILE)
        j = tl.load(latent + at + q, mask=q < n, other=0)
        f = tl.load(value + at + q, mask=q < n, other=0.0)
        from_ = (sae.to(tl.int64) * F + j)[:, None] * d + c[None, :]
        w = tl.load(W_dec + from_, mask=(q < n)[:, None] & inside[None, :], other=0.0)
        guess += tl.sum(f[:, None] * w, axis=0)
        least = tl.minimum(least, tl.where(q < n, f, float("inf")))
        if UNIT:
            total += f
        else:
            total += f * tl.sqrt(tl.sum(w * w, axis=1))
    tl.store(cost + sae * B + row, tl.sum(total))
    tl.store(smallest + sae * B + row, tl.min(least, axis=0))
    target = tl.load(x + row.to(tl.int64) * d + c, mask=inside, other=0.0)
    off = tl.where(inside, guess - target, 0.0)
    to = error + ((sae * PREFIXES + PREFIXES - 1).to(tl.int64) * B + row) * d + c
    tl.store(to, off.to(error.dtype.element_ty), mask=inside)
    squares = tl.sum(off * off)
    if PREFIXES > 1:
        above = off
        end = F
        for i in range(1, PREFIXES):
            edge = tl.load(prefixes + PREFIXES - 1 - i)
            # what the latents between this prefix and the next one added is taken off again
            for start in range(0, n, TILE):
                q = start + tl.arange(0, TILE)
                j = tl.load(latent + at + q, mask=q < n, other=0)
                f = tl.load(value + at + q, mask=q < n, other=0.0)
                group = (q < n) & (j >= edge) & (j < end)
                from_ = (sae.to(tl.int64) * F + j)[:, None] * d + c[None, :]
                w = tl.load(W_dec + from_, mask=group[:, None] & inside[None, :], other=0.0)
                guess -= tl.sum(tl.where(group, f, 0.0)[:, None] * w, axis=0)
            off = tl.where(inside, guess - target, 0.0)
            squares += tl.sum(off * off)
            above += off
            to = error + ((sae * PREFIXES + PREFIXES - 1 - i).to(tl.int64) * B + row) * d + c
            tl.store(to, above.to(error.dtype.element_ty), mask=inside)
            end = edge
    tl.store(squared + sae * B + row, squares)


@triton.jit
def scatter_codes(begin, count, latent, value, f, capacity, B, F, TILE: tl.constexpr):
    """Write the active latents into dense rows ``f [N, B, F]``, which are 0. Grid ``(B, N)``."""
    row, sae = tl.program_id(0), tl.program_id(1)
    n = tl.load(count + sae * B + row)
    at = sae.to(tl.int64) * capacity + tl.load(begin + sae * B + row)
    to = f + (sae.to(tl.int64) * B + row) * F
    for start in range(0, n, TILE):
        q = start + tl.arange(0, TILE)
        j = tl.load(latent + at + q, mask=q < n, other=0)
        v = tl.load(value + at + q, mask=q < n, other=0.0)
        tl.store(to + j, v.to(f.dtype.element_ty), mask=q < n)


@triton.jit
def subtract_rows(
    guess,
    x,
    b_dec,
    error,
    squared,
    p,
    B,
    d,
    PREFIXES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """``guess + b_dec − x`` as the error of prefix p, and its square added up. Grid ``(B, N)``.

    ``guess [N, B, d]``, ``error [N, PREFIXES, B, d]``, ``squared [N, B]``.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, WIDTH)
    inside = c < d
    off = tl.load(guess + (sae.to(tl.int64) * B + row) * d + c, mask=inside, other=0.0)
    off += tl.load(b_dec + sae * d + c, mask=inside, other=0.0)
    off -= tl.load(x + row.to(tl.int64) * d + c, mask=inside, other=0.0)
    off = tl.where(inside, off, 0.0)
    to = ((sae * PREFIXES + p).to(tl.int64) * B + row) * d + c
    tl.store(error + to, off.to(error.dtype.element_ty), mask=inside)
    before = tl.load(squared + sae * B + row)
    tl.store(squared + sae * B + row, before + tl.sum(off * off))


@triton.jit
def activate(
    pre,
    bias,
    threshold,
    norms,
    f,
    active,
    cost,
    B,
    F,
    N,
    JUMP: tl.constexpr,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
):
    """ReLU, or JumpReLU above ``threshold [N, F]``, into dense rows ``f [N, B, F]``.

    Grid ``(F / LATENTS, B / ROWS, N)``. ``active`` and ``cost [N, B / ROWS, F / LATENTS]``:
    active latents, and Σ f·norms (for JumpReLU: the count again).
    """
    tile, block, sae = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = tile * LATENTS + tl.arange(0, LATENTS)[None, :]
    r = block * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (j < F) & (r < B)
    v = tl.load(pre + (r.to(tl.int64) * N + sae) * F + j, mask=inside, other=0.0)
    v += tl.load(bias + sae * F + j, mask=j < F, other=0.0)
    edge = tl.zeros([1, LATENTS], tl.float32)
    if JUMP:
        edge = tl.load(threshold + sae * F + j, mask=j < F, other=0.0)
    # a NaN must not be lost: it is how an SAE is seen to have failed
    on = inside & ((v > edge) | (v != v))
    v = tl.where(on, v, 0.0)
    tl.store(f + (sae.to(tl.int64) * B + r) * F + j, v.to(f.dtype.element_ty), mask=inside)
    one = on.to(tl.int32)
    blocks, tiles = tl.num_programs(1), tl.num_programs(0)
    n = tl.sum(tl.sum(one, axis=1), axis=0)
    tl.store(active + (sae * blocks + block) * tiles + tile, n)
    paid = n.to(tl.float32)
    if not JUMP:
        weight = tl.load(norms + sae * F + j, mask=j < F, other=0.0)
        paid = tl.sum(tl.sum(v * weight, axis=1), axis=0)
    tl.store(cost + (sae * blocks + block) * tiles + tile, paid)
