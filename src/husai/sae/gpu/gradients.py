"""Gradients on a CUDA device: sort the codes by latent, and sum over the rows of each latent."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_latents(
    begin, count, latent, counts, capacity, B, F, ROWS: tl.constexpr, TILE: tl.constexpr
):
    """Count how often each latent is active in a block of rows.

    Grid ``(B / ROWS, N)``; ``counts [N, B / ROWS, F]`` begins at 0.
    """
    block, sae = tl.program_id(0), tl.program_id(1)
    to = counts + (sae * tl.num_programs(0) + block).to(tl.int64) * F
    for r in range(block * ROWS, tl.minimum(block * ROWS + ROWS, B)):
        n = tl.load(count + sae * B + r)
        at = sae.to(tl.int64) * capacity + tl.load(begin + sae * B + r)
        for start in range(0, n, TILE):
            q = start + tl.arange(0, TILE)
            j = tl.load(latent + at + q, mask=q < n, other=0)
            tl.atomic_add(to + j, 1, mask=q < n)


@triton.jit
def add_blocks(counts, totals, blocks, F, LATENTS: tl.constexpr):
    """Counts of the blocks before each one in place of its own, and all of them together.

    Grid ``(F / LATENTS, N)``; ``counts [N, blocks, F]``, ``totals [N, F]``.
    """
    sae = tl.program_id(1)
    j = tl.program_id(0) * LATENTS + tl.arange(0, LATENTS)
    total = tl.zeros([LATENTS], tl.int32)
    for block in range(blocks):
        at = counts + (sae * blocks + block).to(tl.int64) * F + j
        own = tl.load(at, mask=j < F, other=0)
        tl.store(at, total, mask=j < F)
        total += own
    tl.store(totals + sae * F + j, total, mask=j < F)


@triton.jit
def order_by_latent(
    begin,
    count,
    latent,
    value,
    start,
    counts,
    pair_row,
    pair_value,
    capacity,
    B,
    F,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write each code to its latent's part of ``pair_row`` and ``pair_value [N, capacity]``.

    Grid ``(B / ROWS, N)``. A latent's part begins at ``start [N, F]``, and its rows are in order:
    a block goes through its rows one after the other, and the earlier blocks' places are counted
    already. So the order is the same however the blocks are timed, and with it the sums.
    """
    block, sae = tl.program_id(0), tl.program_id(1)
    mine = counts + (sae * tl.num_programs(0) + block).to(tl.int64) * F
    base = sae.to(tl.int64) * capacity
    for r in range(block * ROWS, tl.minimum(block * ROWS + ROWS, B)):
        n = tl.load(count + sae * B + r)
        at = base + tl.load(begin + sae * B + r)
        for first in range(0, n, TILE):
            q = first + tl.arange(0, TILE)
            j = tl.load(latent + at + q, mask=q < n, other=0)
            f = tl.load(value + at + q, mask=q < n, other=0.0)
            to = tl.load(start + sae * F + j, mask=q < n, other=0)
            # a row has each latent once: only another row's counts can be met here
            to += tl.atomic_add(mine + j, 1, mask=q < n)
            tl.store(pair_row + base + to, j * 0 + r, mask=q < n)
            tl.store(pair_value + base + to, f, mask=q < n)
        tl.debug_barrier()


@triton.jit
def add_pairs(
    first,
    last,
    pair_row,
    pair_value,
    x,
    error,
    w,
    scale,
    penalty,
    d,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sums over the codes ``first … last − 1`` of a latent with decoder row ``w [WIDTH]``.

    ``x`` and ``error [B, d]``. Gives Σ f·error, Σ g·x, Σ g and Σ f, with the gradient of a code
    ``g = scale·(w·error) + penalty``.
    """
    c = tl.arange(0, WIDTH)
    to_dec = tl.zeros([WIDTH], tl.float32)
    to_enc = tl.zeros([WIDTH], tl.float32)
    to_bias = tl.zeros([TILE], tl.float32)
    activation = tl.zeros([TILE], tl.float32)
    for begin in range(first, last, TILE):
        q = begin + tl.arange(0, TILE)
        on = q < last
        r = tl.load(pair_row + q, mask=on, other=0)
        f = tl.load(pair_value + q, mask=on, other=0.0)
        at = r.to(tl.int64)[:, None] * d + c[None, :]
        mask = on[:, None] & (c < d)[None, :]
        e = tl.load(error + at, mask=mask, other=0.0).to(tl.float32)
        row = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(on, scale * tl.sum(e * w[None, :], axis=1) + penalty, 0.0)
        to_dec += tl.sum(f[:, None] * e, axis=0)
        to_enc += tl.sum(g[:, None] * row, axis=0)
        to_bias += g
        activation += f
    return to_dec, to_enc, tl.sum(to_bias), tl.sum(activation)


@triton.jit
def group_of(prefixes, j, PREFIXES: tl.constexpr):
    """Give the first prefix that holds the latent."""
    group = 0
    for p in range(PREFIXES - 1):
        group += (j >= tl.load(prefixes + p)).to(tl.int32)
    return group


@triton.jit
def add_parts(
    parts,
    part_latent,
    part_begin,
    start,
    totals,
    pair_row,
    pair_value,
    x,
    error,
    W_dec,
    settings,
    prefixes,
    sums,
    scalars,
    capacity,
    B,
    F,
    d,
    LENGTH: tl.constexpr,
    PREFIXES: tl.constexpr,
    UNIT: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sums over parts of the codes of the latents with more than ``LENGTH`` of them.

    One program a part, of which there are ``parts [1]``: part i is of latent ``part_latent[i]`` (of
    all SAEs', ``[N·F]``), whose first part is ``part_begin[latent]``. ``sums [parts, 2, d]`` and
    ``scalars [parts, 2]`` are what :func:`add_pairs` gives.
    """
    i = tl.program_id(0)
    if i < tl.load(parts):
        which = tl.load(part_latent + i)
        sae, j = which // F, which % F
        c = tl.arange(0, WIDTH)
        w = tl.load(W_dec + which.to(tl.int64) * d + c, mask=c < d, other=0.0)
        scale = tl.load(settings + sae * 8 + 4)
        penalty = tl.load(settings + sae * 8 + 5)
        if not UNIT:
            penalty *= tl.sqrt(tl.sum(w * w))
        group = group_of(prefixes, j, PREFIXES)
        base = sae.to(tl.int64) * capacity
        first = tl.load(start + which) + (i - tl.load(part_begin + which)) * LENGTH
        last = tl.minimum(first + LENGTH, tl.load(start + which) + tl.load(totals + which))
        to_dec, to_enc, to_bias, activation = add_pairs(
            first,
            last,
            pair_row + base,
            pair_value + base,
            x,
            error + (sae * PREFIXES + group).to(tl.int64) * B * d,
            w,
            scale,
            penalty,
            d,
            TILE,
            WIDTH,
        )
        tl.store(sums + i.to(tl.int64) * 2 * d + c, to_dec, mask=c < d)
        tl.store(sums + i.to(tl.int64) * 2 * d + d + c, to_enc, mask=c < d)
        tl.store(scalars + i * 2, to_bias)
        tl.store(scalars + i * 2 + 1, activation)


@triton.jit
def mask_gradients(
    to_f,
    f,
    pre,
    bias,
    threshold,
    norms,
    settings,
    g,
    to_bias,
    to_threshold,
    fired,
    B,
    F,
    N,
    JUMP: tl.constexpr,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
):
    """Gradients of dense pre-activations from those of the codes, and their sums over rows.

    Grid ``(F / LATENTS, B / ROWS, N)``. ``to_f, f, g [N, B, F]``; ``to_bias``, with JumpReLU
    (arXiv 2407.14435, eqs. 11 and 12) ``to_threshold``, and ``fired`` (counts) are
    ``[N, B / ROWS, F]``.
    """
    tile, block, sae = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = tile * LATENTS + tl.arange(0, LATENTS)[None, :]
    r = block * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (j < F) & (r < B)
    at = (sae.to(tl.int64) * B + r) * F + j
    scale = tl.load(settings + sae * 8 + 4)
    penalty = tl.load(settings + sae * 8 + 5)
    to = scale * tl.load(to_f + at, mask=inside, other=0.0).to(tl.float32)
    on = inside
    if JUMP:
        v = tl.load(pre + (r.to(tl.int64) * N + sae) * F + j, mask=inside, other=0.0)
        v += tl.load(bias + sae * F + j, mask=j < F, other=0.0)
        edge = tl.load(threshold + sae * F + j, mask=j < F, other=0.0)
        width = tl.load(settings + sae * 8 + 6)
        near = inside & (tl.abs((v - edge) / width) < 0.5)
        step = tl.where(near, (edge * to + penalty) / -width, 0.0)
        j1 = tile * LATENTS + tl.arange(0, LATENTS)
        out = to_threshold + (sae * tl.num_programs(1) + block).to(tl.int64) * F + j1
        tl.store(out, tl.sum(step, axis=0), mask=j1 < F)
        on = inside & (v > edge)
    else:
        on = inside & (tl.load(f + at, mask=inside, other=0.0) > 0)
        to += penalty * tl.load(norms + sae * F + j, mask=j < F, other=0.0)
    to = tl.where(on, to, 0.0)
    tl.store(g + at, to.to(g.dtype.element_ty), mask=inside)
    n = tl.sum(on.to(tl.int32), axis=0)
    j2 = tile * LATENTS + tl.arange(0, LATENTS)
    out2 = to_bias + (sae * tl.num_programs(1) + block).to(tl.int64) * F + j2
    tl.store(out2, tl.sum(to, axis=0), mask=j2 < F)
    out3 = fired + (sae * tl.num_programs(1) + block).to(tl.int64) * F + j2
    tl.store(out3, n, mask=j2 < F)
