"""Exact full-batch training of the small SAEs of Song et al. (arXiv 2505.20254) on a CPU.

Their loss is not the project's: L1 is not weighted by the decoder's norm, so that a free decoder
can evade it by growing, and Standard SAEs start at norm 0.1 with random encoder biases. Both are
kept here, because the printed numbers depend on them:

    L = mean((x − x̂)²) + c · mean_rows Σ_i f_i,    f = TopK or ReLU of W_enc (x − b_dec) + b_enc

The cost is 30,000 passes over 50,000 rows. Three facts make a step cheap without changing it.

1. If a row's set of active latents is known, loss and gradient are polynomials in the weights
   whose coefficients are sums over rows: with z = (x, 1) and T_ij = Σ z zᵀ over the rows where i
   and j are both active, every sum that a gradient needs is T_ij times weights. The rows themselves
   are not needed.
2. An active set stays the same until the weights have moved far enough to change it: with S the
   path length of the encoder rows, |Δpre_i| ≤ S‖x‖ + (path of the biases). This is compared with
   the gap between the k-th and the next pre-activation, and with zero. Only rows whose gap is used
   up are encoded again, and only rows whose set has changed update T.
3. In a row that is encoded again, latents far below the k-th are skipped: the same bound limits
   their pre-activations. A row keeps its strongest latents as candidates and the pre-activation of
   the next one; while that is below the strongest inactive candidate, only candidates are encoded.

The result is the full-batch step up to rounding; tests/consistency/test_calibration_song.py
compares it with torch autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass
class SmallSAE:
    """Parameters and Adam's state of one SAE, float32; rows are features."""

    W_enc: Floats
    b_enc: Floats
    W_dec: Floats
    b_dec: Floats
    moments: list[Floats]
    step: int = 0

    def parameters(self) -> list[Floats]:
        """W_enc ``[d_sae, d_in]``, b_enc, W_dec ``[d_sae, d_in]``, b_dec."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


def initial_sae(architecture: str, d_in: int, d_sae: int, seed: int) -> SmallSAE:
    """Weights of the released code, drawn from torch's generator in its order."""
    torch.manual_seed(seed)
    if architecture == "topk":
        decoder = torch.nn.Linear(d_sae, d_in, bias=False).weight.detach()
        rows = (decoder / decoder.norm(dim=0)).T
        bias = torch.zeros(d_sae)
    else:
        encoder = torch.nn.Linear(d_in, d_sae)
        torch.nn.Linear(d_sae, d_in, bias=False)
        w = torch.randn(d_in, d_sae)
        rows = (0.1 * w / w.norm(dim=0)).T
        bias = encoder.bias.detach()
    W = np.ascontiguousarray(rows.numpy(), dtype=np.float32)
    parameters = (W.copy(), bias.numpy().copy(), W.copy(), np.zeros(d_in, np.float32))
    moments = [np.zeros_like(p) for p in parameters for _ in range(2)]
    return SmallSAE(*parameters, moments)


def train(
    sae: SmallSAE,
    rows: Floats,
    k: int | None,
    steps: int,
    learning_rate: float = 1e-4,
    l1: float = 1e-2,
) -> float:
    """Advance an SAE by full-batch Adam steps, in place.

    Parameters
    ----------
    sae
        Its state.
    rows
        All rows, ``[n, d_in]``.
    k
        Active latents of a TopK SAE; None for Standard.
    steps
        Steps to take.
    learning_rate, l1
        As published.

    Returns
    -------
    float
        Share of the rows encoded anew in a step, on average: what the bounds saved.
    """
    d_sae, d_in = sae.W_dec.shape
    n = len(rows)
    # Rounding of the running sums stays below that of a float32 pass over the rows; the wide
    # ones are bound by memory
    dtype = np.float64 if d_sae <= 64 else np.float32
    # block [i, j] with i ≤ j; the others are equal to those
    T = np.zeros((d_sae, d_sae, d_in + 1, d_in + 1), dtype)
    z = np.concatenate([rows, np.ones((n, 1), np.float32)], axis=1)
    # the first step finds every row stale, and its candidates unknown
    state = _RowState(
        on=np.zeros((n, d_sae), np.bool_),
        limit=np.full(n, -1.0),
        candidates=np.zeros((n, _n_candidates(d_sae, k)), np.int16),
        ceiling=np.full(n, np.inf),
    )
    size = np.linalg.norm(rows, axis=1)
    total = rows.sum(axis=0, dtype=np.float64)
    refresh, sums = _refresh(d_in, d_sae, k or 0), _sums(d_in, d_sae)
    path_W = path_b = 0.0
    encoded = 0
    for _ in range(steps):
        beta = sae.b_enc - sae.W_enc @ sae.b_dec
        encoded += refresh(z, size, sae.W_enc, beta, *state, path_W, path_b, T)
        before = sae.W_enc.copy()
        _adam(sae, _gradients(sae, beta, T, total, n, l1, sums), learning_rate)
        path_W += float(np.linalg.norm(sae.W_enc - before, axis=1).max())
        path_b += float(np.abs(sae.b_enc - sae.W_enc @ sae.b_dec - beta).max())
    return encoded / (n * steps)


class _RowState(NamedTuple):
    """What is known of every row.

    Its active latents; the path at which they may change; its strongest latents; and how high
    the next one stood, less the path up to then.
    """

    on: NDArray[np.bool_]
    limit: NDArray[np.float64]
    candidates: NDArray[np.int16]
    ceiling: NDArray[np.float64]


def _n_candidates(d_sae: int, k: int | None) -> int:
    """How many latents of a row are kept in sight; all where few are not."""
    wanted = k + 8 if k else d_sae
    return d_sae if 2 * wanted > d_sae else wanted


def _gradients(
    sae: SmallSAE,
    beta: Floats,
    T: NDArray[Any],
    total: NDArray[np.float64],
    n: int,
    l1: float,
    sums: Callable[..., None],
) -> tuple[NDArray[Any], ...]:
    """Gradients of the loss from the co-active sums T ``[F, F, d + 1, d + 1]``, i ≤ j."""
    d_sae, d_in = sae.W_dec.shape
    D = sae.W_dec.astype(T.dtype)
    w = np.concatenate([sae.W_enc, beta[:, None]], axis=1).astype(T.dtype)
    # pull_i = Σ_j (d_i·d_j) T_ij w_j, overlap_ij = w_i·T_ij w_j
    pull, overlap = np.zeros_like(w), np.zeros((d_sae, d_sae), T.dtype)
    sums(T, w, D @ D.T, pull, overlap)
    own = T[np.arange(d_sae), np.arange(d_sae)]
    seen = own[:, :, d_in]  # Σ z over the rows where i is active
    toward = own[:, :, :d_in]  # Σ z xᵀ
    # Σ_b df_i z with df_i = (2/d) d_i·r + c and r = Σ_j f_j d_j + b_dec − x
    pull += (D @ sae.b_dec)[:, None] * seen - np.einsum("iab,ib->ia", toward, D)
    pull = pull * (2 / d_in) + l1 * seen
    # Σ_b f_i r
    push = overlap @ D + np.sum(w * seen, axis=1)[:, None] * sae.b_dec
    push -= np.einsum("iab,ia->ib", toward, w)
    rest = np.sum(w * seen, axis=1) @ D + n * sae.b_dec - total
    g_b_enc = pull[:, d_in] / n
    g_W_enc = pull[:, :d_in] / n - g_b_enc[:, None] * sae.b_dec
    g_b_dec = rest * (2 / (n * d_in)) - g_b_enc @ sae.W_enc
    return g_W_enc, g_b_enc, push * (2 / (n * d_in)), g_b_dec


@cache
def _sums(d: int, F: int) -> Callable[..., None]:
    """Kernel that reads every block of T once, for both of its latents."""

    @njit(fastmath=True, nogil=True)
    def sums(T, w, cosines, pull, overlap):  # type: ignore[no-untyped-def]
        to_i, to_j = np.empty(d + 1, T.dtype), np.empty(d + 1, T.dtype)
        for i in range(F):
            for j in range(i, F):
                # blocks are symmetric: a sum over rows is a sum over columns
                for a in range(d + 1):
                    to_i[a] = 0
                    to_j[a] = 0
                for b in range(d + 1):
                    wi, wj = w[i, b], w[j, b]
                    for a in range(d + 1):
                        to_i[a] += wj * T[i, j, b, a]
                        to_j[a] += wi * T[i, j, b, a]
                c = cosines[i, j]
                both = T.dtype.type(0)
                for a in range(d + 1):
                    pull[i, a] += c * to_i[a]
                    both += w[i, a] * to_i[a]
                if i != j:
                    for a in range(d + 1):
                        pull[j, a] += c * to_j[a]
                overlap[i, j] = both
                overlap[j, i] = both

    return sums  # type: ignore[no-any-return]


def _adam(sae: SmallSAE, gradients: tuple[NDArray[Any], ...], learning_rate: float) -> None:
    sae.step += 1
    for i, (parameter, gradient) in enumerate(zip(sae.parameters(), gradients, strict=True)):
        g = gradient.astype(np.float32)
        m, v = sae.moments[2 * i], sae.moments[2 * i + 1]
        m += np.float32(0.1) * (g - m)
        v += np.float32(0.001) * (g * g - v)
        corrected = np.sqrt(v / np.float32(1 - 0.999**sae.step)) + np.float32(1e-8)
        parameter -= np.float32(learning_rate / (1 - 0.9**sae.step)) * m / corrected


@cache
def _refresh(d: int, F: int, K: int) -> Callable[..., int]:
    """Kernel that encodes stale rows anew and keeps T; K = 0 is Standard."""
    C = _n_candidates(F, K or None)

    @njit(fastmath=True, nogil=True)
    def add(square, T, f, members, n_members, sign):  # type: ignore[no-untyped-def]
        """Add z zᵀ to the blocks of a latent with the members of a set."""
        for m in range(n_members):
            i, j = min(f, members[m]), max(f, members[m])
            # spelt out: an array expression would allocate one each time
            for a in range(d + 1):
                for b in range(d + 1):
                    T[i, j, a, b] += sign * square[a, b]

    @njit(fastmath=True, nogil=True)
    def refresh(  # type: ignore[no-untyped-def]
        z, size, W_enc, beta, on, limit, candidates, ceiling, path_W, path_b, T
    ):
        W_T = W_enc.T.copy()
        pre = np.empty(F, np.float32)
        best = np.empty(C + 1 if C < F else K + 1, np.float32)
        now = np.empty(F, np.bool_)
        members = np.empty(F, np.int64)
        square = np.empty((d + 1, d + 1), T.dtype)
        encoded = 0
        for b in range(z.shape[0]):
            moved = path_W * size[b] + path_b
            if moved < limit[b]:
                continue
            encoded += 1
            if C < F:
                # the K active ones come first among the candidates
                weakest, runner_up = np.float32(np.inf), np.float32(-np.inf)
                for c in range(C):
                    f = candidates[b, c]
                    p = beta[f]
                    for j in range(d):
                        p += z[b, j] * W_enc[f, j]
                    if c < K:
                        weakest = min(weakest, p)
                    else:
                        runner_up = max(runner_up, p)
                # no other latent can have passed the runner-up: the set stands
                if ceiling[b] + moved < runner_up < weakest and weakest > 0:
                    room = min(np.float32(0.5) * (weakest - runner_up), weakest)
                    limit[b] = moved + 0.998 * room - 1e-6
                    continue
            for f in range(F):
                pre[f] = beta[f]
            for j in range(d):
                zj = z[b, j]
                for f in range(F):
                    pre[f] += zj * W_T[j, f]
            if K:
                best[:] = -np.inf
                for f in range(F):
                    p = pre[f]
                    i = best.size - 1
                    if p > best[i]:
                        while i > 0 and p > best[i - 1]:
                            best[i] = best[i - 1]
                            i -= 1
                        best[i] = p
            if C < F:
                at, after = 0, K
                for f in range(F):
                    if pre[f] >= best[K - 1] and at < K:
                        candidates[b, at] = f
                        at += 1
                    elif pre[f] > best[C] and after < C:
                        candidates[b, after] = f
                        after += 1
                # equal ones may leave places empty: then nothing is to be relied on
                ceiling[b] = best[C] - moved if at == K and after == C else np.inf
            # how far pre-activations may move before the active set can change, and the set
            if K and best[K - 1] > 0:
                room = min(np.float32(0.5) * (best[K - 1] - best[K]), best[K - 1])
            else:
                # Standard, or fewer than k are positive: only a change of sign matters
                room = np.float32(np.inf)
                for f in range(F):
                    room = min(room, abs(pre[f]))
            least = max(best[K - 1], np.float32(0)) if K else np.float32(0)
            # a hair less, for rounding
            limit[b] = moved + 0.998 * room - 1e-6
            changed = False
            for f in range(F):
                now[f] = pre[f] >= least and pre[f] > 0
                if now[f] != on[b, f]:
                    changed = True
            if not changed:
                continue
            for i in range(d + 1):
                for j in range(d + 1):
                    square[i, j] = z[b, i] * z[b, j]
            n_members = 0
            for f in range(F):
                if on[b, f]:
                    members[n_members] = f
                    n_members += 1
            for f in range(F):
                if on[b, f] and not now[f]:
                    add(square, T, f, members, n_members, T.dtype.type(-1))
                    at = 0
                    for m in range(n_members):
                        if members[m] != f:
                            members[at] = members[m]
                            at += 1
                    n_members = at
            for f in range(F):
                if now[f] and not on[b, f]:
                    members[n_members] = f
                    n_members += 1
                    add(square, T, f, members, n_members, T.dtype.type(1))
                on[b, f] = now[f]
        return encoded

    return refresh  # type: ignore[no-any-return]
