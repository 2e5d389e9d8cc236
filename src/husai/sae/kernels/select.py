"""Which latents of a row, or of a batch, are active: TopK, BatchTopK, relu and jumprelu.

Values are compared by their bits, as integers: positive floats sort as their bits do, and negative
ones are negative. :mod:`husai.sae.selection` states the rules.
"""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value, arg-type"

from __future__ import annotations

import numpy as np

from husai.sae.kernels.types import (
    F32,
    I32,
    I64,
    ZERO,
    AuxK,
    BlockMemory,
    Codes,
    Parameters,
    kernel,
)
from husai.sae.kernels.vectors import LANES, add_and_mask_above, count_above, lowest_bit

FEW = 8
"""Up to as many of a row are found by as many maxima, more by bisection."""

MASKED = 512
"""Rows of up to as many latents are listed from masks of the whole row, longer ones by chunks."""


@kernel
def _count_above(bits: I32, n: int, level: int) -> int:
    count = np.int64(0)
    level32 = np.int32(level)
    whole = n // LANES * LANES
    for first in range(0, whole, LANES):
        count += count_above(bits, first, level32)
    for i in range(whole, n):
        count += np.int64(bits[i] > level32)
    return count


@kernel
def _bracket(bits: I32, n: int, k: int, slack: int, hint: int) -> tuple[int, int, int]:
    """Bisect for a level with at least ``k`` and at most ``k + slack`` values strictly above it.

    Returns
    -------
    low, high, above
        ``above`` values are above ``low``. It may be more than ``k + slack`` only when
        ``high = low + 1`` and fewer than ``k`` are above ``high``: ties at ``high``. ``low`` is 0
        when no more than ``k + slack`` values are positive.
    """
    top = np.int32(0)
    for i in range(n):
        top = bits[i] if bits[i] > top else top
    low, high = np.int64(0), np.int64(top)
    above = _count_above(bits, n, 0)
    middle = np.int64(hint)
    while above > k + slack and high - low > 1:
        if middle <= low or middle >= high:
            middle = low + (high - low) // 2
        count = _count_above(bits, n, middle)
        if count >= k:
            low, above = middle, count
        else:
            high = middle
        middle = np.int64(0)
    return low, high, above


@kernel
def _cut_few(bits: I32, n: int, k: int) -> tuple[int, int]:
    """Do as `_cut`, from maximum to next smaller maximum."""
    above = 0
    limit = np.int32(2147483647)
    while True:
        top, ties = np.int32(0), np.int32(0)
        for i in range(n):
            value = bits[i] if bits[i] < limit else np.int32(0)
            top = value if value > top else top
        if top == 0:
            return 0, 0
        for i in range(n):
            ties += np.int32(bits[i] == top)
        if above + ties >= k:
            return np.int64(top), k - above
        above += np.int64(ties)
        limit = top


@kernel
def _cut(bits: I32, n: int, k: int, hint: int) -> tuple[int, int]:
    """Find the cut of the ``k`` largest positive values.

    Those above ``cut`` are taken, and the first ``ties`` of those equal to it.
    """
    if k <= FEW:
        return _cut_few(bits, n, k)
    low, high, above = _bracket(bits, n, k, 0, hint)
    if above <= k:
        return low, 0
    return high, k - _count_above(bits, n, high)


@kernel
def _keep_top(bits: I32, latent: I32, n: int, k: int, hint: int) -> tuple[int, int]:
    """Move the ``k`` largest of ``n`` candidates to the front, their order unchanged."""
    if n <= k:
        return n, hint
    cut, ties = _cut(bits, n, k, hint)
    kept = 0
    for i in range(n):
        value, j = bits[i], latent[i]
        tie = value == cut and ties > 0
        ties -= np.int64(tie)
        bits[kept] = value
        latent[kept] = j
        kept += np.int64(value > cut or tie)
    return kept, cut


@kernel
def _chunks(F: int, per_row: int) -> int:
    """How many chunks a row is cut into: about ``8 * per_row``, its own latents if they are few."""
    if F <= 128:
        return F
    size = 1
    while F // (2 * size) >= 8 * per_row:
        size *= 2
    return (F + size - 1) // size


@kernel
def _add_bias_and_maxima(
    pre: F32, base: int, F: int, bias: F32, n_chunks: int, chunk_max: F32
) -> None:
    """Add the bias to a row; chunk c holds latents c, c + n_chunks, …: plain vector operations.

    With as many chunks as latents the maxima are the row itself.
    """
    # slices, because an index that is a sum keeps the loops from becoming vector operations
    row, add = pre[base : base + n_chunks], bias[:n_chunks]
    for c in range(n_chunks):
        value = row[c] + add[c]
        row[c] = value
        chunk_max[c] = value
    begin = n_chunks
    while begin < F:
        if begin + 2 * n_chunks <= F:
            one = pre[base + begin : base + begin + n_chunks]
            two = pre[base + begin + n_chunks : base + begin + 2 * n_chunks]
            add_one = bias[begin : begin + n_chunks]
            add_two = bias[begin + n_chunks : begin + 2 * n_chunks]
            for c in range(n_chunks):
                first, second = one[c] + add_one[c], two[c] + add_two[c]
                one[c] = first
                two[c] = second
                first = second if second > first else first
                most = chunk_max[c]
                chunk_max[c] = first if first > most else most
            begin += 2 * n_chunks
        else:
            length = min(n_chunks, F - begin)
            one, add = pre[base + begin : base + begin + length], bias[begin : begin + length]
            for c in range(length):
                value = one[c] + add[c]
                one[c] = value
                most = chunk_max[c]
                chunk_max[c] = value if value > most else most
            begin += n_chunks


@kernel
def _candidates(
    bits: I32,
    base: int,
    F: int,
    n_chunks: int,
    level: int,
    chunk_bits: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
) -> int:
    """List the values of a row above a level, skipping chunks whose maximum is below it."""
    level32 = np.int32(level)
    n = 0
    n_chosen = 0
    for c in range(n_chunks):
        chosen[n_chosen] = c
        n_chosen += np.int64(chunk_bits[c] > level32)
    for q in range(n_chosen):
        j = np.int64(chosen[q])
        while j < F:
            value = bits[base + j]
            candidate_bits[n] = value
            candidate[n] = j
            n += np.int64(value > level32)
            j += n_chunks
    return n


@kernel
def _with_lanes(values: F32) -> F32:
    """Numbers ``[F]``, and zeros as far as an operation on vectors may reach beyond them."""
    wide = np.zeros(len(values) + LANES, np.float32)
    wide[: len(values)] = values
    return wide


@kernel
def _add_and_list(
    memory: BlockMemory, base: int, F: int, add: F32, level: int, codes: Codes, count: int
) -> int:
    """Add to a row, and append its values above a level to the codes; give their new ``count``.

    ``add`` is ``F`` numbers and 32 zeros; the block's memory has 32 places to spare.
    """
    pre, bits, latent, value_bits = memory.pre, memory.bits, codes.latent, codes.bits
    level32 = np.int32(level)
    for first in range(0, F, LANES):
        mask = add_and_mask_above(pre, base + first, add, first, level32)
        if first + LANES > F:
            # what follows belongs to the next row
            mask = mask & ((np.uint32(1) << np.uint32(F - first)) - np.uint32(1))
        while mask != 0:
            j = first + lowest_bit(mask)
            mask = mask & (mask - np.uint32(1))
            value_bits[count] = bits[base + j]
            latent[count] = j
            count += 1
    return count


@kernel
def collect_dead(
    memory: BlockMemory, base: int, stride: int, auxk: AuxK, row: int, count: int
) -> int:
    """Append the ``k`` largest positive pre-activations among a row's dead latents.

    The row begins at ``base`` of the block, and its latents lie ``stride`` apart. Gives the new
    ``count`` of entries.
    """
    bits, candidate_bits, candidate = memory.bits, memory.candidate_bits, memory.candidate
    latent, value_bits, dead = auxk.codes.latent, auxk.codes.bits, auxk.dead
    auxk.codes.start[row] = count
    n = 0
    for q in range(len(dead)):
        j = dead[q]
        value = bits[base + j * stride]
        candidate_bits[n] = value
        candidate[n] = j
        n += np.int64(value > 0)
    n, _ = _keep_top(candidate_bits, candidate, n, auxk.k, 0)
    for q in range(n):
        latent[count + q] = candidate[q]
        value_bits[count + q] = candidate_bits[q]
    return count + n


@kernel
def gather_rows(rows: F32, batch: I64, x: F32) -> None:
    """Copy the batch into ``x [B, d]``."""
    for r in range(len(batch)):
        at = batch[r]
        for c in range(x.shape[1]):
            x[r, c] = rows[at, c]


@kernel
def encoder_bias(sae: Parameters, bias: F32) -> None:
    """Set ``bias [F] = b_enc − W_enc · b_dec``: with it the product of the raw rows will do."""
    W_enc, b_enc, b_dec = sae.W_enc, sae.b_enc, sae.b_dec
    for j in range(len(bias)):
        total = ZERO
        for c in range(W_enc.shape[1]):
            total += W_enc[j, c] * b_dec[c]
        bias[j] = b_enc[j] - total


@kernel
def select_in_rows(
    r0: int, rows: int, bias: F32, k: int, memory: BlockMemory, codes: Codes, auxk: AuxK
) -> None:
    """Keep the ``k`` largest positive values of each row of a block (TopK).

    Exact: the k-th largest chunk maximum bounds the k-th largest value from below, so the k
    largest are all among the candidates above it.

    Parameters
    ----------
    r0, rows
        The block is rows ``r0 … r0 + rows − 1`` of the batch.
    bias, k
        Added to every row ``[F]``; how many latents each row keeps.
    memory
        Holds the block's products.
    codes, auxk
        The codes, and those of AuxK, are appended to.
    """
    F = len(bias)
    pre, bits, chunk_max, chunk_bits = memory.pre, memory.bits, memory.chunk_max, memory.chunk_bits
    chosen, candidate_bits, candidate = memory.chosen, memory.candidate_bits, memory.candidate
    start, latent, value_bits, state = codes.start, codes.latent, codes.bits, memory.state
    n_dead = len(auxk.dead)
    count, aux_count, level, cut = state[0], state[1], state[2], state[3]
    n_chunks = _chunks(F, k)
    for r in range(rows):
        base = r * F
        low = np.int64(0)
        _add_bias_and_maxima(pre, base, F, bias, n_chunks, chunk_max)
        if n_chunks < F:
            low, _, _ = _bracket(chunk_bits, n_chunks, k, k // 4, level)
            level = low
        if n_dead > 0:
            aux_count = collect_dead(memory, base, 1, auxk, r0 + r, aux_count)
        start[r0 + r] = count
        if n_chunks == F:
            row = bits[base : base + F]
            cut, ties = _cut(row, F, k, cut)
            for j in range(F):
                value = row[j]
                tie = value == cut and ties > 0
                ties -= np.int64(tie)
                latent[count] = j
                value_bits[count] = value
                count += np.int64(value > cut or tie)
            continue
        n = _candidates(bits, base, F, n_chunks, low, chunk_bits, chosen, candidate_bits, candidate)
        n, cut = _keep_top(candidate_bits, candidate, n, k, cut)
        for q in range(n):
            latent[count + q] = candidate[q]
            value_bits[count + q] = candidate_bits[q]
        count += n
    start[r0 + rows] = count
    auxk.codes.start[r0 + rows] = aux_count
    state[0], state[1], state[2], state[3] = count, aux_count, level, cut


@kernel
def _prune_batch(codes: Codes, rows: int, n: int, target: int) -> tuple[int, int]:
    """Keep the ``target`` largest of the ``n`` candidates of the first ``rows`` rows, in order."""
    start, latent, value_bits = codes.start, codes.latent, codes.bits
    cut, ties = _cut(value_bits, n, target, 0)
    kept, begin = 0, np.int64(0)
    for r in range(rows):
        end = start[r + 1]
        for q in range(begin, end):
            value = value_bits[q]
            tie = value == cut and ties > 0
            ties -= np.int64(tie)
            value_bits[kept] = value
            latent[kept] = latent[q]
            kept += np.int64(value > cut or tie)
        start[r + 1] = kept
        begin = end
    return kept, cut


@kernel
def list_for_batch(
    r0: int, rows: int, bias: F32, k: int, memory: BlockMemory, codes: Codes, auxk: AuxK
) -> None:
    """List a block's values above a level, for :func:`select_in_batch` (BatchTopK).

    As :func:`select_in_rows`, but ``memory.state[2]`` is the level from which values are listed.
    It rises when the list is full: nothing below the B·k-th largest so far can be among the
    largest.
    """
    F = len(bias)
    pre, bits, chunk_max, chunk_bits = memory.pre, memory.bits, memory.chunk_max, memory.chunk_bits
    chosen, candidate_bits, candidate = memory.chosen, memory.candidate_bits, memory.candidate
    start, latent, value_bits, state = codes.start, codes.latent, codes.bits, memory.state
    B = len(start) - 1
    capacity = len(latent)
    n_dead = len(auxk.dead)
    count, aux_count, level = state[0], state[1], state[2]
    masked = F <= MASKED
    n_chunks = _chunks(F, max(1, k // 4))
    add = _with_lanes(bias)
    for r in range(rows):
        base = r * F
        if count + F > capacity:
            count, level = _prune_batch(codes, r0 + r, count, B * k)
        if masked:
            count = _add_and_list(memory, base, F, add, level, codes, count)
        else:
            _add_bias_and_maxima(pre, base, F, bias, n_chunks, chunk_max)
            n = _candidates(
                bits, base, F, n_chunks, level, chunk_bits, chosen, candidate_bits, candidate
            )
            for q in range(n):
                latent[count + q] = candidate[q]
                value_bits[count + q] = candidate_bits[q]
            count += n
        start[r0 + r + 1] = count
        if n_dead > 0:
            aux_count = collect_dead(memory, base, 1, auxk, r0 + r, aux_count)
    auxk.codes.start[r0 + rows] = aux_count
    state[0], state[1], state[2] = count, aux_count, level


@kernel
def select_in_batch(k: int, state: I64, codes: Codes) -> tuple[bool, int]:
    """Keep the ``B·k`` largest of the values that the blocks have listed.

    Returns
    -------
    complete, level
        Whether the list reached down far enough; where not, it must be made again from level 0, so
        the level changes the cost and never the result. And where to list from in the next step.
    """
    B = len(codes.start) - 1
    target = B * k
    n, level = state[0], state[2]
    if n < target and level > 0:
        return False, 0
    wanted = target + target // 4
    if n > wanted:
        next_level, _, _ = _bracket(codes.bits, n, wanted, target // 16, level)
    elif n > target + target // 8:
        next_level = level
    else:
        # the next batch could fall short: start about a tenth lower
        next_level = max(level - (1 << 20), 0)
    _prune_batch(codes, B, n, target)
    return True, next_level


@kernel
def list_positive(
    r0: int,
    rows: int,
    bias: F32,
    edge: F32,
    shifted: bool,
    memory: BlockMemory,
    codes: Codes,
    auxk: AuxK,
) -> bool:
    """List a block's positive values (relu), or those above ``edge`` (jumprelu).

    jumprelu's values are listed as their distance from the edge. ``edge [F]`` is θ − ε/2 and is
    used where ``shifted``. The other parameters are those of :func:`select_in_rows`.

    Returns
    -------
    bool
        False when the list is full, or would be by as many a row in the rest of the batch as so
        far; the blocks are judged where they end.
    """
    F = len(bias)
    pre, bits, chunk_max, chunk_bits = memory.pre, memory.bits, memory.chunk_max, memory.chunk_bits
    chosen, candidate_bits, candidate = memory.chosen, memory.candidate_bits, memory.candidate
    start, latent, value_bits, state = codes.start, codes.latent, codes.bits, memory.state
    B = len(start) - 1
    capacity = len(latent)
    n_dead = len(auxk.dead)
    count, aux_count = state[0], state[1]
    masked = F <= MASKED
    n_chunks = _chunks(F, max(1, F // 64))
    # AuxK reads the values before they are shifted
    apart = shifted and n_dead > 0
    add = bias - edge if shifted else bias
    if apart:
        add = -edge
    wide = _with_lanes(add)
    for r in range(rows):
        base = r * F
        start[r0 + r] = count
        if count + F > capacity:
            return False
        if apart:
            _add_bias_and_maxima(pre, base, F, bias, n_chunks, chunk_max)
            aux_count = collect_dead(memory, base, 1, auxk, r0 + r, aux_count)
        if masked:
            count = _add_and_list(memory, base, F, wide, 0, codes, count)
        else:
            _add_bias_and_maxima(pre, base, F, add, n_chunks, chunk_max)
            n = _candidates(
                bits, base, F, n_chunks, 0, chunk_bits, chosen, candidate_bits, candidate
            )
            for q in range(n):
                latent[count + q] = candidate[q]
                value_bits[count + q] = candidate_bits[q]
            count += n
        if n_dead > 0 and not apart:
            aux_count = collect_dead(memory, base, 1, auxk, r0 + r, aux_count)
    if r0 + rows < B and count * B > (capacity - F) * (r0 + rows):
        return False
    start[r0 + rows] = count
    auxk.codes.start[r0 + rows] = aux_count
    state[0], state[1] = count, aux_count
    return True
