"""Select the active latents on a CUDA device: the largest of a row or of the batch, by bisection.

Positive floats have the same order as their bits, so a threshold is a whole number and bisection
ends. The ``k`` largest of a row are in the ``k`` groups of neighbours with the largest maxima, so
only these are searched. For a batch the threshold is searched over the whole batch, in passes that
end as soon as one has been found.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

PASSES = 15
"""Passes over a batch after which its level is found: one from where it was before, and 5^14 is
above 2^31."""


@triton.jit
def order_bits(value):
    """Whole numbers that sort as the values do: 0 for those not positive, the highest for NaN."""
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(value != value, 0x7FC00000, bits)
    return tl.maximum(bits, 0)


@triton.jit
def places(keep):
    """How many are kept before each, in the order of rows and columns: ``[R, C]``."""
    one = keep.to(tl.int32)
    rows = tl.sum(one, axis=1)
    before = tl.cumsum(rows, axis=0) - rows
    return before[:, None] + tl.cumsum(one, axis=1) - one


@triton.jit
def keep_between(bits, low, high, wanted, most):
    """Say which ones to keep ``[R, C]``: the largest, ``wanted`` of them to ``most``.

    At least ``wanted`` are at ``low`` or above it (or all that are positive), fewer at ``high``.
    Of equal ones at the edge the first stay.
    """
    n = tl.sum((bits >= low).to(tl.int32))
    while (n > most) & (high - low > 1):
        middle = low + (high - low) // 2
        above = tl.sum((bits >= middle).to(tl.int32))
        high = tl.where(above < wanted, middle, high)
        n = tl.where(above < wanted, n, above)
        low = tl.where(above < wanted, low, middle)
    keep = bits >= low
    if n > most:
        larger = bits > low
        spare = most - tl.sum(larger.to(tl.int32))
        ties = keep & (bits == low)
        keep = larger | (ties & (places(ties) < spare))
    return keep


@triton.jit
def largest_of_row(
    pre,
    bias,
    k,
    latent,
    value,
    count,
    row0,
    B,
    F,
    N,
    K,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Keep the ``k [N]`` largest positive values of a row, in the order of latents.

    Grid ``(rows, N)``; ``ROWS · COLUMNS`` values hold a row. ``pre [rows, N, F]`` gets
    ``bias [N, F]`` added. ``latent`` and ``value`` are ``[N, B, K]``, ``count [N, B]``; ``row0`` is
    the first row.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    j = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = j < F
    v = tl.load(pre + (row.to(tl.int64) * N + sae) * F + j, mask=inside, other=0.0)
    v += tl.load(bias + sae * F + j, mask=inside, other=0.0)
    bits = tl.where(inside, order_bits(v), 0)
    wanted = tl.load(k + sae)
    # as many columns as wanted: each one's largest is at the least of them or above it
    best = tl.max(bits, axis=0)
    low = tl.where(wanted <= COLUMNS, tl.min(best, axis=0), 1)
    keep = keep_between(bits, tl.maximum(low, 1), tl.max(best, axis=0) + 1, wanted, wanted)
    at = (sae * B + row0 + row).to(tl.int64) * K
    place = places(keep)
    tl.store(latent + at + place, j, mask=keep)
    tl.store(value + at + place, v, mask=keep)
    tl.store(count + sae * B + row0 + row, tl.sum(keep.to(tl.int32)))


@triton.jit
def group_maxima(pre, bias, best, F, N, GROUPS, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Largest of each ``GROUP`` neighbouring values, as bits. Grid ``(rows, N, GROUPS / TILE)``.

    ``best [rows, N, GROUPS]`` int32.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    g = tl.program_id(2) * TILE + tl.arange(0, TILE)
    j = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    v = tl.load(pre + (row.to(tl.int64) * N + sae) * F + j, mask=j < F, other=0.0)
    v += tl.load(bias + sae * F + j, mask=j < F, other=0.0)
    bits = tl.where(j < F, order_bits(v), 0)
    to = best + (row.to(tl.int64) * N + sae) * GROUPS + g
    tl.store(to, tl.max(bits, axis=1), mask=g < GROUPS)


@triton.jit
def largest_groups(
    best, k, group, group_count, N, GROUPS, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Keep the ``k`` groups with the largest maxima: they hold the ``k`` largest values.

    Grid ``(rows, N)``. ``group [rows, N, K]``, in rising order; ``group_count [rows, N]``.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    g = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = row * N + sae
    bits = tl.load(best + at.to(tl.int64) * GROUPS + g, mask=g < GROUPS, other=0)
    wanted = tl.load(k + sae)
    top = tl.max(bits, axis=0)
    low = tl.where(wanted <= COLUMNS, tl.min(top, axis=0), 1)
    keep = keep_between(bits, tl.maximum(low, 1), tl.max(top, axis=0) + 1, wanted, wanted)
    tl.store(group + at.to(tl.int64) * K + places(keep), g, mask=keep)
    tl.store(group_count + at, tl.sum(keep.to(tl.int32)))


@triton.jit
def largest_in_groups(
    pre,
    bias,
    k,
    group,
    group_count,
    latent,
    value,
    count,
    row0,
    B,
    F,
    N,
    K,
    GROUP: tl.constexpr,
    MOST: tl.constexpr,
):
    """As :func:`largest_of_row`, from the groups that :func:`largest_groups` kept.

    ``MOST`` groups are the most there can be, to the next power of 2.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    q = tl.arange(0, MOST)
    listed = row * N + sae
    n = tl.load(group_count + listed)
    g = tl.load(group + listed.to(tl.int64) * K + q, mask=q < n, other=0)
    j = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (q < n)[:, None] & (j < F)
    v = tl.load(pre + listed.to(tl.int64) * F + j, mask=inside, other=0.0)
    v += tl.load(bias + sae * F + j, mask=inside, other=0.0)
    bits = tl.where(inside, order_bits(v), 0)
    wanted = tl.load(k + sae)
    best = tl.max(bits, axis=1)
    # each group's largest is one of as many as are wanted
    low = tl.where(n >= wanted, tl.min(tl.where(q < n, best, 0x7FFFFFFF), axis=0), 1)
    keep = keep_between(bits, tl.maximum(low, 1), tl.max(best, axis=0) + 1, wanted, wanted)
    at = (sae * B + row0 + row).to(tl.int64) * K
    place = places(keep)
    tl.store(latent + at + place, j, mask=keep)
    tl.store(value + at + place, v, mask=keep)
    tl.store(count + sae * B + row0 + row, tl.sum(keep.to(tl.int32)))


@triton.jit
def count_levels(
    pre,
    bias,
    search,
    levels,
    counts,
    rows,
    width,
    row_stride,
    sae_stride,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Count the values at each of four levels or above it.

    Grid ``(tiles, N)``, each of ``ROWS`` rows. ``search [N, 4]`` holds low, high, whether the
    search has ended, and the count at low; ``counts [N, 4]`` is added to: whole numbers, so the
    order does not matter.
    """
    sae = tl.program_id(1)
    if tl.load(search + sae * 4 + 2) == 0:
        level0, level1 = tl.load(levels + sae * 4), tl.load(levels + sae * 4 + 1)
        level2, level3 = tl.load(levels + sae * 4 + 2), tl.load(levels + sae * 4 + 3)
        n0 = tl.zeros([COLUMNS], tl.int32)
        n1 = tl.zeros([COLUMNS], tl.int32)
        n2 = tl.zeros([COLUMNS], tl.int32)
        n3 = tl.zeros([COLUMNS], tl.int32)
        first = tl.program_id(0) * ROWS
        # a row's place may need 64 bits
        stride = sae.to(tl.int64) * 0 + row_stride
        for start in range(0, width, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            add = tl.zeros([COLUMNS], tl.float32)
            if BIAS:
                add = tl.load(bias + sae * width + j, mask=j < width, other=0.0)
            for r in range(first, tl.minimum(first + ROWS, rows)):
                at = pre + r * stride + sae.to(tl.int64) * sae_stride + j
                bits = order_bits(tl.load(at, mask=j < width, other=0.0) + add)
                bits = tl.where(j < width, bits, 0)
                n0 += (bits >= level0).to(tl.int32)
                n1 += (bits >= level1).to(tl.int32)
                n2 += (bits >= level2).to(tl.int32)
                n3 += (bits >= level3).to(tl.int32)
        tl.atomic_add(counts + sae * 4, tl.sum(n0))
        tl.atomic_add(counts + sae * 4 + 1, tl.sum(n1))
        tl.atomic_add(counts + sae * 4 + 2, tl.sum(n2))
        tl.atomic_add(counts + sae * 4 + 3, tl.sum(n3))


@triton.jit
def narrow(search, levels, counts, wanted, most):
    """Move low and high to the levels on either side of what is wanted, and set new levels.

    Grid ``(N,)``. Low ends at a level with ``wanted [N]`` to ``most [N]`` values above it, or where
    no level has, at the highest with at least ``wanted``; 1 where fewer are positive. Levels may
    begin anywhere, in rising order. Clears ``counts``.
    """
    sae = tl.program_id(0)
    if tl.load(search + sae * 4 + 2) == 0:
        low, high = tl.load(search + sae * 4), tl.load(search + sae * 4 + 1)
        need, limit = tl.load(wanted + sae), tl.load(most + sae)
        new_low, new_high, found = low, high, 0
        at_low = tl.load(search + sae * 4 + 3)
        for i in range(4):
            level = tl.load(levels + sae * 4 + i)
            n = tl.load(counts + sae * 4 + i)
            tl.store(counts + sae * 4 + i, 0)
            inside = (level > low) & (level < high)
            new_low = tl.where(inside & (n >= need), level, new_low)
            at_low = tl.where(inside & (n >= need), n, at_low)
            new_high = tl.where(inside & (n < need) & (level < new_high), level, new_high)
            found = tl.where(inside & (n >= need) & (n <= limit), 1, found)
        ended = (found == 1) | (new_high - new_low <= 1)
        # more equal values than there is room for: those above them stay
        new_low = tl.where(ended & (at_low > limit), new_high, new_low)
        step = tl.maximum((new_high - new_low) // 5, 1)
        for i in range(4):
            tl.store(levels + sae * 4 + i, new_low + (i + 1) * step)
        tl.store(search + sae * 4, new_low)
        tl.store(search + sae * 4 + 1, new_high)
        tl.store(search + sae * 4 + 2, tl.where(ended, 1, 0))
        tl.store(search + sae * 4 + 3, at_low)


@triton.jit
def count_above(pre, bias, search, count, B, F, N, COLUMNS: tl.constexpr):
    """Count each row's values at the level or above it. Grid ``(B, N)``; ``count [N, B]``."""
    row, sae = tl.program_id(0), tl.program_id(1)
    low = tl.load(search + sae * 4)
    n = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, F, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        v = tl.load(pre + (row.to(tl.int64) * N + sae) * F + j, mask=j < F, other=0.0)
        bits = order_bits(v + tl.load(bias + sae * F + j, mask=j < F, other=0.0))
        n += ((bits >= low) & (j < F)).to(tl.int32)
    tl.store(count + sae * B + row, tl.sum(n))


@triton.jit
def list_above(pre, bias, search, begin, latent, value, capacity, B, F, N, COLUMNS: tl.constexpr):
    """List each row's values at the level or above it, in the order of latents.

    Grid ``(B, N)``; ``begin [N, B]`` is where the row's part of the list
    ``latent, value [N, capacity]`` begins. What is beyond the capacity is left out.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    low = tl.load(search + sae * 4)
    at = tl.load(begin + sae * B + row)
    for start in range(0, F, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        v = tl.load(pre + (row.to(tl.int64) * N + sae) * F + j, mask=j < F, other=0.0)
        v += tl.load(bias + sae * F + j, mask=j < F, other=0.0)
        keep = (order_bits(v) >= low) & (j < F)
        one = keep.to(tl.int32)
        to = at + tl.cumsum(one, axis=0) - one
        keep = keep & (to < capacity)
        tl.store(latent + sae * capacity + to, j, mask=keep)
        tl.store(value + sae * capacity + to, v, mask=keep)
        at += tl.sum(one)


@triton.jit
def keep_above(
    search,
    ties_before,
    wanted,
    larger,
    begin,
    listed_count,
    listed_latent,
    listed_value,
    latent,
    value,
    count,
    capacity,
    B,
    COLUMNS: tl.constexpr,
):
    """Keep the listed values above the level, and the first ones at it until ``wanted`` are kept.

    Grid ``(B, N)``. ``larger [N]`` is how many are above it, ``ties_before [N, B]`` how many at it
    are in earlier rows. The rows' parts begin where they did.
    """
    row, sae = tl.program_id(0), tl.program_id(1)
    low = tl.load(search + sae * 4)
    spare = tl.load(wanted + sae) - tl.load(larger + sae) - tl.load(ties_before + sae * B + row)
    n = tl.load(listed_count + sae * B + row)
    base = sae.to(tl.int64) * capacity + tl.load(begin + sae * B + row)
    kept, ties = 0, 0
    for start in range(0, n, COLUMNS):
        q = start + tl.arange(0, COLUMNS)
        v = tl.load(listed_value + base + q, mask=q < n, other=0.0)
        j = tl.load(listed_latent + base + q, mask=q < n, other=0)
        bits = tl.where(q < n, order_bits(v), 0)
        tie = (bits == low) & (q < n)
        rank = ties + tl.cumsum(tie.to(tl.int32), axis=0) - 1
        keep = (bits > low) | (tie & (rank < spare))
        one = keep.to(tl.int32)
        to = base + kept + tl.cumsum(one, axis=0) - one
        tl.store(latent + to, j, mask=keep)
        tl.store(value + to, v, mask=keep)
        kept += tl.sum(one)
        ties += tl.sum(tie.to(tl.int32))
    tl.store(count + sae * B + row, kept)


@triton.jit
def count_ties(
    search, begin, listed_count, listed_value, ties, larger, capacity, B, COLUMNS: tl.constexpr
):
    """Count each row's listed values at the level and above it. Grid ``(B, N)``; ``[N, B]``."""
    row, sae = tl.program_id(0), tl.program_id(1)
    low = tl.load(search + sae * 4)
    n = tl.load(listed_count + sae * B + row)
    base = sae.to(tl.int64) * capacity + tl.load(begin + sae * B + row)
    equal = tl.zeros([COLUMNS], tl.int32)
    above = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, n, COLUMNS):
        q = start + tl.arange(0, COLUMNS)
        v = tl.load(listed_value + base + q, mask=q < n, other=0.0)
        bits = tl.where(q < n, order_bits(v), 0)
        equal += ((bits == low) & (q < n)).to(tl.int32)
        above += (bits > low).to(tl.int32)
    tl.store(ties + sae * B + row, tl.sum(equal))
    tl.store(larger + sae * B + row, tl.sum(above))
