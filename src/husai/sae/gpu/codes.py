"""Codes of a batch on a CUDA device: select the active latents, and sort the entries by latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton

from husai.sae.gpu import gradients, select

GROUP = 32
"""Neighbours of which the largest is looked at first, at most."""

WIDEST = 32768
"""Values, or groups of them, that a program can select from."""

VALUES_A_THREAD = 16
"""Values that each of its threads holds."""

COLUMNS = 1024
"""Values that a program reads at once where it goes through a row."""

ROWS_IN_ORDER = 32
"""Rows that one program puts in the order of latents."""

PART = 64
"""Codes of one latent that a program adds up by itself; more are cut into parts."""

HIGHEST = 0x7FC00001
"""Above the bits of every value, NaN included."""

HINTS = (-(1 << 21), -(1 << 20), -(1 << 19), 0)
"""Where the first levels of a batch lie, from the level of the step before."""


class Codes(NamedTuple):
    """The active latents of each row, in the order of latents; ``n`` SAEs, ``B`` rows."""

    begin: torch.Tensor
    """Where each row's codes begin ``[n, B]`` int32."""
    active: torch.Tensor
    """How many each row has ``[n, B]`` int32."""
    latent: torch.Tensor
    """``[n, capacity]`` int32."""
    value: torch.Tensor
    """``[n, capacity]`` float32."""

    @property
    def capacity(self) -> int:
        """Codes there is room for, per SAE."""
        return int(self.latent.shape[1])


class Pairs(NamedTuple):
    """The same codes, each latent's together."""

    totals: torch.Tensor
    """How many each latent has ``[n, F]`` int32."""
    start: torch.Tensor
    """Where each latent's begin ``[n, F]`` int32."""
    row: torch.Tensor
    """``[n, capacity]`` int32."""
    value: torch.Tensor
    """``[n, capacity]`` float32."""
    parts: torch.Tensor
    """Parts of the latents with more than :data:`PART` ``[1]`` int32."""
    part_latent: torch.Tensor
    """Which latent a part is of, counted over all SAEs ``[most parts]`` int32."""
    part_begin: torch.Tensor
    """The first part of each latent ``[n · F]`` int32."""


def largest_of_rows(
    product: Callable[[int, int], torch.Tensor],
    bias: torch.Tensor,
    k: torch.Tensor,
    most: int,
    shape: tuple[int, int],
) -> Codes:
    """Keep the ``k`` largest positive values of each row.

    Parameters
    ----------
    product
        Gives the pre-activations ``[rows, n, F]`` of the rows from one number to another, without
        the bias.
    bias
        ``[n, F]``.
    k
        ``[n]`` int32.
    most
        The largest k there will be.
    shape
        Rows in all, and rows at once.
    """
    B, rows = shape
    n, F = bias.shape
    latent = torch.empty((n, B * most), dtype=torch.int32, device=bias.device)
    value = torch.empty((n, B * most), device=bias.device)
    count = torch.empty((n, B), dtype=torch.int32, device=bias.device)
    found = (latent, value, count)
    group = group_size(F, most)
    groups = triton.cdiv(F, group)
    width = triton.next_power_of_2(groups)
    columns = min(max(triton.next_power_of_2(most), 32), width)
    block = {"ROWS": width // columns, "COLUMNS": columns, "num_warps": _warps(width)}
    for r in range(0, B, rows):
        last = min(r + rows, B)
        grid = (last - r, n)
        pre = product(r, last)
        if group == 1:
            select.largest_of_row[grid](pre, bias, k, *found, r, B, F, n, most, **block)
            continue
        best = latent.new_empty((last - r, n, groups))
        tile = min(128, width)
        select.group_maxima[(*grid, triton.cdiv(groups, tile))](
            pre, bias, best, F, n, groups, GROUP=group, TILE=tile, num_warps=4
        )
        chosen, chosen_count = latent.new_empty((last - r, n, most)), latent.new_empty(grid)
        select.largest_groups[grid](best, k, chosen, chosen_count, n, groups, most, **block)
        power = triton.next_power_of_2(most)
        select.largest_in_groups[grid](
            *(pre, bias, k, chosen, chosen_count, *found, r, B, F, n, most),
            GROUP=group,
            MOST=power,
            num_warps=_warps(power * group),
        )
        del pre
    begin = torch.arange(0, B * most, most, dtype=torch.int32, device=bias.device)
    return Codes(begin.expand(n, B).contiguous(), count, latent, value)


def group_size(F: int, k: int) -> int:
    """Neighbours in a group, so many that the groups are four times k or more; 1 where few."""
    group = GROUP
    while group > 1 and 4 * k * group > F:
        group //= 2
    return group if group >= 4 else 1


def selects(F: int, k: int) -> bool:
    """Whether a program holds what has to be searched of a row."""
    group = group_size(F, k)
    return max(triton.cdiv(F, group), triton.next_power_of_2(k) * group) <= WIDEST


def _warps(values: int) -> int:
    return int(min(32, max(1, values // (32 * VALUES_A_THREAD))))


def _levels(
    values: torch.Tensor,
    bias: torch.Tensor | None,
    wanted: torch.Tensor,
    most: torch.Tensor,
    hint: torch.Tensor,
) -> torch.Tensor:
    """Search ``[n, 4]`` for levels of ``values [rows, n, width]``, of any strides but the last."""
    rows, n, width = values.shape
    search = torch.zeros((n, 4), dtype=torch.int32, device=values.device)
    search[:, 0] = 1
    search[:, 1] = HIGHEST
    levels = torch.stack([hint + step for step in HINTS], dim=1)
    counts = torch.zeros_like(levels)
    tile = max(1, triton.cdiv(rows * n, 4096))
    columns = min(COLUMNS, triton.next_power_of_2(width))
    for _ in range(select.PASSES):
        select.count_levels[(triton.cdiv(rows, tile), n)](
            *(values, values if bias is None else bias, search, levels, counts),
            *(rows, width, values.stride(0), values.stride(1)),
            BIAS=bias is not None,
            ROWS=tile,
            COLUMNS=columns,
            num_warps=4,
        )
        select.narrow[(n,)](search, levels, counts, wanted, most, num_warps=1)
    return search


def _before(counts: torch.Tensor) -> torch.Tensor:
    """Sums of the entries before each, along the last dimension."""
    return counts.cumsum(-1, dtype=torch.int32) - counts


def largest_of_batch(
    pre: torch.Tensor, bias: torch.Tensor, k: torch.Tensor, most: int, hint: torch.Tensor
) -> Codes:
    """Keep the ``B·k`` largest positive values of the batch, for each SAE by itself.

    Parameters
    ----------
    pre
        ``[B, n, F]``, without the bias.
    bias, k, most
        As for :func:`largest_of_rows`.
    hint
        Level ``[n]`` int32 to begin at, anywhere; replaced by the one found. It changes the cost
        and not the result.
    """
    B, n, F = pre.shape
    columns = min(COLUMNS, triton.next_power_of_2(F))
    capacity = triton.cdiv(2 * B * most, COLUMNS) * COLUMNS
    wanted = k * B
    room = torch.full_like(wanted, capacity)
    search = _levels(pre, bias, wanted, room, hint)
    count = torch.empty((n, B), dtype=torch.int32, device=pre.device)
    select.count_above[(B, n)](pre, bias, search, count, B, F, n, COLUMNS=columns, num_warps=4)
    begin = _before(count)
    # room that stays empty is 0, which no level chooses
    latent = torch.zeros((n, capacity), dtype=torch.int32, device=pre.device)
    value = torch.zeros((n, capacity), device=pre.device)
    # one warp: the places of what is listed are then counted without waiting for others
    select.list_above[(B, n)](
        *(pre, bias, search, begin, latent, value, capacity, B, F, n),
        COLUMNS=min(512, columns),
        num_warps=1,
    )
    # the list is searched to the end
    rows = value.view(n, capacity // COLUMNS, COLUMNS).transpose(0, 1)
    search = _levels(rows, None, wanted, wanted, hint)
    hint.copy_(search[:, 0])
    ties, larger = torch.empty_like(count), torch.empty_like(count)
    tile = min(256, COLUMNS)
    select.count_ties[(B, n)](
        *(search, begin, count, value, ties, larger, capacity, B), COLUMNS=tile, num_warps=2
    )
    kept = Codes(begin, torch.empty_like(count), torch.empty_like(latent), torch.zeros_like(value))
    select.keep_above[(B, n)](
        *(search, _before(ties), wanted, larger.sum(1, dtype=torch.int32), begin, count),
        *(latent, value, kept.latent, kept.value, kept.active, capacity, B),
        COLUMNS=tile,
        num_warps=2,
    )
    return kept


def count_active(codes: Codes, F: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each latent is active: before each block of rows, and in all ``[n, F]``."""
    n, B = codes.active.shape
    blocks = triton.cdiv(B, ROWS_IN_ORDER)
    counts = torch.zeros((n, blocks, F), dtype=torch.int32, device=codes.active.device)
    gradients.count_latents[(blocks, n)](
        *(codes.begin, codes.active, codes.latent, counts, codes.capacity, B, F),
        ROWS=ROWS_IN_ORDER,
        TILE=64,
        num_warps=2,
    )
    totals = torch.empty((n, F), dtype=torch.int32, device=counts.device)
    gradients.add_blocks[(triton.cdiv(F, 256), n)](
        counts, totals, blocks, F, LATENTS=256, num_warps=4
    )
    return counts, totals


def order_by_latent(codes: Codes, F: int) -> Pairs:
    """Put codes in the order of latents, and within one in the order of rows."""
    n, B = codes.active.shape
    counts, totals = count_active(codes, F)
    start = _before(totals)
    row = torch.empty_like(codes.latent)
    value = torch.empty_like(codes.value)
    gradients.order_by_latent[(counts.shape[1], n)](
        *(codes.begin, codes.active, codes.latent, codes.value, start, counts, row, value),
        *(codes.capacity, B, F),
        ROWS=ROWS_IN_ORDER,
        TILE=64,
        num_warps=2,
    )
    cut = torch.where(totals > PART, (totals + PART - 1) // PART, 0).flatten()
    ends = cut.cumsum(0, dtype=torch.int32)
    # a latent with more than PART codes has fewer than 2 / PART parts a code
    most = max(1, 2 * n * codes.capacity // PART)
    numbers = torch.arange(most, dtype=torch.int32, device=ends.device)
    part_latent = torch.searchsorted(ends, numbers, right=True, out_int32=True)
    return Pairs(totals, start, row, value, ends[-1:], part_latent, ends - cut)
