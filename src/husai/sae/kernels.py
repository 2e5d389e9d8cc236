"""Sparse training steps on the CPU, compiled by numba.

Past the encoder product a step needs only the active latents: ``k`` of ``d_sae`` per row. The
kernels here select them, reconstruct from them, sort them by latent, and give each latent its
gradient, its Adam update and its norm in one visit. They do the arithmetic of
:mod:`husai.sae.engines.dense`, which they are tested against; :mod:`husai.sae.engines.sparse`
strings them together.

Each works on one SAE, on one thread, and releases the GIL, so the result depends neither on the
timing of threads nor on the other SAEs of a bank. Shapes: ``N`` SAEs, ``F`` latents, ``d`` input
width, ``B`` rows a batch, ``P`` nested prefixes (1 without nesting). ``i`` counts the SAEs.

Arguments are plain arrays, not records: compiling is three times as long with records.
"""

# numpy's and Python's numbers take turns in one variable, as compiled code may
# mypy: disable-error-code="assignment, return-value"

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

LATENT_BLOCK = 64
"""Latents whose gradients are held between accumulation and update: few enough to stay in cache."""

BLOCK_VALUES = 2**19
"""Pre-activations held at once: few enough to stay in a core's cache, enough for a fast product."""

FEW = 8
"""Up to as many of a row are found by as many maxima, more by bisection."""

DENSE_FROM = 10
"""relu and jumprelu go through dense products when more than d_sae / DENSE_FROM are active."""

TINY = np.float32(1e-30)
"""Moments below it are set to 0: denormal numbers would slow every latent that does not fire."""

ZERO = np.float32(0.0)

# sums may be reordered and fused, but NaN and infinity must stay visible
_jit = njit(
    cache=True, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy"
)


@_jit
def _count_above(bits: I32, n: int, level: int) -> int:
    count = np.int32(0)
    level32 = np.int32(level)
    for i in range(n):
        count += np.int32(bits[i] > level32)
    return np.int64(count)


@_jit
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


@_jit
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


@_jit
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


@_jit
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


@_jit
def _chunks(F: int, per_row: int) -> int:
    """How many chunks a row is cut into: about ``8 * per_row``, its own latents if they are few."""
    if F <= 128:
        return F
    size = 1
    while F // (2 * size) >= 8 * per_row:
        size *= 2
    return (F + size - 1) // size


@_jit
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


@_jit
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
    """List the values of a row above a level, skipping chunks whose maximum is not."""
    level32 = np.int32(level)
    n = 0
    if n_chunks == F:
        for j in range(F):
            value = bits[base + j]
            candidate_bits[n] = value
            candidate[n] = j
            n += np.int64(value > level32)
        return n
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


@_jit
def _collect_dead(
    bits: I32,
    base: int,
    dead: I32,
    n_dead: int,
    k_aux: int,
    begin: int,
    candidate_bits: I32,
    candidate: I32,
    out_latent: I32,
    out_bits: I32,
) -> int:
    """Append the ``k_aux`` largest positive pre-activations among a row's dead latents."""
    n = 0
    for q in range(n_dead):
        j = dead[q]
        value = bits[base + j]
        candidate_bits[n] = value
        candidate[n] = j
        n += np.int64(value > 0)
    n, _ = _keep_top(candidate_bits, candidate, n, k_aux, 0)
    for q in range(n):
        out_latent[begin + q] = candidate[q]
        out_bits[begin + q] = candidate_bits[q]
    return begin + n


@_jit
def gather_rows(rows: F32, batch: I64, x: F32) -> None:
    """Copy the batch into ``x [B, d]``."""
    for r in range(len(batch)):
        at = batch[r]
        for c in range(x.shape[1]):
            x[r, c] = rows[at, c]


@_jit
def encoder_bias(i: int, W_enc: F32, b_enc: F32, b_dec: F32, bias: F32) -> None:
    """Set ``bias [F] = b_enc − W_enc · b_dec``: with it the product of the raw rows will do."""
    for j in range(len(bias)):
        total = ZERO
        for c in range(W_enc.shape[2]):
            total += W_enc[i, j, c] * b_dec[i, c]
        bias[j] = b_enc[i, j] - total


@_jit
def list_dead(since_fired: I64, i: int, dead_rows: float, dead: I32) -> int:
    """List the latents that have not fired for ``dead_rows`` rows."""
    n = 0
    for j in range(since_fired.shape[1]):
        dead[n] = j
        n += np.int64(since_fired[i, j] >= dead_rows)
    return n


@_jit
def select_in_rows(
    r0: int,
    rows: int,
    bias: F32,
    k: int,
    pre: F32,
    bits: I32,
    chunk_max: F32,
    chunk_bits: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
    state: I64,
    start: I64,
    latent: I32,
    value_bits: I32,
    dead: I32,
    n_dead: int,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
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
    pre, bits
        The block's products ``[rows * F]``, and the same memory as integers: positive floats sort
        as their bits do, and negative ones are negative.
    chunk_max, chunk_bits, chosen, candidate_bits, candidate
        Memory for a row ``[F + 1]``; the first two are the same memory.
    state
        Entries so far, AuxK entries so far, and two levels that guide the search and never
        change its result: 0 before the first block.
    start, latent, value_bits
        The codes, row by row: ``[B + 1]``, ``[capacity]`` with one place to spare.
    dead, n_dead, k_aux, aux_start, aux_latent, aux_bits
        Dead latents ``[F + 1]`` and the AuxK codes, likewise.
    """
    F = len(bias)
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
            aux_start[r0 + r] = aux_count
            aux_count = _collect_dead(
                bits,
                base,
                dead,
                n_dead,
                k_aux,
                aux_count,
                candidate_bits,
                candidate,
                aux_latent,
                aux_bits,
            )
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
    aux_start[r0 + rows] = aux_count
    state[0], state[1], state[2], state[3] = count, aux_count, level, cut


@_jit
def _prune_batch(value_bits: I32, latent: I32, row_of: I32, n: int, target: int) -> tuple[int, int]:
    """Keep the ``target`` largest candidates of a batch, their order unchanged."""
    cut, ties = _cut(value_bits, n, target, 0)
    kept = 0
    for q in range(n):
        value = value_bits[q]
        tie = value == cut and ties > 0
        ties -= np.int64(tie)
        value_bits[kept] = value
        latent[kept] = latent[q]
        row_of[kept] = row_of[q]
        kept += np.int64(value > cut or tie)
    return kept, cut


@_jit
def list_for_batch(
    r0: int,
    rows: int,
    bias: F32,
    k: int,
    pre: F32,
    bits: I32,
    chunk_max: F32,
    chunk_bits: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
    state: I64,
    start: I64,
    latent: I32,
    value_bits: I32,
    dead: I32,
    n_dead: int,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
    row_of: I32,
) -> None:
    """List a block's values above a level, for :func:`select_in_batch` (BatchTopK).

    As :func:`select_in_rows`, but ``state[2]`` is the level from which values are listed. It rises
    when the list ``[capacity]`` is full: nothing below the B·k-th largest so far can be among the
    largest.
    """
    F = len(bias)
    B = len(start) - 1
    capacity = len(latent)
    count, aux_count, level = state[0], state[1], state[2]
    n_chunks = _chunks(F, max(1, k // 4))
    for r in range(rows):
        base = r * F
        _add_bias_and_maxima(pre, base, F, bias, n_chunks, chunk_max)
        if n_dead > 0:
            aux_start[r0 + r] = aux_count
            aux_count = _collect_dead(
                bits,
                base,
                dead,
                n_dead,
                k_aux,
                aux_count,
                candidate_bits,
                candidate,
                aux_latent,
                aux_bits,
            )
        if count + F > capacity:
            count, level = _prune_batch(value_bits, latent, row_of, count, B * k)
        n = _candidates(
            bits, base, F, n_chunks, level, chunk_bits, chosen, candidate_bits, candidate
        )
        for q in range(n):
            row_of[count + q] = r0 + r
            latent[count + q] = candidate[q]
            value_bits[count + q] = candidate_bits[q]
        count += n
    aux_start[r0 + rows] = aux_count
    state[0], state[1], state[2] = count, aux_count, level


@_jit
def select_in_batch(
    k: int, state: I64, start: I64, latent: I32, value_bits: I32, row_of: I32
) -> tuple[bool, int]:
    """Keep the ``B·k`` largest of the values that the blocks have listed.

    Returns
    -------
    complete, level
        Whether the list reached down far enough; it must be made again from level 0 where not, so
        the level changes the cost and never the result. And where to list from in the next step.
    """
    B = len(start) - 1
    target = B * k
    n, level = state[0], state[2]
    if n < target and level > 0:
        return False, 0
    wanted = target + target // 4
    if n > wanted:
        next_level, _, _ = _bracket(value_bits, n, wanted, target // 16, level)
    else:
        # the list fell short of the margin: start about a fifth lower
        next_level = max(level - (1 << 21), 0)
    n, _ = _prune_batch(value_bits, latent, row_of, n, target)
    position = 0
    for r in range(B):
        start[r] = position
        while position < n and row_of[position] == r:
            position += 1
    start[B] = n
    return True, next_level


@_jit
def list_positive(
    r0: int,
    rows: int,
    bias: F32,
    edge: F32,
    shifted: bool,
    pre: F32,
    bits: I32,
    chunk_max: F32,
    chunk_bits: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
    state: I64,
    start: I64,
    latent: I32,
    value_bits: I32,
    dead: I32,
    n_dead: int,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
) -> bool:
    """List a block's positive values (relu), or those above ``edge`` (jumprelu).

    jumprelu's values are listed as their distance from the edge. ``edge [F]`` is θ − ε/2 and is
    used where ``shifted``. The other parameters are those of :func:`select_in_rows`.

    Returns
    -------
    bool
        False when the list will not fit, judged on the rows so far so that a dense batch is found
        out early.
    """
    F = len(bias)
    B = len(start) - 1
    capacity = len(latent)
    count, aux_count = state[0], state[1]
    n_chunks = _chunks(F, max(1, F // 64))
    # AuxK reads the values before they are shifted
    apart = shifted and n_dead > 0
    add = bias - edge if shifted else bias
    if apart:
        add = -edge
    for r in range(rows):
        base = r * F
        _add_bias_and_maxima(pre, base, F, bias if apart else add, n_chunks, chunk_max)
        if n_dead > 0:
            aux_start[r0 + r] = aux_count
            aux_count = _collect_dead(
                bits,
                base,
                dead,
                n_dead,
                k_aux,
                aux_count,
                candidate_bits,
                candidate,
                aux_latent,
                aux_bits,
            )
        if apart:
            _add_bias_and_maxima(pre, base, F, add, n_chunks, chunk_max)
        n = _candidates(bits, base, F, n_chunks, 0, chunk_bits, chosen, candidate_bits, candidate)
        start[r0 + r] = count
        if count + n > capacity or (r0 + r >= 63 and (count + n) * B > capacity * 2 * (r0 + r + 1)):
            return False
        for q in range(n):
            latent[count + q] = candidate[q]
            value_bits[count + q] = candidate_bits[q]
        count += n
    start[r0 + rows] = count
    aux_start[r0 + rows] = aux_count
    state[0], state[1] = count, aux_count
    return True


@_jit
def set_edges(log_threshold: F32, i: int, bandwidth: float, edge: F32) -> None:
    """``edge = θ − ε/2`` ``[F]``: where jumprelu's kernel begins."""
    half = np.float32(0.5 * bandwidth)
    for j in range(len(edge)):
        edge[j] = np.float32(math.exp(log_threshold[i, j])) - half


@_jit
def set_norms(W_dec: F32, i: int, norms: F32) -> None:
    """Norms of decoder rows ``[F]``."""
    for j in range(len(norms)):
        total = ZERO
        for c in range(W_dec.shape[2]):
            total += W_dec[i, j, c] * W_dec[i, j, c]
        norms[j] = np.sqrt(total)


@_jit
def _add_weighted(
    W: F32, i: int, latent: I32, value: F32, begin: int, end: int, out: F32, r: int
) -> None:
    """``out[r] += Σ value · W[i, latent]`` over the entries ``begin … end − 1``."""
    d = out.shape[1]
    q = begin
    while q + 4 <= end:
        j0, j1, j2, j3 = latent[q], latent[q + 1], latent[q + 2], latent[q + 3]
        v0, v1, v2, v3 = value[q], value[q + 1], value[q + 2], value[q + 3]
        for c in range(d):
            out[r, c] += v0 * W[i, j0, c] + v1 * W[i, j1, c] + v2 * W[i, j2, c] + v3 * W[i, j3, c]
        q += 4
    while q < end:
        j, v = latent[q], value[q]
        for c in range(d):
            out[r, c] += v * W[i, j, c]
        q += 1


@_jit
def reconstruct(
    i: int,
    x: F32,
    W_dec: F32,
    b_dec: F32,
    norms: F32,
    penalty: float,
    start: I64,
    latent: I32,
    value: F32,
    gradient: F32,
    error: F32,
) -> tuple[float, float, float, float]:
    """Reconstruct a batch from its codes; errors, and the gradients of the pre-activations.

    Parameters
    ----------
    i
        The SAE in the bank.
    x, W_dec, b_dec, norms, penalty
        Rows ``[B, d]``, decoders ``[N, F, d]``, their biases and norms, λ of the L1 penalty.
    start, latent, value
        The codes.
    gradient, error
        Filled: per entry, and ``x̂ − x`` as ``[1, B, d]``.

    Returns
    -------
    reconstruction, cost, l0, smallest
        Mean squared error over rows and elements; L1 per row; active latents per row; smallest
        activation, infinity without any.
    """
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(penalty / (d * B))
    row = error[0]
    squared, cost, smallest, n_active = 0.0, 0.0, np.inf, 0
    for r in range(B):
        begin, end = start[r], start[r + 1]
        for c in range(d):
            row[r, c] = b_dec[i, c] - x[r, c]
        _add_weighted(W_dec, i, latent, value, begin, end, row, r)
        total = ZERO
        for c in range(d):
            total += row[r, c] * row[r, c]
        squared += total
        n_active += end - begin
        for q in range(begin, end):
            j = latent[q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * row[r, c]
            gradient[q] = scale * dot + pen * norms[j]
            cost += value[q] * norms[j]
            smallest = min(smallest, np.float64(value[q]))
    return squared / (d * B), cost / B, n_active / B, smallest


@_jit
def prefix_of(prefixes: I64, j: int) -> int:
    """First prefix that holds latent ``j``."""
    p = 0
    while j >= prefixes[p]:
        p += 1
    return p


@_jit
def reconstruct_nested(
    i: int,
    x: F32,
    W_dec: F32,
    b_dec: F32,
    norms: F32,
    penalty: float,
    start: I64,
    latent: I32,
    value: F32,
    gradient: F32,
    error: F32,
    prefixes: I64,
    group: F32,
) -> tuple[float, float, float, float]:
    """Reconstruct with every nested prefix (Matryoshka, arXiv 2503.17547); see `reconstruct`.

    ``error [P, B, d]`` ends as sums: row p adds the errors of prefixes p … P − 1, those that a
    latent whose first prefix is p takes part in. The last row is the error of the whole.
    ``group [P, d]`` is memory.
    """
    B, d = x.shape
    P = len(prefixes)
    scale = np.float32(2.0 / (d * B * P))
    pen = np.float32(penalty / (d * B))
    squared, cost, smallest, n_active = 0.0, 0.0, np.inf, 0
    for r in range(B):
        begin, end = start[r], start[r + 1]
        group[:] = ZERO
        for q in range(begin, end):
            j, v = latent[q], value[q]
            p = prefix_of(prefixes, j)
            for c in range(d):
                group[p, c] += v * W_dec[i, j, c]
        for p in range(P):
            total = ZERO
            for c in range(d):
                before = b_dec[i, c] - x[r, c] if p == 0 else error[p - 1, r, c]
                after = before + group[p, c]
                error[p, r, c] = after
                total += after * after
            squared += total
        for p in range(P - 2, -1, -1):
            for c in range(d):
                error[p, r, c] += error[p + 1, r, c]
        n_active += end - begin
        for q in range(begin, end):
            j = latent[q]
            p = prefix_of(prefixes, j)
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * error[p, r, c]
            gradient[q] = scale * dot + pen * norms[j]
            cost += value[q] * norms[j]
            smallest = min(smallest, np.float64(value[q]))
    return squared / (d * B * P), cost / B, n_active / B, smallest


@_jit
def reconstruct_jump(
    i: int,
    x: F32,
    W_dec: F32,
    b_dec: F32,
    edge: F32,
    bandwidth: float,
    penalty: float,
    start: I64,
    latent: I32,
    value: F32,
    gradient: F32,
    error: F32,
    g_threshold: F32,
) -> tuple[float, float, float, float]:
    """Reconstruct with jumprelu; see `reconstruct`. The cost is L0.

    ``value`` comes as the distance from the edge and leaves as the activation, 0 below θ.
    ``g_threshold [F]`` gets the gradient of log θ by the rectangle kernel of width ε (arXiv
    2407.14435, eqs. 11 and 12).
    """
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(penalty / (d * B))
    half = np.float32(0.5 * bandwidth)
    width = np.float32(bandwidth)
    row = error[0]
    squared, n_active = 0.0, 0
    g_threshold[:] = ZERO
    for r in range(B):
        begin, end = start[r], start[r + 1]
        for q in range(begin, end):
            distance = value[q]
            # kept aside until the error is known
            gradient[q] = distance
            active = distance > half
            value[q] = distance + edge[latent[q]] if active else ZERO
            n_active += np.int64(active)
        for c in range(d):
            row[r, c] = b_dec[i, c] - x[r, c]
        _add_weighted(W_dec, i, latent, value, begin, end, row, r)
        total = ZERO
        for c in range(d):
            total += row[r, c] * row[r, c]
        squared += total
        for q in range(begin, end):
            j = latent[q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * row[r, c]
            to_value = scale * dot
            distance = gradient[q]
            if distance < width:
                theta = edge[j] + half
                g_threshold[j] -= theta * (theta * to_value + pen) / width
            gradient[q] = to_value if distance > half else ZERO
    return squared / (d * B), n_active / B, n_active / B, np.inf


@_jit
def dense_pass(
    i: int,
    x: F32,
    W_enc: F32,
    bias: F32,
    W_dec: F32,
    b_dec: F32,
    norms: F32,
    edge: F32,
    bandwidth: float,
    penalty: float,
    pre: F32,
    bits: I32,
    f_memory: F32,
    error: F32,
    dense_enc: F32,
    dense_dec: F32,
    dense_sum: F32,
    g_b: F32,
    g_threshold: F32,
    fired: I64,
    candidate_bits: I32,
    candidate: I32,
    dead: I32,
    n_dead: int,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
) -> tuple[float, float, float, float]:
    """Relu (``bandwidth = 0``) or jumprelu through dense products, block of rows by block.

    The same results as listing and reconstructing, for batches with many active latents. Fills
    ``error``, the gradients' sums ``dense_enc``, ``dense_dec`` ``[F, d]``, the activations' sums
    ``dense_sum``, ``g_b``, ``g_threshold``, ``fired`` ``[F]`` and the AuxK codes.
    """
    B, d = x.shape
    F = W_enc.shape[1]
    jump = bandwidth > 0
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(penalty / (d * B))
    half, width = np.float32(0.5 * bandwidth), np.float32(bandwidth)
    squared, cost, n_active, aux_count = 0.0, 0.0, 0, 0
    for j in range(F):
        dense_sum[j] = ZERO
        g_b[j] = ZERO
        g_threshold[j] = ZERO
        fired[j] = 0
    block_rows = len(pre) // F
    for r0 in range(0, B, block_rows):
        rows = min(block_rows, B - r0)
        block = x[r0 : r0 + rows]
        p = pre[: rows * F].reshape(rows, F)
        f = f_memory[: rows * F].reshape(rows, F)
        np.dot(block, W_enc[i].T, p)
        for r in range(rows):
            for j in range(F):
                p[r, j] += bias[j]
            if n_dead > 0:
                aux_start[r0 + r] = aux_count
                aux_count = _collect_dead(
                    bits,
                    r * F,
                    dead,
                    n_dead,
                    k_aux,
                    aux_count,
                    candidate_bits,
                    candidate,
                    aux_latent,
                    aux_bits,
                )
            if jump:
                for j in range(F):
                    f[r, j] = p[r, j] if p[r, j] > edge[j] + half else ZERO
            else:
                for j in range(F):
                    f[r, j] = p[r, j] if p[r, j] > ZERO else ZERO
            active, paid = 0, ZERO
            for j in range(F):
                on = np.int64(f[r, j] > ZERO)
                fired[j] += on
                active += on
                dense_sum[j] += f[r, j]
                paid += f[r, j] * norms[j]
            n_active += active
            cost += np.float64(active) if jump else np.float64(paid)
        block_error = np.dot(f, W_dec[i])
        for r in range(rows):
            total = ZERO
            for c in range(d):
                value = block_error[r, c] + b_dec[i, c] - block[r, c]
                block_error[r, c] = value
                error[0, r0 + r, c] = value
                total += value * value
            squared += total
        sums = np.dot(f.T, block_error)
        if r0 == 0:
            dense_dec[:] = sums
        else:
            dense_dec += sums
        np.dot(block_error, W_dec[i].T, f)
        for r in range(rows):
            for j in range(F):
                to_value = scale * f[r, j]
                limit = ZERO
                if jump:
                    limit = edge[j] + half
                    if abs(p[r, j] - limit) < half:
                        g_threshold[j] -= limit * (limit * to_value + pen) / width
                else:
                    to_value += pen * norms[j]
                to_value = to_value if p[r, j] > limit else ZERO
                f[r, j] = to_value
                g_b[j] += to_value
        sums = np.dot(f.T, block)
        if r0 == 0:
            dense_enc[:] = sums
        else:
            dense_enc += sums
    aux_start[B] = aux_count
    return squared / (d * B), cost / B, n_active / B, np.inf


@_jit
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


@_jit
def auxk(
    i: int,
    W_dec: F32,
    error: F32,
    start: I64,
    latent: I32,
    value: F32,
    gradient: F32,
    aux_error: F32,
) -> tuple[float, float]:
    """AuxK (Gao et al., arXiv 2406.04093, §2.3): dead latents reconstruct the residual.

    Fills ``gradient``, unscaled, and ``aux_error [1, B, d]``.

    Returns
    -------
    auxiliary, variance
        Mean squared error per row over the residual's variance, and that variance; 0 and 0
        where there is no residual.
    """
    P, B, d = error.shape
    whole = aux_error[0]
    squared = 0.0
    for r in range(B):
        begin, end = start[r], start[r + 1]
        for c in range(d):
            whole[r, c] = error[P - 1, r, c]
        _add_weighted(W_dec, i, latent, value, begin, end, whole, r)
        total = ZERO
        for c in range(d):
            total += whole[r, c] * whole[r, c]
        squared += total
        for q in range(begin, end):
            j = latent[q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * whole[r, c]
            gradient[q] = dot
    variance = residual_variance(error)
    if variance > 0:
        return squared / B / variance, variance
    return 0.0, 0.0


@_jit
def ghost(
    i: int,
    x: F32,
    W_enc: F32,
    bias: F32,
    W_dec: F32,
    error: F32,
    dead: I32,
    n_dead: int,
    coefficient: float,
    ghost_enc: F32,
    ghost_dec: F32,
    ghost_b: F32,
    dead_slot: I32,
) -> float:
    """Ghost gradients (Anthropic, January 2024): dead latents through exp(pre).

    Their output, scaled to half the residual's norm, is compared with the residual. Fills the
    gradients ``ghost_*`` by place among the dead, and ``dead_slot [F]`` with that place or −1.

    Returns
    -------
    float
        Mean squared error per row over the residual's variance.
    """
    P, B, d = error.shape
    enc = np.empty((n_dead, d), np.float32)
    dec = np.empty((n_dead, d), np.float32)
    dead_slot[:] = -1
    for q in range(n_dead):
        j = dead[q]
        dead_slot[j] = q
        for c in range(d):
            enc[q, c] = W_enc[i, j, c]
            dec[q, c] = W_dec[i, j, c]
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
    ghost_dec[:n_dead] = np.dot(code.T, guess)
    to_pre = np.dot(guess, dec.T)
    ghost_b[:] = ZERO
    for r in range(B):
        for q in range(n_dead):
            to_pre[r, q] *= code[r, q]
            ghost_b[q] += to_pre[r, q]
    ghost_enc[:n_dead] = np.dot(to_pre.T, x)
    return squared / B / variance if variance > 0 else 0.0


@_jit
def order_by_latent(
    start: I64,
    latent: I32,
    value: F32,
    gradient: F32,
    factor: float,
    out_start: I64,
    out_row: I32,
    out_value: F32,
    out_gradient: F32,
) -> None:
    """Sort entries by latent, rows ascending within each: a fixed order of summation.

    Values and gradients are multiplied by ``factor`` on the way. ``out_start`` is ``[F + 1]``.
    """
    B = len(start) - 1
    F = len(out_start) - 1
    factor32 = np.float32(factor)
    out_start[:] = 0
    for q in range(start[B]):
        out_start[latent[q] + 1] += 1
    for j in range(F):
        out_start[j + 1] += out_start[j]
    for r in range(B):
        for q in range(start[r], start[r + 1]):
            j = latent[q]
            at = out_start[j]
            out_row[at] = r
            out_value[at] = factor32 * value[q]
            out_gradient[at] = factor32 * gradient[q]
            out_start[j] = at + 1
    for j in range(F, 0, -1):
        out_start[j] = out_start[j - 1]
    out_start[0] = 0


@_jit
def _gather_latent(
    begin: int,
    end: int,
    row: I32,
    value: F32,
    gradient: F32,
    error: F32,
    p: int,
    x: F32,
    g_dec: F32,
    g_enc: F32,
    slot: int,
) -> np.float32:
    """``g_dec += Σ value · error[row]``, ``g_enc += Σ gradient · x[row]``; gives Σ gradient."""
    d = x.shape[1]
    bias = ZERO
    q = begin
    while q + 4 <= end:
        r0, r1, r2, r3 = row[q], row[q + 1], row[q + 2], row[q + 3]
        v0, v1, v2, v3 = value[q], value[q + 1], value[q + 2], value[q + 3]
        w0, w1, w2, w3 = gradient[q], gradient[q + 1], gradient[q + 2], gradient[q + 3]
        for c in range(d):
            g_dec[slot, c] += (
                v0 * error[p, r0, c]
                + v1 * error[p, r1, c]
                + v2 * error[p, r2, c]
                + v3 * error[p, r3, c]
            )
        for c in range(d):
            g_enc[slot, c] += w0 * x[r0, c] + w1 * x[r1, c] + w2 * x[r2, c] + w3 * x[r3, c]
        bias += w0 + w1 + w2 + w3
        q += 4
    while q < end:
        r, v, w = row[q], value[q], gradient[q]
        for c in range(d):
            g_dec[slot, c] += v * error[p, r, c]
            g_enc[slot, c] += w * x[r, c]
        bias += w
        q += 1
    return bias


@_jit
def gradients(
    lo: int,
    hi: int,
    i: int,
    x: F32,
    W_enc: F32,
    W_dec: F32,
    b_dec: F32,
    norms: F32,
    l1: float,
    unit_norm: bool,
    prefixes: I64,
    error: F32,
    start: I64,
    row: I32,
    value: F32,
    gradient: F32,
    with_aux: bool,
    aux_error: F32,
    aux_start: I64,
    aux_row: I32,
    aux_value: F32,
    aux_gradient: F32,
    g_enc: F32,
    g_dec: F32,
    g_b: F32,
    g_b_dec: F32,
    fired: I64,
) -> None:
    """Gradients of latents ``lo … hi − 1``, whose rows of ``g_enc`` and ``g_dec`` start at 0.

    Entries come in latent order. ``g_b [F]`` and ``fired [F]`` are set, ``g_b_dec [d]`` added to.
    """
    B, d = x.shape
    P = len(prefixes)
    scale = np.float32(2.0 / (d * B * P))
    pen = np.float32(l1 / (d * B))
    for j in range(lo, hi):
        slot = j - lo
        p = prefix_of(prefixes, j) if P > 1 else 0
        for c in range(d):
            g_dec[slot, c] = ZERO
            g_enc[slot, c] = ZERO
        begin, end = start[j], start[j + 1]
        g_b[j] = _gather_latent(begin, end, row, value, gradient, error, p, x, g_dec, g_enc, slot)
        total, count = ZERO, 0
        for q in range(begin, end):
            total += value[q]
            count += np.int64(value[q] > ZERO)
        fired[j] = count
        # the penalty's own gradient for the decoder: λ·Σ f · W / ‖W‖
        along = pen * total / max(norms[j], TINY)
        for c in range(d):
            g_dec[slot, c] = scale * g_dec[slot, c] + along * W_dec[i, j, c]
        if with_aux:
            g_b[j] += _gather_latent(
                aux_start[j],
                aux_start[j + 1],
                aux_row,
                aux_value,
                aux_gradient,
                aux_error,
                0,
                x,
                g_dec,
                g_enc,
                slot,
            )
        _finish_latent(i, j, slot, W_enc, W_dec, b_dec, unit_norm, g_enc, g_dec, g_b, g_b_dec)


@_jit
def _finish_latent(
    i: int,
    j: int,
    slot: int,
    W_enc: F32,
    W_dec: F32,
    b_dec: F32,
    unit_norm: bool,
    g_enc: F32,
    g_dec: F32,
    g_b: F32,
    g_b_dec: F32,
) -> None:
    """Account for b_dec inside the pre-activations; drop the decoder's parallel gradient."""
    d = len(g_b_dec)
    dot = ZERO
    for c in range(d):
        g_enc[slot, c] -= g_b[j] * b_dec[i, c]
        g_b_dec[c] -= g_b[j] * W_enc[i, j, c]
        dot += g_dec[slot, c] * W_dec[i, j, c]
    if unit_norm:
        for c in range(d):
            g_dec[slot, c] -= dot * W_dec[i, j, c]


@_jit
def dense_gradients(
    lo: int,
    hi: int,
    i: int,
    x: F32,
    W_enc: F32,
    W_dec: F32,
    b_dec: F32,
    norms: F32,
    l1: float,
    unit_norm: bool,
    dense_enc: F32,
    dense_dec: F32,
    dense_sum: F32,
    with_aux: bool,
    aux_error: F32,
    aux_start: I64,
    aux_row: I32,
    aux_value: F32,
    aux_gradient: F32,
    g_enc: F32,
    g_dec: F32,
    g_b: F32,
    g_b_dec: F32,
) -> None:
    """Like `gradients`, after :func:`dense_pass`."""
    B, d = x.shape
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(l1 / (d * B))
    for j in range(lo, hi):
        slot = j - lo
        along = pen * dense_sum[j] / max(norms[j], TINY)
        for c in range(d):
            g_dec[slot, c] = scale * dense_dec[j, c] + along * W_dec[i, j, c]
            g_enc[slot, c] = dense_enc[j, c]
        if with_aux:
            g_b[j] += _gather_latent(
                aux_start[j],
                aux_start[j + 1],
                aux_row,
                aux_value,
                aux_gradient,
                aux_error,
                0,
                x,
                g_dec,
                g_enc,
                slot,
            )
        _finish_latent(i, j, slot, W_enc, W_dec, b_dec, unit_norm, g_enc, g_dec, g_b, g_b_dec)


@_jit
def add_ghost(
    lo: int,
    hi: int,
    i: int,
    W_enc: F32,
    W_dec: F32,
    b_dec: F32,
    unit_norm: bool,
    dead_slot: I32,
    ghost_enc: F32,
    ghost_dec: F32,
    ghost_b: F32,
    g_enc: F32,
    g_dec: F32,
    g_b: F32,
    g_b_dec: F32,
) -> None:
    """Add what :func:`ghost` found to the gradients of latents ``lo … hi − 1``."""
    d = len(g_b_dec)
    for j in range(lo, hi):
        at = dead_slot[j]
        if at < 0:
            continue
        slot = j - lo
        g_b[j] += ghost_b[at]
        dot = ZERO
        for c in range(d):
            g_enc[slot, c] += ghost_enc[at, c] - ghost_b[at] * b_dec[i, c]
            g_b_dec[c] -= ghost_b[at] * W_enc[i, j, c]
            dot += ghost_dec[at, c] * W_dec[i, j, c]
        along = dot if unit_norm else ZERO
        for c in range(d):
            g_dec[slot, c] += ghost_dec[at, c] - along * W_dec[i, j, c]


@_jit
def sum_errors(error: F32, g_b_dec: F32) -> None:
    """The reconstruction's gradient of b_dec ``[d]``: all prefixes' errors, added up."""
    P, B, d = error.shape
    scale = np.float32(2.0 / (d * B * P))
    g_b_dec[:] = ZERO
    for r in range(B):
        for c in range(d):
            g_b_dec[c] += error[0, r, c]
    for c in range(d):
        g_b_dec[c] *= scale


@_jit
def square_sum(values: F32) -> float:
    """Σ v² over a matrix, rows in float32 and their sum in float64."""
    total = 0.0
    for q in range(values.shape[0]):
        row = ZERO
        for c in range(values.shape[1]):
            row += values[q, c] * values[q, c]
        total += row
    return total


@_jit
def _adam(
    parameter: F32,
    m: F32,
    v: F32,
    i: int,
    j: int,
    g: F32,
    slot: int,
    factor: np.float32,
    a: np.float32,
    b: np.float32,
    beta1: np.float32,
    beta2: np.float32,
    epsilon: np.float32,
    keep: np.float32,
) -> None:
    """One row: ``p = keep·p − a·m / (√v·b + ε)``; a and b hold rate and bias corrections."""
    one = np.float32(1.0)
    for c in range(parameter.shape[2]):
        gradient = factor * g[slot, c]
        first = beta1 * m[i, j, c] + (one - beta1) * gradient
        second = beta2 * v[i, j, c] + (one - beta2) * gradient * gradient
        first = ZERO if abs(first) < TINY else first
        second = ZERO if second < TINY else second
        m[i, j, c] = first
        v[i, j, c] = second
        parameter[i, j, c] = keep * parameter[i, j, c] - a * first / (np.sqrt(second) * b + epsilon)


@_jit
def update_latents(
    lo: int,
    hi: int,
    i: int,
    W_enc: F32,
    m_W_enc: F32,
    v_W_enc: F32,
    W_dec: F32,
    m_W_dec: F32,
    v_W_dec: F32,
    g_enc: F32,
    g_dec: F32,
    factor: float,
    a: float,
    b: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
    unit_norm: bool,
) -> None:
    """Adam for encoder and decoder rows ``lo … hi − 1``, and norm 1 for the decoder's.

    ``factor`` clips; ``a`` is rate / (1 − β₁ᵗ), ``b`` is 1 / √(1 − β₂ᵗ), ``decay`` is the rate
    times AdamW's weight decay.
    """
    f32, a32, b32 = np.float32(factor), np.float32(a), np.float32(b)
    beta1_32, beta2_32, e32 = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    keep, one = np.float32(1.0 - decay), np.float32(1.0)
    for j in range(lo, hi):
        _adam(
            W_enc,
            m_W_enc,
            v_W_enc,
            i,
            j,
            g_enc,
            j - lo,
            f32,
            a32,
            b32,
            beta1_32,
            beta2_32,
            e32,
            keep,
        )
        _adam(
            W_dec,
            m_W_dec,
            v_W_dec,
            i,
            j,
            g_dec,
            j - lo,
            f32,
            a32,
            b32,
            beta1_32,
            beta2_32,
            e32,
            one,
        )
        if unit_norm:
            total = ZERO
            for c in range(W_dec.shape[2]):
                total += W_dec[i, j, c] * W_dec[i, j, c]
            inverse = one / max(np.sqrt(total), TINY)
            for c in range(W_dec.shape[2]):
                W_dec[i, j, c] *= inverse


@_jit
def update_vector(
    i: int,
    parameter: F32,
    m: F32,
    v: F32,
    g: F32,
    factor: float,
    a: float,
    b: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Adam for one SAE's row of ``parameter [N, n]``."""
    f32, a32, b32 = np.float32(factor), np.float32(a), np.float32(b)
    beta1_32, beta2_32, e32 = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    one = np.float32(1.0)
    for j in range(parameter.shape[1]):
        gradient = f32 * g[j]
        first = beta1_32 * m[i, j] + (one - beta1_32) * gradient
        second = beta2_32 * v[i, j] + (one - beta2_32) * gradient * gradient
        first = ZERO if abs(first) < TINY else first
        second = ZERO if second < TINY else second
        m[i, j] = first
        v[i, j] = second
        parameter[i, j] -= a32 * first / (np.sqrt(second) * b32 + e32)


@_jit
def count_since_fired(since_fired: I64, i: int, fired: I64, B: int) -> None:
    """Rows since each latent fired, after a batch of ``B``."""
    for j in range(len(fired)):
        since_fired[i, j] = 0 if fired[j] > 0 else since_fired[i, j] + B


@_jit
def step_latents(
    i: int,
    x: F32,
    W_enc: F32,
    m_W_enc: F32,
    v_W_enc: F32,
    b_enc: F32,
    m_b_enc: F32,
    v_b_enc: F32,
    W_dec: F32,
    m_W_dec: F32,
    v_W_dec: F32,
    b_dec: F32,
    m_b_dec: F32,
    v_b_dec: F32,
    norms: F32,
    l1: float,
    unit_norm: bool,
    prefixes: I64,
    error: F32,
    start: I64,
    latent: I32,
    value: F32,
    gradient: F32,
    order_start: I64,
    order_row: I32,
    order_value: F32,
    order_gradient: F32,
    with_aux: bool,
    aux_scale: float,
    aux_error: F32,
    aux_start: I64,
    aux_latent: I32,
    aux_value: F32,
    aux_gradient: F32,
    aux_order_start: I64,
    aux_order_row: I32,
    aux_order_value: F32,
    aux_order_gradient: F32,
    g_enc: F32,
    g_dec: F32,
    g_b: F32,
    g_b_dec: F32,
    fired: I64,
    since_fired: I64,
    a: float,
    b: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> None:
    """Everything after the reconstruction, for one SAE without clipping or ghost gradients.

    Latents are visited in blocks of ``len(g_enc)``: gradient and update while both are in cache.
    """
    F, B = W_enc.shape[1], x.shape[0]
    order_by_latent(
        start,
        latent,
        value,
        gradient,
        1.0,
        order_start,
        order_row,
        order_value,
        order_gradient,
    )
    if with_aux:
        order_by_latent(
            aux_start,
            aux_latent,
            aux_value,
            aux_gradient,
            aux_scale,
            aux_order_start,
            aux_order_row,
            aux_order_value,
            aux_order_gradient,
        )
    sum_errors(error, g_b_dec)
    for lo in range(0, F, len(g_enc)):
        hi = min(lo + len(g_enc), F)
        gradients(
            lo,
            hi,
            i,
            x,
            W_enc,
            W_dec,
            b_dec,
            norms,
            l1,
            unit_norm,
            prefixes,
            error,
            order_start,
            order_row,
            order_value,
            order_gradient,
            with_aux,
            aux_error,
            aux_order_start,
            aux_order_row,
            aux_order_value,
            aux_order_gradient,
            g_enc,
            g_dec,
            g_b,
            g_b_dec,
            fired,
        )
        update_latents(
            lo,
            hi,
            i,
            W_enc,
            m_W_enc,
            v_W_enc,
            W_dec,
            m_W_dec,
            v_W_dec,
            g_enc,
            g_dec,
            1.0,
            a,
            b,
            beta1,
            beta2,
            epsilon,
            decay,
            unit_norm,
        )
    update_vector(i, b_enc, m_b_enc, v_b_enc, g_b, 1.0, a, b, beta1, beta2, epsilon)
    update_vector(i, b_dec, m_b_dec, v_b_dec, g_b_dec, 1.0, a, b, beta1, beta2, epsilon)
    count_since_fired(since_fired, i, fired, B)
