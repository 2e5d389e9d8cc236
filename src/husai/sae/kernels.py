"""Sparse training steps on the CPU, compiled by numba.

Past the encoder product a step needs only the active latents: ``k`` of ``d_sae`` per row. The
kernels here select them, reconstruct from them, sort them by latent, and give each latent its
gradient, its Adam update and its norm in one visit. They do the arithmetic of
:mod:`husai.sae.dense`, which they are tested against; :mod:`husai.sae.sparse` strings them
together.

Each runs on one thread and releases the GIL, so the result does not depend on the timing of
threads. Shapes: ``N`` SAEs, ``F`` latents, ``d`` input width, ``B`` rows a batch, ``G`` SAEs in a
team (neighbours that share their batches), ``R`` rows in a block, ``P`` nested prefixes (1 without
nesting). ``i`` counts SAEs of the bank, ``g`` those of a team.

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

ROW_BLOCK = 256
"""Rows whose pre-activations are held at once."""

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
def _cut(bits: I32, n: int, k: int, hint: int) -> tuple[int, int]:
    """Find the cut of the ``k`` largest positive values.

    Those above ``cut`` are taken, and the first ``ties`` of those equal to it.
    """
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
    """How many chunks a row is cut into: about ``8 * per_row``, the row itself if that is short."""
    size = 1
    while F // (2 * size) >= 8 * per_row:
        size *= 2
    return (F + size - 1) // size


@_jit
def _chunk_maxima(bits: I32, base: int, F: int, n_chunks: int, chunk_max: I32) -> None:
    """Chunk c holds latents c, c + n_chunks, …, so that the maxima are plain vector operations."""
    # slices, because an index that is a sum keeps the loops from becoming vector operations
    chunk_max[:n_chunks] = bits[base : base + n_chunks]
    begin = base + n_chunks
    end = base + F
    while begin < end:
        length = min(n_chunks, end - begin)
        if begin + 2 * n_chunks <= end:
            one, two = bits[begin : begin + length], bits[begin + length : begin + 2 * length]
            for c in range(length):
                most = chunk_max[c]
                most = one[c] if one[c] > most else most
                chunk_max[c] = two[c] if two[c] > most else most
            begin += 2 * n_chunks
        else:
            one = bits[begin : begin + length]
            for c in range(length):
                chunk_max[c] = one[c] if one[c] > chunk_max[c] else chunk_max[c]
            begin += n_chunks


@_jit
def _candidates(
    bits: I32,
    base: int,
    F: int,
    n_chunks: int,
    level: int,
    chunk_max: I32,
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
        n_chosen += np.int64(chunk_max[c] > level32)
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
    g: int,
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
        j = dead[g, q]
        value = bits[base + j]
        candidate_bits[n] = value
        candidate[n] = j
        n += np.int64(value > 0)
    n, _ = _keep_top(candidate_bits, candidate, n, k_aux, 0)
    for q in range(n):
        out_latent[g, begin + q] = candidate[q]
        out_bits[g, begin + q] = candidate_bits[q]
    return begin + n


@_jit
def _add_bias(pre: F32, base: int, F: int, bias: F32, g: int) -> None:
    for j in range(F):
        value = pre[base + j] + bias[g, j]
        # a NaN becomes 0; it reaches b_dec, and so the next step's loss
        pre[base + j] = value if value > ZERO else ZERO


@_jit
def prepare_team(
    rows: F32, batch: I64, i0: int, W_enc: F32, b_enc: F32, b_dec: F32, x: F32, bias: F32
) -> None:
    """Gather the batch into ``x [B, d]`` and set ``bias [G, F] = b_enc − W_enc · b_dec``.

    With that bias the encoder product of the raw rows serves SAEs with different ``b_dec``.
    """
    G, F = bias.shape
    d = x.shape[1]
    for r in range(len(batch)):
        at = batch[r]
        for c in range(d):
            x[r, c] = rows[at, c]
    for g in range(G):
        i = i0 + g
        for j in range(F):
            total = ZERO
            for c in range(d):
                total += W_enc[i, j, c] * b_dec[i, c]
            bias[g, j] = b_enc[i, j] - total


@_jit
def list_dead(since_fired: I64, i: int, dead_rows: float, dead: I32, g: int) -> int:
    """List the latents that have not fired for ``dead_rows`` rows into ``dead[g]``."""
    n = 0
    for j in range(since_fired.shape[1]):
        dead[g, n] = j
        n += np.int64(since_fired[i, j] >= dead_rows)
    return n


@_jit
def encode_row(
    x: F32,
    stacked: F32,
    bias: F32,
    pending: I64,
    k: I64,
    pre: F32,
    bits: I32,
    chunk_max: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
    start: I64,
    latent: I32,
    value_bits: I32,
    dead: I32,
    n_dead: I64,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
) -> None:
    """Encode a batch and keep the ``k`` largest positive values of each row (TopK).

    Exact: the k-th largest chunk maximum bounds the k-th largest value from below, so the k
    largest are all among the candidates above it.

    Parameters
    ----------
    x, stacked, bias
        Rows ``[B, d]``, the team's encoders ``[G * F, d]``, biases ``[G, F]``.
    pending, k
        Which SAEs of the team train ``[G]``, and how many latents each keeps per row.
    pre, bits
        Memory for a block of pre-activations ``[R * G * F]``, and the same memory as integers:
        non-negative floats sort as their bits do.
    chunk_max, chosen, candidate_bits, candidate
        Memory for a row ``[F + 1]``.
    start, latent, value_bits
        The codes, row by row: ``[G, B + 1]``, ``[G, capacity]``.
    dead, n_dead, k_aux, aux_start, aux_latent, aux_bits
        Dead latents ``[G, F + 1]`` and the AuxK codes, likewise.
    """
    B = x.shape[0]
    G, F = bias.shape
    count = np.zeros(G, np.int64)
    aux_count = np.zeros(G, np.int64)
    level = np.zeros(G, np.int64)
    cut = np.zeros(G, np.int64)
    for r0 in range(0, B, ROW_BLOCK):
        rows = min(ROW_BLOCK, B - r0)
        np.dot(x[r0 : r0 + rows], stacked.T, pre[: rows * G * F].reshape(rows, G * F))
        for g in range(G):
            if pending[g] == 0:
                continue
            n_chunks = _chunks(F, k[g])
            for r in range(rows):
                base = (r * G + g) * F
                _add_bias(pre, base, F, bias, g)
                if n_dead[g] > 0:
                    aux_start[g, r0 + r] = aux_count[g]
                    aux_count[g] = _collect_dead(
                        bits,
                        base,
                        dead,
                        g,
                        n_dead[g],
                        k_aux,
                        aux_count[g],
                        candidate_bits,
                        candidate,
                        aux_latent,
                        aux_bits,
                    )
                low = np.int64(0)
                if n_chunks < F:
                    _chunk_maxima(bits, base, F, n_chunks, chunk_max)
                    low, _, _ = _bracket(chunk_max, n_chunks, k[g], k[g] // 4, level[g])
                    level[g] = low
                n = _candidates(
                    bits,
                    base,
                    F,
                    n_chunks,
                    low,
                    chunk_max,
                    chosen,
                    candidate_bits,
                    candidate,
                )
                n, cut[g] = _keep_top(candidate_bits, candidate, n, k[g], cut[g])
                begin = count[g]
                start[g, r0 + r] = begin
                for q in range(n):
                    latent[g, begin + q] = candidate[q]
                    value_bits[g, begin + q] = candidate_bits[q]
                count[g] = begin + n
    for g in range(G):
        start[g, B] = count[g]
        aux_start[g, B] = aux_count[g]


@_jit
def _prune_batch(
    value_bits: I32, latent: I32, row_of: I32, g: int, n: int, target: int
) -> tuple[int, int]:
    """Keep the ``target`` largest candidates of a batch, their order unchanged."""
    bits = value_bits[g]
    cut, ties = _cut(bits, n, target, 0)
    kept = 0
    for q in range(n):
        value = bits[q]
        tie = value == cut and ties > 0
        ties -= np.int64(tie)
        bits[kept] = value
        latent[g, kept] = latent[g, q]
        row_of[g, kept] = row_of[g, q]
        kept += np.int64(value > cut or tie)
    return kept, cut


@_jit
def encode_batch(
    x: F32,
    stacked: F32,
    bias: F32,
    pending: I64,
    k: I64,
    pre: F32,
    bits: I32,
    chunk_max: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
    start: I64,
    latent: I32,
    value_bits: I32,
    dead: I32,
    n_dead: I64,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
    row_of: I32,
    first_level: I64,
    i0: int,
) -> None:
    """Encode a batch and keep its ``B·k`` largest positive values (BatchTopK).

    Lists what is above a level taken from the step before, and starts again from 0 where that
    was too high, so the level changes the cost and never the result.

    Parameters
    ----------
    x, stacked, bias, pending, k, pre, bits, chunk_max, chosen, candidate_bits, candidate
        As in :func:`encode_row`.
    start, latent, value_bits, dead, n_dead, k_aux, aux_start, aux_latent, aux_bits
        As in :func:`encode_row`.
    row_of
        Memory for the candidates' rows ``[G, capacity]``.
    first_level, i0
        Where to list from, by SAE of the bank ``[N]``; set for the next step.
    """
    B = x.shape[0]
    G, F = bias.shape
    capacity = latent.shape[1]
    todo = pending.copy()
    count = np.zeros(G, np.int64)
    aux_count = np.zeros(G, np.int64)
    level = first_level[i0 : i0 + G].copy()
    while todo.sum() > 0:
        for r0 in range(0, B, ROW_BLOCK):
            rows = min(ROW_BLOCK, B - r0)
            np.dot(x[r0 : r0 + rows], stacked.T, pre[: rows * G * F].reshape(rows, G * F))
            for g in range(G):
                if todo[g] == 0:
                    continue
                n_chunks = _chunks(F, max(1, k[g] // 4))
                for r in range(rows):
                    base = (r * G + g) * F
                    _add_bias(pre, base, F, bias, g)
                    if n_dead[g] > 0:
                        aux_start[g, r0 + r] = aux_count[g]
                        aux_count[g] = _collect_dead(
                            bits,
                            base,
                            dead,
                            g,
                            n_dead[g],
                            k_aux,
                            aux_count[g],
                            candidate_bits,
                            candidate,
                            aux_latent,
                            aux_bits,
                        )
                    if n_chunks < F:
                        _chunk_maxima(bits, base, F, n_chunks, chunk_max)
                    if count[g] + F > capacity:
                        # nothing below the target-th largest so far can be among the largest
                        count[g], level[g] = _prune_batch(
                            value_bits, latent, row_of, g, count[g], B * k[g]
                        )
                    n = _candidates(
                        bits,
                        base,
                        F,
                        n_chunks,
                        level[g],
                        chunk_max,
                        chosen,
                        candidate_bits,
                        candidate,
                    )
                    begin = count[g]
                    for q in range(n):
                        row_of[g, begin + q] = r0 + r
                        latent[g, begin + q] = candidate[q]
                        value_bits[g, begin + q] = candidate_bits[q]
                    count[g] = begin + n
        for g in range(G):
            if todo[g] == 0:
                continue
            target = B * k[g]
            n = count[g]
            if n < target and level[g] > 0:
                count[g], aux_count[g], level[g] = 0, 0, 0
                continue
            todo[g] = 0
            aux_start[g, B] = aux_count[g]
            wanted = target + target // 4
            if n > wanted:
                first_level[i0 + g], _, _ = _bracket(
                    value_bits[g], n, wanted, target // 16, level[g]
                )
            else:
                # the list fell short of the margin: start about a fifth lower
                first_level[i0 + g] = max(level[g] - (1 << 21), 0)
            n, _ = _prune_batch(value_bits, latent, row_of, g, n, target)
            position = 0
            for r in range(B):
                start[g, r] = position
                while position < n and row_of[g, position] == r:
                    position += 1
            start[g, B] = n


@_jit
def encode_positive(
    x: F32,
    stacked: F32,
    bias: F32,
    pending: I64,
    edge: F32,
    shifted: bool,
    dense: I64,
    pre: F32,
    bits: I32,
    chunk_max: I32,
    chosen: I32,
    candidate_bits: I32,
    candidate: I32,
    start: I64,
    latent: I32,
    value_bits: I32,
    dead: I32,
    n_dead: I64,
    k_aux: int,
    aux_start: I64,
    aux_latent: I32,
    aux_bits: I32,
) -> None:
    """Encode a batch and list every positive value (relu), or what is above ``edge`` (jumprelu).

    jumprelu's values are listed as their distance from the edge. A SAE whose list would not fit
    gets ``dense[g] = 1`` and no list.

    Parameters
    ----------
    x, stacked, bias, pending, pre, bits, chunk_max, chosen, candidate_bits, candidate
        As in :func:`encode_row`.
    edge, shifted
        θ − ε/2 per latent ``[G, F]``; whether to use it.
    dense
        Set to 0 or 1 ``[G]``.
    start, latent, value_bits, dead, n_dead, k_aux, aux_start, aux_latent, aux_bits
        As in :func:`encode_row`.
    """
    B = x.shape[0]
    G, F = bias.shape
    capacity = latent.shape[1]
    count = np.zeros(G, np.int64)
    aux_count = np.zeros(G, np.int64)
    n_chunks = _chunks(F, max(1, F // 64))
    dense[:] = 0
    for r0 in range(0, B, ROW_BLOCK):
        rows = min(ROW_BLOCK, B - r0)
        busy = 0
        for g in range(G):
            busy += pending[g] * (1 - dense[g])
        if busy == 0:
            break
        np.dot(x[r0 : r0 + rows], stacked.T, pre[: rows * G * F].reshape(rows, G * F))
        for g in range(G):
            if pending[g] == 0 or dense[g] == 1:
                continue
            for r in range(rows):
                base = (r * G + g) * F
                if shifted:
                    for j in range(F):
                        pre[base + j] += bias[g, j]
                else:
                    _add_bias(pre, base, F, bias, g)
                if n_dead[g] > 0:
                    aux_start[g, r0 + r] = aux_count[g]
                    aux_count[g] = _collect_dead(
                        bits,
                        base,
                        dead,
                        g,
                        n_dead[g],
                        k_aux,
                        aux_count[g],
                        candidate_bits,
                        candidate,
                        aux_latent,
                        aux_bits,
                    )
                if shifted:
                    for j in range(F):
                        value = pre[base + j] - edge[g, j]
                        pre[base + j] = value if value > ZERO else ZERO
                if n_chunks < F:
                    _chunk_maxima(bits, base, F, n_chunks, chunk_max)
                n = _candidates(
                    bits, base, F, n_chunks, 0, chunk_max, chosen, candidate_bits, candidate
                )
                begin = count[g]
                start[g, r0 + r] = begin
                # judged on the rows so far, so that a dense batch is found out early
                if begin + n > capacity or (
                    r0 + r >= 63 and (begin + n) * B > capacity * 2 * (r0 + r + 1)
                ):
                    dense[g] = 1
                    break
                for q in range(n):
                    latent[g, begin + q] = candidate[q]
                    value_bits[g, begin + q] = candidate_bits[q]
                count[g] = begin + n
    for g in range(G):
        start[g, B] = count[g]
        aux_start[g, B] = aux_count[g]


@_jit
def set_edges(log_threshold: F32, i0: int, bandwidth: F64, edge: F32) -> None:
    """``edge = θ − ε/2`` of a team ``[G, F]``: where jumprelu's kernel begins."""
    G, F = edge.shape
    for g in range(G):
        half = np.float32(0.5 * bandwidth[i0 + g])
        for j in range(F):
            edge[g, j] = np.float32(math.exp(log_threshold[i0 + g, j])) - half


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
    W: F32, i: int, latent: I32, value: F32, g: int, begin: int, end: int, out: F32, r: int
) -> None:
    """``out[r] += Σ value · W[i, latent]`` over the entries ``begin … end − 1``."""
    d = out.shape[1]
    q = begin
    while q + 4 <= end:
        j0, j1, j2, j3 = latent[g, q], latent[g, q + 1], latent[g, q + 2], latent[g, q + 3]
        v0, v1, v2, v3 = value[g, q], value[g, q + 1], value[g, q + 2], value[g, q + 3]
        for c in range(d):
            out[r, c] += v0 * W[i, j0, c] + v1 * W[i, j1, c] + v2 * W[i, j2, c] + v3 * W[i, j3, c]
        q += 4
    while q < end:
        j, v = latent[g, q], value[g, q]
        for c in range(d):
            out[r, c] += v * W[i, j, c]
        q += 1


@_jit
def reconstruct(
    i: int,
    g: int,
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
    i, g
        The SAE in the bank and in its team.
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
        begin, end = start[g, r], start[g, r + 1]
        for c in range(d):
            row[r, c] = b_dec[i, c] - x[r, c]
        _add_weighted(W_dec, i, latent, value, g, begin, end, row, r)
        total = ZERO
        for c in range(d):
            total += row[r, c] * row[r, c]
        squared += total
        n_active += end - begin
        for q in range(begin, end):
            j = latent[g, q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * row[r, c]
            gradient[q] = scale * dot + pen * norms[j]
            cost += value[g, q] * norms[j]
            smallest = min(smallest, np.float64(value[g, q]))
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
    g: int,
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
        begin, end = start[g, r], start[g, r + 1]
        group[:] = ZERO
        for q in range(begin, end):
            j, v = latent[g, q], value[g, q]
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
            j = latent[g, q]
            p = prefix_of(prefixes, j)
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * error[p, r, c]
            gradient[q] = scale * dot + pen * norms[j]
            cost += value[g, q] * norms[j]
            smallest = min(smallest, np.float64(value[g, q]))
    return squared / (d * B * P), cost / B, n_active / B, smallest


@_jit
def reconstruct_jump(
    i: int,
    g: int,
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
        begin, end = start[g, r], start[g, r + 1]
        for q in range(begin, end):
            distance = value[g, q]
            # kept aside until the error is known
            gradient[q] = distance
            active = distance > half
            value[g, q] = distance + edge[g, latent[g, q]] if active else ZERO
            n_active += np.int64(active)
        for c in range(d):
            row[r, c] = b_dec[i, c] - x[r, c]
        _add_weighted(W_dec, i, latent, value, g, begin, end, row, r)
        total = ZERO
        for c in range(d):
            total += row[r, c] * row[r, c]
        squared += total
        for q in range(begin, end):
            j = latent[g, q]
            dot = ZERO
            for c in range(d):
                dot += W_dec[i, j, c] * row[r, c]
            to_value = scale * dot
            distance = gradient[q]
            if distance < width:
                theta = edge[g, j] + half
                g_threshold[j] -= theta * (theta * to_value + pen) / width
            gradient[q] = to_value if distance > half else ZERO
    return squared / (d * B), n_active / B, n_active / B, np.inf


@_jit
def dense_pass(
    i: int,
    g: int,
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
    for r0 in range(0, B, ROW_BLOCK):
        rows = min(ROW_BLOCK, B - r0)
        block = x[r0 : r0 + rows]
        p = pre[: rows * F].reshape(rows, F)
        f = f_memory[: rows * F].reshape(rows, F)
        np.dot(block, W_enc[i].T, p)
        for r in range(rows):
            for j in range(F):
                p[r, j] += bias[g, j]
            if n_dead > 0:
                aux_start[g, r0 + r] = aux_count
                aux_count = _collect_dead(
                    bits,
                    r * F,
                    dead,
                    g,
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
                    f[r, j] = p[r, j] if p[r, j] > edge[g, j] + half else ZERO
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
                    limit = edge[g, j] + half
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
    aux_start[g, B] = aux_count
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
    g: int,
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
        begin, end = start[g, r], start[g, r + 1]
        for c in range(d):
            whole[r, c] = error[P - 1, r, c]
        _add_weighted(W_dec, i, latent, value, g, begin, end, whole, r)
        total = ZERO
        for c in range(d):
            total += whole[r, c] * whole[r, c]
        squared += total
        for q in range(begin, end):
            j = latent[g, q]
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
    g: int,
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
        j = dead[g, q]
        dead_slot[j] = q
        for c in range(d):
            enc[q, c] = W_enc[i, j, c]
            dec[q, c] = W_dec[i, j, c]
    code = np.dot(x, enc.T)
    for r in range(B):
        for q in range(n_dead):
            code[r, q] = np.float32(math.exp(code[r, q] + bias[g, dead[g, q]]))
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
    g: int,
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
    B = start.shape[1] - 1
    F = len(out_start) - 1
    factor32 = np.float32(factor)
    out_start[:] = 0
    for q in range(start[g, B]):
        out_start[latent[g, q] + 1] += 1
    for j in range(F):
        out_start[j + 1] += out_start[j]
    for r in range(B):
        for q in range(start[g, r], start[g, r + 1]):
            j = latent[g, q]
            at = out_start[j]
            out_row[at] = r
            out_value[at] = factor32 * value[g, q]
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
    g: int,
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
        g,
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
            g,
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
