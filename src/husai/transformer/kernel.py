"""Compiled loss and gradients of the one-layer model over all rows, for training on a CPU.

Between attention and the output everything but the ReLU is linear, so the products that do not
depend on the row are computed first:

- the MLP's input and the direct path to the logits read the residual stream through
  ``R = [W_in; W_U]``, and attention writes into it, so ``R W_O`` applied to each operand's value
  gives a table of what (operand, head) adds to the neurons and logits. A row is then a weighted
  sum of ``2 n_heads`` table rows instead of a product with ``W_O``, ``W_in`` and ``W_U``;
- the neurons reach the logits through ``W_U W_out``, one product instead of two.

The weights of a row's softmax sum to 1, so the share of the fixed positions becomes a constant, and
the tables hold differences from it. The function and its gradients stay the same, with about a
third of the arithmetic.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from husai.tasks.modular import Vocabulary
from husai.transformer.config import TransformerConfig
from husai.transformer.functional import attention_terms, has_functional_form

# rows per block: their neurons (block * d_mlp floats) should stay in the cache
_BLOCK_ROWS = 1024
_HEADS_AT_ONCE = 4

T = TypeVar("T")


def has_compiled_form(config: TransformerConfig, device: torch.device) -> bool:
    """Whether :func:`compiled_loss` can compute a model: CPU, ReLU, one layer, no normalisation."""
    return device.type == "cpu" and config.act_fn == "relu" and has_functional_form(config)


def compiled_loss(
    parameters: Mapping[str, Tensor],
    a: Tensor,
    b: Tensor,
    answers: Tensor,
    vocabulary: Vocabulary,
    config: TransformerConfig,
    threads: int | None = None,
) -> Tensor:
    """Mean cross-entropy at the answer position, differentiable once in the parameters.

    Parameters
    ----------
    parameters
        The model's float32 parameters on the CPU under the names of its ``state_dict``.
    a, b, answers
        int64 [n] each; fastest when sorted by ``a``.
    vocabulary, config
        The tokens and the model's shape.
    threads
        Threads that share the rows; None: torch's number. The work before and after the rows is
        small, and is faster on one thread: see :func:`torch_threads`.

    Returns
    -------
    Tensor
        The loss in nats, float64, from a float64 log-softmax.
    """
    terms = attention_terms(parameters, vocabulary, config.n_heads)
    block = "blocks.0."
    W_O = parameters[block + "attn.o.weight"]
    W_U = parameters["unembed.weight"]
    read = torch.cat([parameters[block + "mlp.in.weight"], W_U])  # [d_mlp + d_vocab, d_model]
    d_mlp = config.d_mlp

    # effect of each head's value on neurons and logits, [n_heads, d_head, features]
    through_heads = (read @ W_O).T.reshape(config.n_heads, -1, read.shape[0])
    padding = -config.n_heads % _HEADS_AT_ONCE
    tables = [
        F.pad(
            torch.einsum("phd,hdf->phf", value - terms.value_fixed, through_heads),
            (0, 0, 0, padding),
        )
        for value in (terms.value_a, terms.value_b)
    ]
    scores = [
        F.pad(score - terms.score_fixed, (0, padding)) for score in (terms.score_a, terms.score_b)
    ]
    resid_fixed = (
        terms.resid_pre + parameters[block + "attn.o.bias"] + W_O @ terms.value_fixed.flatten()
    )
    constant = torch.cat(
        [
            read[:d_mlp] @ resid_fixed + parameters[block + "mlp.in.bias"],
            W_U @ (resid_fixed + parameters[block + "mlp.out.bias"]),
        ]
    )
    neurons_to_logits = W_U @ parameters[block + "mlp.out.weight"]
    loss: Tensor = _RowsLoss.apply(  # type: ignore[no-untyped-call]
        *scores,
        *tables,
        constant,
        neurons_to_logits,
        a,
        b,
        answers,
        torch.get_num_threads() if threads is None else threads,
    )
    return loss


class _RowsLoss(torch.autograd.Function):
    """Loss over all rows from the tables; the gradients are computed with it, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        score_a: Tensor,
        score_b: Tensor,
        table_a: Tensor,
        table_b: Tensor,
        constant: Tensor,
        neurons_to_logits: Tensor,
        a: Tensor,
        b: Tensor,
        answers: Tensor,
        threads: int,
    ) -> Tensor:
        inputs = (score_a, score_b, table_a, table_b, constant)
        tables = tuple(t.detach().contiguous().numpy() for t in inputs)
        M = neurons_to_logits.detach()
        n = a.shape[0]
        bounds = [t * n // threads for t in range(threads + 1)]
        shares = [slice(*pair) for pair in itertools.pairwise(bounds)]
        # each thread has its own sums, so that the order of additions is fixed for a thread count
        parts = _in_threads(
            lambda rows: _share_of_rows(tables, M, a[rows], b[rows], answers[rows], n), shares
        )
        loss, *gradients = (sum(column[1:], start=column[0]) for column in zip(*parts, strict=True))
        ctx.save_for_backward(*gradients)
        return loss / n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        scale = float(grad_outputs[0])
        gradients = ctx.saved_tensors
        if scale != 1.0:
            gradients = tuple(scale * gradient for gradient in gradients)
        return (*gradients, None, None, None, None)


def _share_of_rows(
    tables: tuple[Any, ...], M: Tensor, a: Tensor, b: Tensor, answers: Tensor, n: int
) -> tuple[Tensor, ...]:
    """Compute the summed loss of some rows, and the gradients of the mean over ``n`` rows."""
    s_a, s_b, t_a, t_b, base = tables
    d_vocab, d_mlp = M.shape
    sums = [torch.zeros(t.shape) for t in tables]
    totals = [t.numpy() for t in sums]
    dM = torch.zeros_like(M)
    rows_a, rows_b = a.numpy(), b.numpy()

    size = min(a.shape[0], _BLOCK_ROWS)
    neurons = torch.empty((size, d_mlp))
    dneurons = torch.empty((size, d_mlp))
    logits = torch.empty((size, d_vocab))
    wide = torch.empty((size, d_vocab), dtype=torch.float64)
    pattern = np.empty((size, 2, s_a.shape[1]), np.float32)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, a.shape[0], size or 1):
        stop = min(start + size, a.shape[0])
        m = stop - start
        rows = (rows_a[start:stop], rows_b[start:stop], pattern)
        x, y, dx = neurons[:m], logits[:m], dneurons[:m]
        x_array, y_array = x.numpy(), y.numpy()
        _mix(s_a, s_b, t_a, t_b, base, *rows, x_array, y_array)
        y.addmm_(x, M.T)
        total += _loss_and_gradient(y, wide[:m], answers[start:stop], n)
        dM.addmm_(y.T, x)
        torch.mm(y, M, out=dx)
        _unmix(t_a, t_b, *rows, x_array, dx.numpy(), y_array, *totals)
    return total, *sums, dM


def _loss_and_gradient(logits: Tensor, wide: Tensor, answers: Tensor, n: int) -> Tensor:
    """Sum the losses of the rows; ``logits`` become the gradient of the mean over ``n`` rows.

    ``wide`` is a float64 buffer of the same shape, for the log-softmax.
    """
    wide.copy_(logits)
    wide -= wide.amax(1, keepdim=True)
    chosen = answers.unsqueeze(1)
    picked = wide.gather(1, chosen)
    partition = wide.exp_().sum(1, keepdim=True)
    loss = (partition.log() - picked).sum()
    wide /= partition
    wide.scatter_add_(1, chosen, picked.new_full((), -1.0).expand_as(picked))
    torch.mul(wide, 1.0 / n, out=wide)
    logits.copy_(wide)
    return loss


def _in_threads(work: Callable[[slice], T], shares: Sequence[slice]) -> list[T]:
    """Do every share of the work in a thread of its own, in which torch uses one thread.

    The threads wait for each other once per step. If torch split every operation instead, they
    would wait dozens of times.
    """
    if len(shares) == 1:
        return [work(shares[0])]
    pool = _pool(os.getpid())

    def alone(share: slice) -> T:
        with torch_threads(1), torch.no_grad():
            return work(share)

    others = [pool.submit(alone, share) for share in shares[1:]]
    return [alone(shares[0]), *(other.result() for other in others)]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the number of threads of torch's operations in the calling thread, inside the block.

    The number belongs to the calling thread, in OpenMP and in MKL alike.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the pool of a process: a forked child inherits the object but not its threads."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="husai-kernel")


# The loops below compute four heads at once, so that a row's features are loaded once for every
# four heads; the tables are padded with heads of zeros.


@numba.njit(nogil=True, fastmath=True, cache=True)
def _mix(
    score_a: Any,
    score_b: Any,
    table_a: Any,
    table_b: Any,
    base: Any,
    a: Any,
    b: Any,
    pattern: Any,
    neurons: Any,
    logits: Any,
) -> None:
    """Softmax over (a, b, fixed), then the weighted sum of table rows; ReLU on the neurons."""
    n_features = base.shape[0]
    d_mlp = neurons.shape[1]
    zero = np.float32(0)
    z = np.empty(n_features, np.float32)
    for i in range(a.shape[0]):
        for h in range(score_a.shape[1]):
            s_a, s_b = score_a[a[i], h], score_b[b[i], h]
            top = max(s_a, s_b, zero)
            e_a, e_b = math.exp(s_a - top), math.exp(s_b - top)
            partition = e_a + e_b + math.exp(-top)
            pattern[i, 0, h] = e_a / partition
            pattern[i, 1, h] = e_b / partition
        for f in range(n_features):
            z[f] = base[f]
        for h in range(0, score_a.shape[1], 4):
            u0, u1 = table_a[a[i], h], table_a[a[i], h + 1]
            u2, u3 = table_a[a[i], h + 2], table_a[a[i], h + 3]
            v0, v1 = table_b[b[i], h], table_b[b[i], h + 1]
            v2, v3 = table_b[b[i], h + 2], table_b[b[i], h + 3]
            p, q = pattern[i, 0, h : h + 4], pattern[i, 1, h : h + 4]
            p0, p1, p2, p3 = p[0], p[1], p[2], p[3]
            q0, q1, q2, q3 = q[0], q[1], q[2], q[3]
            for f in range(n_features):
                z[f] += (p0 * u0[f] + p1 * u1[f] + p2 * u2[f] + p3 * u3[f]) + (
                    q0 * v0[f] + q1 * v1[f] + q2 * v2[f] + q3 * v3[f]
                )
        for f in range(d_mlp):
            neurons[i, f] = z[f] if z[f] > zero else zero
        for f in range(n_features - d_mlp):
            logits[i, f] = z[d_mlp + f]


@numba.njit(nogil=True, fastmath=True, cache=True)
def _unmix(
    table_a: Any,
    table_b: Any,
    a: Any,
    b: Any,
    pattern: Any,
    neurons: Any,
    dneurons: Any,
    dlogits: Any,
    dscore_a: Any,
    dscore_b: Any,
    dtable_a: Any,
    dtable_b: Any,
    dbase: Any,
) -> None:
    """Compute the gradients of :func:`_mix` and add them to the given sums."""
    n_heads, n_features = table_a.shape[1:]
    d_mlp = neurons.shape[1]
    zero = np.float32(0)
    g = np.empty(n_features, np.float32)
    for i in range(a.shape[0]):
        for f in range(d_mlp):
            g[f] = dneurons[i, f] if neurons[i, f] > zero else zero
        for f in range(n_features - d_mlp):
            g[d_mlp + f] = dlogits[i, f]
        for f in range(n_features):
            dbase[f] += g[f]
        for h in range(0, n_heads, 4):
            u0, u1 = table_a[a[i], h], table_a[a[i], h + 1]
            u2, u3 = table_a[a[i], h + 2], table_a[a[i], h + 3]
            v0, v1 = table_b[b[i], h], table_b[b[i], h + 1]
            v2, v3 = table_b[b[i], h + 2], table_b[b[i], h + 3]
            m0 = m1 = m2 = m3 = k0 = k1 = k2 = k3 = zero
            for f in range(n_features):
                m0 += u0[f] * g[f]
                m1 += u1[f] * g[f]
                m2 += u2[f] * g[f]
                m3 += u3[f] * g[f]
                k0 += v0[f] * g[f]
                k1 += v1[f] * g[f]
                k2 += v2[f] * g[f]
                k3 += v3[f] * g[f]
            dp, dq = (m0, m1, m2, m3), (k0, k1, k2, k3)
            for j in range(4):
                w_a, w_b = pattern[i, 0, h + j], pattern[i, 1, h + j]
                # softmax over (a, b, fixed); the fixed positions' weight has no gradient
                mean = w_a * dp[j] + w_b * dq[j]
                dscore_a[a[i], h + j] += w_a * (dp[j] - mean)
                dscore_b[b[i], h + j] += w_b * (dq[j] - mean)
                du, dv = dtable_a[a[i], h + j], dtable_b[b[i], h + j]
                for f in range(n_features):
                    du[f] += w_a * g[f]
                for f in range(n_features):
                    dv[f] += w_b * g[f]
