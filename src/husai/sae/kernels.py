"""Sparse training steps on the CPU, compiled by numba.

Past the encoder product a step needs only the active latents: ``k`` of ``d_sae`` per row. The
kernels here select them, reconstruct from them, sort them by latent, and give each latent its
gradient, its Adam update and its norm in one visit. They do the arithmetic of
:mod:`husai.sae.dense`, which they are tested against.

Everything runs on one thread per team of SAEs and releases the GIL, so threads share nothing and
the result does not depend on their timing. Shapes: ``N`` SAEs, ``F`` latents, ``d`` input width,
``B`` rows a batch, ``G`` SAEs in a team, ``R`` rows in a block, ``P`` nested prefixes (1 without
nesting).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

ALL, ROW, BATCH, THRESHOLD = 0, 1, 2, 3
NONE, AUXK, GHOST = 0, 1, 2

LATENT_BLOCK = 64
"""Latents whose gradients are held between accumulation and update: few enough to stay in cache."""

ROW_BLOCK = 256
"""Rows whose pre-activations are held at once."""

DENSE_FROM = 10
"""relu and jumprelu go through dense products when more than d_sae / DENSE_FROM are active."""

TINY = np.float32(1e-30)
"""Moments below it are set to 0: denormal numbers would slow every latent that does not fire."""

# sums may be reordered and fused, but NaN and infinity must stay visible
_jit = njit(
    cache=True, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy"
)


class State(NamedTuple):
    """A bank's tensors as arrays; see :class:`husai.sae.bank.SAEBank`."""

    W_enc: F32
    b_enc: F32
    W_dec: F32
    b_dec: F32
    log_threshold: F32
    m_W_enc: F32
    m_b_enc: F32
    m_W_dec: F32
    m_b_dec: F32
    m_log_threshold: F32
    v_W_enc: F32
    v_b_enc: F32
    v_W_dec: F32
    v_b_dec: F32
    v_log_threshold: F32
    running_threshold: F64
    since_fired: I64
    stopped_at: I64
    level: I64
    """Where the search for BatchTopK's cut starts; changes its cost, never its result."""


class Settings(NamedTuple):
    """What all steps of a run share."""

    selection: int
    method: int
    prefixes: I64
    dead_rows: float
    aux_coefficient: float
    k_aux: int
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip: float
    unit_norm: bool
    threshold_beta: float
    bandwidth: F64


class Codes(NamedTuple):
    """Active latents of a batch in row order, per SAE of a team."""

    start: I64  # [G, B + 1]
    latent: I32  # [G, capacity]
    value: F32  # [G, capacity]
    bits: I32  # the same memory as value
    gradient: F32  # [capacity], of the loss with respect to the pre-activation


class Ordered(NamedTuple):
    """The same entries in latent order, for one SAE at a time."""

    start: I64  # [F + 1]
    row: I32  # [capacity]
    value: F32
    gradient: F32


class Scratch(NamedTuple):
    """Working memory of one thread."""

    x: F32  # [B, d]
    pre: F32  # [R * G * F]
    bits: I32  # the same memory: non-negative floats sort as their bits do
    bias: F32  # [G, F]
    edge: F32  # [G, F], jumprelu's θ − ε/2: where its kernel begins
    main: Codes
    aux: Codes
    row_of: I32  # [G, capacity], of a batch's candidates
    error: F32  # [P, B, d]: x̂ − x, then its sums over the prefixes that hold a latent
    aux_error: F32  # [B, d]
    chunk_max: I32  # [F]
    chosen: I32  # [F + 1]
    candidate_bits: I32  # [F + 1]
    candidate: I32  # [F + 1]
    dead: I32  # [G, F]
    dead_slot: I32  # [F], where a latent stands among the dead, −1 for live ones
    ordered: Ordered
    aux_ordered: Ordered
    g_enc: F32  # [LATENT_BLOCK, d], [F, d] when gradients are clipped
    g_dec: F32
    g_b: F32  # [F]
    g_threshold: F32  # [F]
    g_b_dec: F32  # [d]
    norms: F32  # [F], of decoder rows
    fired: I64  # [F], rows on which a latent was active
    group: F32  # [P, d]
    dense_f: F32  # [R * F], empty where no dense products are made
    dense_enc: F32  # [F, d]
    dense_dec: F32  # [F, d]
    dense_sum: F32  # [F], sum of the activations of each latent
    ghost_enc: F32  # [F, d], by place among the dead
    ghost_dec: F32  # [F, d]
    ghost_b: F32  # [F]


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
        top = max(top, bits[i])
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
def _keep_top(s: Scratch, n: int, k: int, hint: int) -> tuple[int, int]:
    """Move the ``k`` largest of ``n`` candidates to the front, their order unchanged."""
    if n <= k:
        return n, hint
    cut, ties = _cut(s.candidate_bits, n, k, hint)
    kept = 0
    for i in range(n):
        value, j = s.candidate_bits[i], s.candidate[i]
        tie = value == cut and ties > 0
        ties -= np.int64(tie)
        s.candidate_bits[kept] = value
        s.candidate[kept] = j
        kept += np.int64(value > cut or tie)
    return kept, cut


@_jit
def _candidates(s: Scratch, base: int, F: int, n_chunks: int, level: int) -> int:
    """List the values of a row above a level, skipping chunks that hold none."""
    n_chosen = 0
    level32 = np.int32(level)
    for c in range(n_chunks):
        s.chosen[n_chosen] = c
        n_chosen += np.int64(s.chunk_max[c] > level32)
    n = 0
    for q in range(n_chosen):
        j = np.int64(s.chosen[q])
        while j < F:
            value = s.bits[base + j]
            s.candidate_bits[n] = value
            s.candidate[n] = j
            n += np.int64(value > level32)
            j += n_chunks
    return n


@_jit
def _chunk_maxima(s: Scratch, base: int, F: int, n_chunks: int) -> None:
    """Chunk c holds latents c, c + n_chunks, …, so that the maxima are plain vector operations."""
    for c in range(n_chunks):
        s.chunk_max[c] = s.bits[base + c]
    begin = n_chunks
    while begin < F:
        for c in range(min(n_chunks, F - begin)):
            s.chunk_max[c] = max(s.chunk_max[c], s.bits[base + begin + c])
        begin += n_chunks


@_jit
def _positive(s: Scratch, base: int, F: int) -> int:
    n = 0
    for j in range(F):
        value = s.bits[base + j]
        s.candidate_bits[n] = value
        s.candidate[n] = j
        n += np.int64(value > 0)
    return n


@_jit
def _chunks(F: int, per_row: int) -> int:
    """How many chunks a row is cut into: about ``8 * per_row``, the row itself if that is short."""
    size = 1
    while F // (2 * size) >= 8 * per_row:
        size *= 2
    return (F + size - 1) // size


@_jit
def _append(s: Scratch, codes: Codes, g: int, begin: int, n: int) -> int:
    for i in range(n):
        codes.latent[g, begin + i] = s.candidate[i]
        codes.bits[g, begin + i] = s.candidate_bits[i]
    return begin + n


@_jit
def _collect_dead(s: Scratch, g: int, base: int, n_dead: int, k_aux: int, begin: int) -> int:
    """Append the ``k_aux`` largest positive pre-activations among a row's dead latents."""
    n = 0
    for q in range(n_dead):
        j = s.dead[g, q]
        value = s.bits[base + j]
        s.candidate_bits[n] = value
        s.candidate[n] = j
        n += np.int64(value > 0)
    n, _ = _keep_top(s, n, k_aux, 0)
    return _append(s, s.aux, g, begin, n)


@_jit
def _prune_batch(s: Scratch, g: int, n: int, target: int) -> tuple[int, int]:
    """Keep the ``target`` largest candidates of a batch, their order unchanged."""
    bits = s.main.bits[g]
    cut, ties = _cut(bits, n, target, 0)
    kept = 0
    for i in range(n):
        value = bits[i]
        tie = value == cut and ties > 0
        ties -= np.int64(tie)
        bits[kept] = value
        s.main.latent[g, kept] = s.main.latent[g, i]
        s.row_of[g, kept] = s.row_of[g, i]
        kept += np.int64(value > cut or tie)
    return kept, cut


@_jit
def _encode_team(
    state: State, settings: Settings, s: Scratch, i0: int, i1: int, k: I64, n_dead: I64, dense: I64
) -> None:
    """Encode the batch for SAEs ``i0 … i1 − 1`` and select their active latents.

    One product per block of rows serves the whole team. Fills ``s.main`` and ``s.aux``;
    ``dense[g]`` becomes 1 for a SAE with too many active latents for the sparse path.
    """
    B, d = s.x.shape
    G, F = i1 - i0, state.W_enc.shape[1]
    selection = settings.selection
    stacked = state.W_enc[i0:i1].reshape(G * F, d).T
    capacity = s.main.latent.shape[1]
    # what is still to be selected, where each list stands, and from which level it lists
    pending = np.ones(G, np.int64)
    count = np.zeros(G, np.int64)
    aux_count = np.zeros(G, np.int64)
    level = np.zeros(G, np.int64)
    hint_a = np.zeros(G, np.int64)
    hint_b = np.zeros(G, np.int64)
    for g in range(G):
        i = i0 + g
        pending[g] = np.int64(state.stopped_at[i] < 0)
        if selection == BATCH:
            level[g] = state.level[i]
        for j in range(F):
            total = np.float32(0.0)
            for c in range(d):
                total += state.W_enc[i, j, c] * state.b_dec[i, c]
            s.bias[g, j] = state.b_enc[i, j] - total
            if selection == THRESHOLD:
                half = np.float32(0.5 * settings.bandwidth[i])
                s.edge[g, j] = np.float32(math.exp(state.log_threshold[i, j])) - half
    while pending.sum() > 0:
        for r0 in range(0, B, ROW_BLOCK):
            rows = min(ROW_BLOCK, B - r0)
            pre = s.pre[: rows * G * F].reshape(rows, G * F)
            np.dot(s.x[r0 : r0 + rows], stacked, pre)
            for g in range(G):
                if pending[g] == 0 or dense[g] == 1:
                    continue
                per_row = max(1, k[g])
                n_chunks = _chunks(F, per_row if selection == ROW else max(1, per_row // 4))
                target = B * k[g]
                for r in range(rows):
                    base = (r * G + g) * F
                    s.main.start[g, r0 + r] = count[g]
                    if selection == THRESHOLD:
                        for j in range(F):
                            s.pre[base + j] += s.bias[g, j]
                    else:
                        for j in range(F):
                            value = s.pre[base + j] + s.bias[g, j]
                            # a NaN becomes 0; it reaches b_dec, and so the next step's loss
                            value = value if value > np.float32(0.0) else np.float32(0.0)
                            s.pre[base + j] = value
                    if settings.method == AUXK and n_dead[g] > 0:
                        s.aux.start[g, r0 + r] = aux_count[g]
                        aux_count[g] = _collect_dead(
                            s, g, base, n_dead[g], settings.k_aux, aux_count[g]
                        )
                    if selection == ROW:
                        if n_chunks == F:
                            n = _positive(s, base, F)
                        else:
                            # the k-th largest maximum bounds the k-th largest value from below
                            _chunk_maxima(s, base, F, n_chunks)
                            low, _, _ = _bracket(s.chunk_max, n_chunks, k[g], k[g] // 4, hint_a[g])
                            hint_a[g] = low
                            n = _candidates(s, base, F, n_chunks, low)
                        n, hint_b[g] = _keep_top(s, n, k[g], hint_b[g])
                        count[g] = _append(s, s.main, g, count[g], n)
                        continue
                    if selection == THRESHOLD:
                        for j in range(F):
                            value = s.pre[base + j] - s.edge[g, j]
                            s.pre[base + j] = value if value > np.float32(0.0) else np.float32(0.0)
                    if n_chunks == F:
                        n = 0
                        for j in range(F):
                            value_bits = s.bits[base + j]
                            s.candidate_bits[n] = value_bits
                            s.candidate[n] = j
                            n += np.int64(value_bits > level[g])
                    else:
                        _chunk_maxima(s, base, F, n_chunks)
                        n = _candidates(s, base, F, n_chunks, level[g])
                    if count[g] + n > capacity:
                        if selection != BATCH:
                            dense[g] = 1
                            break
                        # nothing below the target-th largest so far can be among the largest
                        count[g], level[g] = _prune_batch(s, g, count[g], target)
                        kept = 0
                        for q in range(n):
                            if s.candidate_bits[q] > level[g]:
                                s.candidate_bits[kept] = s.candidate_bits[q]
                                s.candidate[kept] = s.candidate[q]
                                kept += 1
                        n = kept
                    for q in range(n):
                        s.row_of[g, count[g] + q] = r0 + r
                    count[g] = _append(s, s.main, g, count[g], n)
        for g in range(G):
            if pending[g] == 0:
                continue
            pending[g] = 0
            s.main.start[g, B] = count[g]
            s.aux.start[g, B] = aux_count[g]
            if selection == BATCH:
                target = B * k[g]
                if count[g] < target and level[g] > 0:
                    # started too high: list everything positive
                    pending[g], count[g], aux_count[g], level[g] = 1, 0, 0, 0
                else:
                    _finish_batch(state, s, i0 + g, g, count[g], level[g], target)


@_jit
def _finish_batch(
    state: State, s: Scratch, i: int, g: int, n: int, level: int, target: int
) -> None:
    """Keep the target largest of a batch and set the row starts and the next step's level."""
    B = s.x.shape[0]
    wanted = target + target // 4
    if n > wanted:
        state.level[i], _, _ = _bracket(s.main.bits[g], n, wanted, target // 16, level)
    else:
        # the list fell short of the margin: start about a fifth lower
        state.level[i] = max(level - (1 << 21), 0)
    n, _ = _prune_batch(s, g, n, target)
    position = 0
    for r in range(B):
        s.main.start[g, r] = position
        while position < n and s.row_of[g, position] == r:
            position += 1
    s.main.start[g, B] = n


@_jit
def _add_weighted(
    W: F32, i: int, codes: Codes, g: int, begin: int, end: int, out: F32, p: int
) -> None:
    """``out[p] += Σ value · W[i, latent]`` over the entries ``begin … end − 1``."""
    d = out.shape[1]
    q = begin
    while q + 4 <= end:
        j0, j1 = codes.latent[g, q], codes.latent[g, q + 1]
        j2, j3 = codes.latent[g, q + 2], codes.latent[g, q + 3]
        v0, v1 = codes.value[g, q], codes.value[g, q + 1]
        v2, v3 = codes.value[g, q + 2], codes.value[g, q + 3]
        for c in range(d):
            out[p, c] += v0 * W[i, j0, c] + v1 * W[i, j1, c] + v2 * W[i, j2, c] + v3 * W[i, j3, c]
        q += 4
    while q < end:
        j, v = codes.latent[g, q], codes.value[g, q]
        for c in range(d):
            out[p, c] += v * W[i, j, c]
        q += 1


@_jit
def _dot_row(W: F32, i: int, j: int, error: F32, p: int, r: int) -> np.float32:
    total = np.float32(0.0)
    for c in range(W.shape[2]):
        total += W[i, j, c] * error[p, r, c]
    return total


@_jit
def _reconstruct(
    state: State, settings: Settings, s: Scratch, i: int, g: int, penalty: float
) -> tuple[float, float, int, float]:
    """Reconstruct from the selected latents; errors, and the gradients of the activations.

    Returns
    -------
    reconstruction, cost, n_active, smallest
        Mean squared error over prefixes, rows and elements; mean L1 or L0 per row; active
        entries; smallest activation (infinity without any).
    """
    B, d = s.x.shape
    prefixes = settings.prefixes
    P = len(prefixes)
    threshold = settings.selection == THRESHOLD
    scale = np.float32(2.0 / (d * B * P))
    pen = np.float32(penalty / (d * B))
    squared, cost, n_active, smallest = 0.0, 0.0, 0, np.inf
    half = np.float32(0.5 * settings.bandwidth[i])
    for r in range(B):
        begin, end = s.main.start[g, r], s.main.start[g, r + 1]
        for q in range(begin, end):
            value = s.main.value[g, q]
            if threshold:
                # listed by its distance from θ − ε/2; give its activation, 0 below θ
                value += s.edge[g, s.main.latent[g, q]]
                s.main.gradient[q] = value
                value = value if s.main.value[g, q] > half else np.float32(0.0)
                s.main.value[g, q] = value
                active = value > np.float32(0.0)
                cost += np.float64(active)
            else:
                active = value > np.float32(0.0)
                cost += value * s.norms[s.main.latent[g, q]]
            n_active += np.int64(active)
            if active and value < smallest:
                smallest = np.float64(value)
        for c in range(d):
            s.error[0, r, c] = state.b_dec[i, c] - s.x[r, c]
        if P == 1:
            row = s.error[0]
            _add_weighted(state.W_dec, i, s.main, g, begin, end, row, r)
            total = np.float32(0.0)
            for c in range(d):
                total += s.error[0, r, c] * s.error[0, r, c]
            squared += total
        else:
            s.group[:] = np.float32(0.0)
            for q in range(begin, end):
                j, v = s.main.latent[g, q], s.main.value[g, q]
                p = _prefix_of(prefixes, j)
                for c in range(d):
                    s.group[p, c] += v * state.W_dec[i, j, c]
            for p in range(P):
                total = np.float32(0.0)
                for c in range(d):
                    before = s.error[0, r, c] if p == 0 else s.error[p - 1, r, c]
                    value = before + s.group[p, c]
                    s.error[p, r, c] = value
                    total += value * value
                squared += total
            # a latent of group p is in the reconstructions of prefixes p … P − 1
            for p in range(P - 2, -1, -1):
                for c in range(d):
                    s.error[p, r, c] += s.error[p + 1, r, c]
        for q in range(begin, end):
            j = s.main.latent[g, q]
            p = _prefix_of(prefixes, j) if P > 1 else 0
            to_value = scale * _dot_row(state.W_dec, i, j, s.error, p, r)
            if threshold:
                theta = s.edge[g, j] + half
                if abs(s.main.gradient[q] - theta) < half:
                    # rectangle kernel of width ε (arXiv 2407.14435, eqs. 11 and 12)
                    slope = (theta * to_value + pen) / (np.float32(2.0) * half)
                    s.g_threshold[j] -= slope * theta
            else:
                to_value += pen * s.norms[j]
            if s.main.value[g, q] <= np.float32(0.0):
                to_value = np.float32(0.0)
            s.main.gradient[q] = to_value
    return squared / (d * B * P), cost / B, n_active, smallest


@_jit
def _prefix_of(prefixes: I64, j: int) -> int:
    p = 0
    while j >= prefixes[p]:
        p += 1
    return p


@_jit
def _residual_variance(s: Scratch) -> float:
    """Mean over rows of ‖r − r̄‖² of the residual r = x − x̂."""
    P, B, d = s.error.shape
    squared = 0.0
    mean = np.zeros(d, np.float64)
    for r in range(B):
        total = np.float32(0.0)
        for c in range(d):
            value = s.error[P - 1, r, c]
            total += value * value
            mean[c] += value
        squared += total
    for c in range(d):
        squared -= mean[c] * mean[c] / B
    return squared / B


@_jit
def _auxk(state: State, s: Scratch, i: int, g: int) -> float:
    """AuxK (Gao et al., arXiv 2406.04093, §2.3): dead latents reconstruct the residual.

    Returns the mean squared error per row; gradients stay unscaled.
    """
    P, B, d = s.error.shape
    squared = 0.0
    for r in range(B):
        begin, end = s.aux.start[g, r], s.aux.start[g, r + 1]
        for c in range(d):
            s.aux_error[r, c] = s.error[P - 1, r, c]
        _add_weighted(state.W_dec, i, s.aux, g, begin, end, s.aux_error, r)
        total = np.float32(0.0)
        for c in range(d):
            total += s.aux_error[r, c] * s.aux_error[r, c]
        squared += total
        for q in range(begin, end):
            j = s.aux.latent[g, q]
            dot = np.float32(0.0)
            for c in range(d):
                dot += state.W_dec[i, j, c] * s.aux_error[r, c]
            s.aux.gradient[q] = dot
    return squared / B


@_jit
def _order(codes: Codes, g: int, B: int, F: int, out: Ordered) -> None:
    """Sort entries by latent, rows ascending within each: a fixed order of summation."""
    for j in range(F + 1):
        out.start[j] = 0
    n = codes.start[g, B]
    for q in range(n):
        out.start[codes.latent[g, q] + 1] += 1
    for j in range(F):
        out.start[j + 1] += out.start[j]
    for r in range(B):
        for q in range(codes.start[g, r], codes.start[g, r + 1]):
            j = codes.latent[g, q]
            at = out.start[j]
            out.row[at] = r
            out.value[at] = codes.value[g, q]
            out.gradient[at] = codes.gradient[q]
            out.start[j] = at + 1
    for j in range(F, 0, -1):
        out.start[j] = out.start[j - 1]
    out.start[0] = 0


@_jit
def _gather_latent(
    entries: Ordered, j: int, error: F32, x: F32, g_dec: F32, g_enc: F32, slot: int
) -> None:
    """``g_dec += Σ value · error[row]`` and ``g_enc += Σ gradient · x[row]`` over its entries."""
    d = x.shape[1]
    q, end = entries.start[j], entries.start[j + 1]
    while q + 4 <= end:
        r0, r1 = entries.row[q], entries.row[q + 1]
        r2, r3 = entries.row[q + 2], entries.row[q + 3]
        v0, v1 = entries.value[q], entries.value[q + 1]
        v2, v3 = entries.value[q + 2], entries.value[q + 3]
        for c in range(d):
            g_dec[slot, c] += (
                v0 * error[r0, c] + v1 * error[r1, c] + v2 * error[r2, c] + v3 * error[r3, c]
            )
        v0, v1 = entries.gradient[q], entries.gradient[q + 1]
        v2, v3 = entries.gradient[q + 2], entries.gradient[q + 3]
        for c in range(d):
            g_enc[slot, c] += v0 * x[r0, c] + v1 * x[r1, c] + v2 * x[r2, c] + v3 * x[r3, c]
        q += 4
    while q < end:
        r, v, w = entries.row[q], entries.value[q], entries.gradient[q]
        for c in range(d):
            g_dec[slot, c] += v * error[r, c]
            g_enc[slot, c] += w * x[r, c]
        q += 1


@_jit
def _gradients(
    state: State,
    settings: Settings,
    s: Scratch,
    i: int,
    lo: int,
    hi: int,
    penalty: float,
    aux_scale: float,
    dense: bool,
    with_aux: bool,
    with_ghost: bool,
) -> None:
    """Gradients of latents ``lo … hi − 1`` into rows ``0 …`` of ``s.g_enc`` and ``s.g_dec``."""
    B, d = s.x.shape
    P = len(settings.prefixes)
    scale = np.float32(2.0 / (d * B * P))
    pen = np.float32(penalty / (d * B)) if settings.selection != THRESHOLD else np.float32(0.0)
    aux = np.float32(aux_scale)
    for j in range(lo, hi):
        slot = j - lo
        if dense:
            total = s.dense_sum[j]
            for c in range(d):
                s.g_dec[slot, c] = s.dense_dec[j, c]
                s.g_enc[slot, c] = s.dense_enc[j, c]
        else:
            p = _prefix_of(settings.prefixes, j) if P > 1 else 0
            for c in range(d):
                s.g_dec[slot, c] = np.float32(0.0)
                s.g_enc[slot, c] = np.float32(0.0)
            _gather_latent(s.ordered, j, s.error[p], s.x, s.g_dec, s.g_enc, slot)
            total, bias, fired = np.float32(0.0), np.float32(0.0), 0
            for q in range(s.ordered.start[j], s.ordered.start[j + 1]):
                total += s.ordered.value[q]
                bias += s.ordered.gradient[q]
                fired += np.int64(s.ordered.value[q] > np.float32(0.0))
            s.g_b[j] = bias
            s.fired[j] = fired
        # the penalty's own gradient for the decoder: λ·Σ f · W / ‖W‖
        along = pen * total / max(s.norms[j], TINY)
        for c in range(d):
            s.g_dec[slot, c] = scale * s.g_dec[slot, c] + along * state.W_dec[i, j, c]
        if with_aux and s.aux_ordered.start[j + 1] > s.aux_ordered.start[j]:
            bias = np.float32(0.0)
            for q in range(s.aux_ordered.start[j], s.aux_ordered.start[j + 1]):
                s.aux_ordered.value[q] *= aux
                s.aux_ordered.gradient[q] *= aux
                bias += s.aux_ordered.gradient[q]
            _gather_latent(s.aux_ordered, j, s.aux_error, s.x, s.g_dec, s.g_enc, slot)
            s.g_b[j] += bias
        if with_ghost and s.dead_slot[j] >= 0:
            at = s.dead_slot[j]
            s.g_b[j] += s.ghost_b[at]
            for c in range(d):
                s.g_dec[slot, c] += s.ghost_dec[at, c]
                s.g_enc[slot, c] += s.ghost_enc[at, c]
        for c in range(d):
            # pre-activations are of x − b_dec, the sums above of x
            s.g_enc[slot, c] -= s.g_b[j] * state.b_dec[i, c]
            s.g_b_dec[c] -= s.g_b[j] * state.W_enc[i, j, c]
        if settings.unit_norm:
            dot = np.float32(0.0)
            for c in range(d):
                dot += s.g_dec[slot, c] * state.W_dec[i, j, c]
            for c in range(d):
                s.g_dec[slot, c] -= dot * state.W_dec[i, j, c]


@_jit
def _ghost(state: State, settings: Settings, s: Scratch, i: int, g: int, n_dead: int) -> float:
    """Ghost gradients (Anthropic, January 2024): dead latents through exp(pre).

    Their output, scaled to half the residual's norm, is compared with the residual. Fills
    ``s.ghost_*``; gives the mean squared error per row over the residual's variance.
    """
    P, B, d = s.error.shape
    W_enc = np.empty((n_dead, d), np.float32)
    W_dec = np.empty((n_dead, d), np.float32)
    for q in range(n_dead):
        W_enc[q] = state.W_enc[i, s.dead[g, q]]
        W_dec[q] = state.W_dec[i, s.dead[g, q]]
    code = np.dot(s.x, W_enc.T)
    for r in range(B):
        for q in range(n_dead):
            code[r, q] = np.float32(math.exp(code[r, q] + s.bias[g, s.dead[g, q]]))
    guess = np.dot(code, W_dec)
    variance = _residual_variance(s)
    squared = 0.0
    if variance > 0:
        factor = np.float32(2.0 * settings.aux_coefficient / (B * variance))
    else:
        factor = np.float32(0.0)
    for r in range(B):
        residual, size, total = np.float32(0.0), np.float32(0.0), np.float32(0.0)
        for c in range(d):
            residual += s.error[P - 1, r, c] * s.error[P - 1, r, c]
            size += guess[r, c] * guess[r, c]
        ratio = np.float32(0.5) * math.sqrt(residual) / max(math.sqrt(size), TINY)
        for c in range(d):
            value = ratio * guess[r, c] + s.error[P - 1, r, c]
            total += value * value
            guess[r, c] = factor * ratio * value
        squared += total
    s.ghost_dec[:n_dead] = np.dot(code.T, guess)
    to_pre = np.dot(guess, W_dec.T)
    for q in range(n_dead):
        s.ghost_b[q] = np.float32(0.0)
    for r in range(B):
        for q in range(n_dead):
            to_pre[r, q] *= code[r, q]
            s.ghost_b[q] += to_pre[r, q]
    s.ghost_enc[:n_dead] = np.dot(to_pre.T, s.x)
    return squared / B / variance if variance > 0 else 0.0


@_jit
def _dense_pass(
    state: State,
    settings: Settings,
    s: Scratch,
    i: int,
    g: int,
    penalty: float,
    n_dead: int,
) -> tuple[float, float, int]:
    """Run relu and jumprelu through dense products, block by block, to the same results.

    Fills ``s.error``, ``s.dense_*``, ``s.g_b``, ``s.fired``, ``s.g_threshold`` and ``s.aux``.
    """
    B, d = s.x.shape
    F = state.W_enc.shape[1]
    threshold = settings.selection == THRESHOLD
    scale = np.float32(2.0 / (d * B))
    pen = np.float32(penalty / (d * B))
    half = np.float32(0.5 * settings.bandwidth[i])
    W_enc_T, W_dec = state.W_enc[i].T, state.W_dec[i]
    squared, cost, n_active, aux_count = 0.0, 0.0, 0, 0
    dense_enc, dense_dec = s.dense_enc, s.dense_dec
    dense_enc[:] = np.float32(0.0)
    dense_dec[:] = np.float32(0.0)
    for j in range(F):
        s.dense_sum[j] = np.float32(0.0)
        s.g_b[j] = np.float32(0.0)
        s.fired[j] = 0
    for r0 in range(0, B, ROW_BLOCK):
        rows = min(ROW_BLOCK, B - r0)
        x = s.x[r0 : r0 + rows]
        pre = s.pre[: rows * F].reshape(rows, F)
        f = s.dense_f[: rows * F].reshape(rows, F)
        np.dot(x, W_enc_T, pre)
        for r in range(rows):
            for j in range(F):
                pre[r, j] += s.bias[g, j]
            if settings.method == AUXK and n_dead > 0:
                s.aux.start[g, r0 + r] = aux_count
                aux_count = _collect_dead(s, g, r * F, n_dead, settings.k_aux, aux_count)
            for j in range(F):
                edge = s.edge[g, j] + half if threshold else np.float32(0.0)
                value = pre[r, j] if pre[r, j] > edge else np.float32(0.0)
                f[r, j] = value
                s.dense_sum[j] += value
                s.fired[j] += np.int64(value > np.float32(0.0))
        error = np.dot(f, W_dec)
        for r in range(rows):
            total, paid = np.float32(0.0), np.float32(0.0)
            for c in range(d):
                value = error[r, c] + state.b_dec[i, c] - x[r, c]
                error[r, c] = value
                s.error[0, r0 + r, c] = value
                total += value * value
            active = np.int32(0)
            for j in range(F):
                active += np.int32(f[r, j] > np.float32(0.0))
                paid += f[r, j] * s.norms[j]
            squared += total
            n_active += np.int64(active)
            cost += np.float64(active) if threshold else np.float64(paid)
        dense_dec += np.dot(f.T, error)
        if threshold:
            # f's memory is needed for the gradient, pre says what is active
            np.dot(error, W_dec.T, f)
            for r in range(rows):
                for j in range(F):
                    theta = s.edge[g, j] + half
                    to_value = scale * f[r, j]
                    if abs(pre[r, j] - theta) < half:
                        slope = (theta * to_value + pen) / (np.float32(2.0) * half)
                        s.g_threshold[j] -= slope * theta
                    to_value = to_value if pre[r, j] > theta else np.float32(0.0)
                    f[r, j] = to_value
                    s.g_b[j] += to_value
        else:
            np.dot(error, W_dec.T, f)
            for r in range(rows):
                for j in range(F):
                    to_value = scale * f[r, j] + pen * s.norms[j]
                    to_value = to_value if pre[r, j] > np.float32(0.0) else np.float32(0.0)
                    f[r, j] = to_value
                    s.g_b[j] += to_value
        dense_enc += np.dot(f.T, x)
    s.aux.start[g, B] = aux_count
    return squared / (d * B), cost / B, n_active


@_jit
def _adam(
    parameter: F32,
    m: F32,
    v: F32,
    i: int,
    j: int,
    g: F32,
    slot: int,
    factor: float,
    a: float,
    b: float,
    settings: Settings,
    decay: float,
) -> None:
    """One row's Adam update: ``p −= a·m / (√v·b + ε) + decay·p``, bias corrections in a and b."""
    beta1, beta2 = np.float32(settings.beta1), np.float32(settings.beta2)
    rest1, rest2 = np.float32(1 - settings.beta1), np.float32(1 - settings.beta2)
    a32, b32, f32 = np.float32(a), np.float32(b), np.float32(factor)
    epsilon, keep = np.float32(settings.epsilon), np.float32(1 - decay)
    for c in range(parameter.shape[2]):
        gradient = f32 * g[slot, c]
        first = beta1 * m[i, j, c] + rest1 * gradient
        second = beta2 * v[i, j, c] + rest2 * gradient * gradient
        first = np.float32(0.0) if abs(first) < TINY else first
        second = np.float32(0.0) if second < TINY else second
        m[i, j, c] = first
        v[i, j, c] = second
        parameter[i, j, c] = keep * parameter[i, j, c] - a32 * first / (
            np.sqrt(second) * b32 + epsilon
        )


@_jit
def _adam_vector(
    parameter: F32,
    m: F32,
    v: F32,
    i: int,
    g: F32,
    factor: float,
    a: float,
    b: float,
    settings: Settings,
) -> None:
    beta1, beta2 = np.float32(settings.beta1), np.float32(settings.beta2)
    rest1, rest2 = np.float32(1 - settings.beta1), np.float32(1 - settings.beta2)
    a32, b32, f32 = np.float32(a), np.float32(b), np.float32(factor)
    epsilon = np.float32(settings.epsilon)
    for j in range(parameter.shape[1]):
        gradient = f32 * g[j]
        first = beta1 * m[i, j] + rest1 * gradient
        second = beta2 * v[i, j] + rest2 * gradient * gradient
        first = np.float32(0.0) if abs(first) < TINY else first
        second = np.float32(0.0) if second < TINY else second
        m[i, j] = first
        v[i, j] = second
        parameter[i, j] -= a32 * first / (np.sqrt(second) * b32 + epsilon)


@_jit
def _update_latents(
    state: State,
    settings: Settings,
    s: Scratch,
    i: int,
    lo: int,
    hi: int,
    factor: float,
    a: float,
    b: float,
    rate: float,
) -> None:
    d = s.x.shape[1]
    decay = rate * settings.weight_decay
    for j in range(lo, hi):
        slot = j - lo
        _adam(
            state.W_enc,
            state.m_W_enc,
            state.v_W_enc,
            i,
            j,
            s.g_enc,
            slot,
            factor,
            a,
            b,
            settings,
            decay,
        )
        _adam(
            state.W_dec,
            state.m_W_dec,
            state.v_W_dec,
            i,
            j,
            s.g_dec,
            slot,
            factor,
            a,
            b,
            settings,
            0.0,
        )
        if settings.unit_norm:
            total = np.float32(0.0)
            for c in range(d):
                total += state.W_dec[i, j, c] * state.W_dec[i, j, c]
            inverse = np.float32(1.0) / max(np.sqrt(total), TINY)
            for c in range(d):
                state.W_dec[i, j, c] *= inverse


@_jit
def _squares(values: F32, n: int) -> float:
    total = 0.0
    for q in range(n):
        row = np.float32(0.0)
        for c in range(values.shape[1]):
            row += values[q, c] * values[q, c]
        total += row
    return total


@_jit
def run_team(
    state: State,
    settings: Settings,
    s: Scratch,
    rows: F32,
    batches: I64,
    i0: int,
    i1: int,
    first_step: int,
    learning_rate: F64,
    penalty: F64,
    k: I64,
    sums: F64,
) -> None:
    """Advance SAEs ``i0 … i1 − 1``, which share their batches, over the steps of ``batches``.

    Parameters
    ----------
    state, settings, s
        The bank, what is constant, and this thread's working memory.
    rows
        Scaled training rows ``[n, d]``.
    batches
        Row numbers ``[n_steps, B]``.
    i0, i1
        The team.
    first_step
        Steps done before, for Adam's bias corrections.
    learning_rate, penalty, k
        Settings ``[n_steps, N]``.
    sums
        ``[4, N]``: loss, reconstruction term, auxiliary loss and L0, added up over the steps.
        A SAE whose loss is not finite gets ``stopped_at`` and is left as it was before the step.
    """
    n_steps, B = batches.shape
    G, F, d = i1 - i0, state.W_enc.shape[1], state.W_enc.shape[2]
    P = len(settings.prefixes)
    n_dead = np.zeros(G, np.int64)
    dense = np.zeros(G, np.int64)
    block = F if settings.clip > 0 else min(F, LATENT_BLOCK)
    for t in range(n_steps):
        step = first_step + t
        for r in range(B):
            at = batches[t, r]
            for c in range(d):
                s.x[r, c] = rows[at, c]
        for g in range(G):
            dense[g] = 0
            n_dead[g] = 0
            if settings.method != NONE:
                for j in range(F):
                    s.dead[g, n_dead[g]] = j
                    n_dead[g] += np.int64(state.since_fired[i0 + g, j] >= settings.dead_rows)
        _encode_team(state, settings, s, i0, i1, k[t, i0:i1], n_dead, dense)
        b = 1.0 / math.sqrt(1.0 - settings.beta2 ** (step + 1))
        for g in range(G):
            i = i0 + g
            if state.stopped_at[i] >= 0:
                continue
            for j in range(F):
                total = np.float32(0.0)
                for c in range(d):
                    total += state.W_dec[i, j, c] * state.W_dec[i, j, c]
                s.norms[j] = np.sqrt(total)
                s.g_threshold[j] = np.float32(0.0)
            smallest = np.inf
            if dense[g] == 1:
                reconstruction, cost, n_active = _dense_pass(
                    state, settings, s, i, g, penalty[t, i], n_dead[g]
                )
            else:
                reconstruction, cost, n_active, smallest = _reconstruct(
                    state, settings, s, i, g, penalty[t, i]
                )
            auxiliary, aux_scale = 0.0, 0.0
            with_aux = settings.method == AUXK and n_dead[g] > 0
            with_ghost = settings.method == GHOST and n_dead[g] > 0
            if with_aux:
                variance = _residual_variance(s)
                auxiliary = _auxk(state, s, i, g)
                if variance > 0:
                    auxiliary /= variance
                    aux_scale = 2.0 * settings.aux_coefficient / (B * variance)
                else:
                    auxiliary = 0.0
                _order(s.aux, g, B, F, s.aux_ordered)
            if with_ghost:
                for j in range(F):
                    s.dead_slot[j] = -1
                for q in range(n_dead[g]):
                    s.dead_slot[s.dead[g, q]] = q
                auxiliary = _ghost(state, settings, s, i, g, n_dead[g])
            loss = reconstruction + penalty[t, i] * cost / d
            loss += settings.aux_coefficient * auxiliary
            if not math.isfinite(loss):
                state.stopped_at[i] = step
                continue
            sums[0, i] += loss
            sums[1, i] += reconstruction
            sums[2, i] += auxiliary
            sums[3, i] += n_active / B
            if dense[g] == 0:
                _order(s.main, g, B, F, s.ordered)
            scale = np.float32(2.0 / (d * B * P))
            for c in range(d):
                s.g_b_dec[c] = np.float32(0.0)
            for r in range(B):
                for c in range(d):
                    s.g_b_dec[c] += s.error[0, r, c]
            for c in range(d):
                s.g_b_dec[c] *= scale
            rate = learning_rate[t, i]
            a = rate / (1.0 - settings.beta1 ** (step + 1))
            factor = 1.0
            for lo in range(0, F, block):
                hi = min(lo + block, F)
                _gradients(
                    state,
                    settings,
                    s,
                    i,
                    lo,
                    hi,
                    penalty[t, i],
                    aux_scale,
                    dense[g] == 1,
                    with_aux,
                    with_ghost,
                )
                if settings.clip > 0:
                    total64 = _squares(s.g_enc, F) + _squares(s.g_dec, F)
                    for j in range(F):
                        total64 += s.g_b[j] * s.g_b[j] + s.g_threshold[j] * s.g_threshold[j]
                    for c in range(d):
                        total64 += s.g_b_dec[c] * s.g_b_dec[c]
                    factor = min(1.0, settings.clip / max(math.sqrt(total64), 1e-30))
                _update_latents(state, settings, s, i, lo, hi, factor, a, b, rate)
            _adam_vector(
                state.b_enc, state.m_b_enc, state.v_b_enc, i, s.g_b, factor, a, b, settings
            )
            _adam_vector(
                state.b_dec, state.m_b_dec, state.v_b_dec, i, s.g_b_dec, factor, a, b, settings
            )
            if settings.selection == THRESHOLD:
                _adam_vector(
                    state.log_threshold,
                    state.m_log_threshold,
                    state.v_log_threshold,
                    i,
                    s.g_threshold,
                    factor,
                    a,
                    b,
                    settings,
                )
            for j in range(F):
                state.since_fired[i, j] = 0 if s.fired[j] > 0 else state.since_fired[i, j] + B
            if settings.selection == BATCH and smallest < np.inf:
                old = state.running_threshold[i]
                mixed = settings.threshold_beta * old + (1 - settings.threshold_beta) * smallest
                state.running_threshold[i] = smallest if old < 0 else mixed
