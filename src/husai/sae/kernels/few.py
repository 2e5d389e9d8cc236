"""TopK with few active latents per row: the rows of a block are side by side in memory.

The product is made the other way round, latent by latent, so that one vector holds the same latent
of neighbouring rows. Each row keeps its largest values so far in order, and a latent sinks through
them to its place: no row needs a search of its own.
"""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value, arg-type"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from husai.sae.kernels.select import FEW, collect_dead
from husai.sae.kernels.types import F32, I32, AuxK, BlockMemory, Codes, inlined, kernel
from husai.sae.kernels.vectors import LANES, lowest_bit, mask_above_each

GROUP = 256
"""Rows whose largest values are held at once."""

SUNK = 4
"""Values a latent sinks through in one loop: with the latent itself, as many as registers hold."""

WIDTH = FEW + 1
"""Places of a row in a group's list: one more than it may keep."""

NEVER = np.int32(2**31 - 1)
"""A level that nothing is above."""


class GroupMemory(NamedTuple):
    """Working memory for a group of rows that lie side by side, int32 throughout."""

    largest: I32
    """The largest values of each row, in descending order ``[FEW · GROUP]``."""
    sinking: I32
    """What is left of a latent's values ``[GROUP]``."""
    level: I32
    """The chosen values are those above it ``[GROUP]``."""
    count: I32
    """Chosen values of each row so far ``[GROUP]``."""
    latent: I32
    """Their latents ``[GROUP · WIDTH]``."""


class Group(NamedTuple):
    """Rows of a block that are dealt with together."""

    F: int
    """Latents."""
    rows: int
    """Rows of the block: how far a row's latents lie apart."""
    begin: int
    """The first one, by its place in the block."""
    n: int
    """How many there are."""


def group_memory() -> GroupMemory:
    """Memory for one thread."""
    return GroupMemory(
        largest=np.empty(FEW * GROUP, np.int32),
        sinking=np.empty(GROUP, np.int32),
        level=np.full(GROUP, NEVER),
        count=np.empty(GROUP, np.int32),
        latent=np.empty(GROUP * WIDTH, np.int32),
    )


@inlined
def _sink(sinking: I32, largest: I32, begin: int, n: int) -> None:
    """Let a latent's values sink through four of the values that each of ``n`` rows holds.

    What is left, the smallest of the five, is the latent's for the next four.
    """
    first = largest[begin : begin + n]
    second = largest[begin + GROUP : begin + GROUP + n]
    third = largest[begin + 2 * GROUP : begin + 2 * GROUP + n]
    fourth = largest[begin + 3 * GROUP : begin + 3 * GROUP + n]
    for r in range(n):
        value, held = sinking[r], first[r]
        above = value > held
        first[r] = value if above else held
        value = held if above else value
        held = second[r]
        above = value > held
        second[r] = value if above else held
        value = held if above else value
        held = third[r]
        above = value > held
        third[r] = value if above else held
        value = held if above else value
        held = fourth[r]
        above = value > held
        fourth[r] = value if above else held
        sinking[r] = held if above else value


@kernel
def _set_levels(block: BlockMemory, bias: F32, group: Group, k: int, memory: GroupMemory) -> None:
    """Add the bias; find the level of each row, which its ``k`` largest positive values exceed."""
    pre, bits = block.pre, block.bits
    largest, sinking, level = memory.largest, memory.sinking, memory.level
    n = group.n
    held = (k + SUNK - 1) // SUNK * SUNK
    largest[: held * GROUP] = 0
    for j in range(group.F):
        at = group.begin + j * group.rows
        row, values, add = pre[at : at + n], bits[at : at + n], bias[j]
        for r in range(n):
            row[r] += add
        for r in range(n):
            sinking[r] = values[r]
        for begin in range(0, held * GROUP, SUNK * GROUP):
            _sink(sinking, largest, begin, n)
    cuts = largest[(k - 1) * GROUP : (k - 1) * GROUP + n]
    for r in range(n):
        level[r] = cuts[r] - 1 if cuts[r] > 0 else 0
    level[n:] = NEVER


@kernel
def _list_chosen(bits: I32, group: Group, k: int, memory: GroupMemory) -> None:
    """List the latents of each row that are above its level."""
    level, counts, latent = memory.level, memory.count, memory.latent
    counts[:] = 0
    for j in range(group.F):
        at = group.begin + j * group.rows
        for first in range(0, group.n, LANES):
            mask = mask_above_each(bits, at + first, level, first)
            while mask != 0:
                r = first + lowest_bit(mask)
                mask = mask & (mask - np.uint32(1))
                place = counts[r]
                latent[r * WIDTH + min(place, k)] = j
                counts[r] = place + 1


@kernel
def _list_with_ties(bits: I32, group: Group, r: int, k: int, memory: GroupMemory) -> None:
    """List row ``r`` again: equal values have made its latents more than ``k``."""
    latent = memory.latent
    cut = memory.level[r] + 1
    above = 0
    for j in range(group.F):
        above += np.int64(bits[group.begin + j * group.rows + r] > cut)
    ties, n = k - above, 0
    for j in range(group.F):
        value = bits[group.begin + j * group.rows + r]
        tie = value == cut and ties > 0
        ties -= np.int64(tie)
        if value > cut or tie:
            latent[r * WIDTH + n] = j
            n += 1
    memory.count[r] = n


@kernel
def select_side_by_side(
    r0: int,
    rows: int,
    bias: F32,
    k: int,
    memory: BlockMemory,
    codes: Codes,
    auxk: AuxK,
    group_memory: GroupMemory,
) -> None:
    """Keep the ``k`` largest positive values of each row; of equal ones the first latents'.

    As :func:`husai.sae.kernels.select.select_in_rows` for ``k`` up to :data:`FEW`, but
    ``memory.pre`` holds the block's products latent by latent ``[F, rows]``, with 32 places to
    spare.
    """
    bits, state = memory.bits, memory.state
    start, latent, value_bits = codes.start, codes.latent, codes.bits
    counts, chosen = group_memory.count, group_memory.latent
    F = len(bias)
    count, aux_count = state[0], state[1]
    for begin in range(0, rows, GROUP):
        group = Group(F, rows, begin, min(GROUP, rows - begin))
        _set_levels(memory, bias, group, k, group_memory)
        _list_chosen(bits, group, k, group_memory)
        for r in range(group.n):
            if counts[r] > k:
                _list_with_ties(bits, group, r, k, group_memory)
            row_number = r0 + begin + r
            if len(auxk.dead) > 0:
                aux_count = collect_dead(memory, begin + r, rows, auxk, row_number, aux_count)
            start[row_number] = count
            for q in range(counts[r]):
                j = chosen[r * WIDTH + q]
                latent[count + q] = j
                value_bits[count + q] = bits[j * rows + begin + r]
            count += counts[r]
    start[r0 + rows] = count
    auxk.codes.start[r0 + rows] = aux_count
    state[0], state[1] = count, aux_count
