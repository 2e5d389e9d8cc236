"""A step of relu or jumprelu by dense products, for batches with many active latents."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from husai.sae.kernels.dense import activate, finish_errors, gradients_to_pre
from husai.sae.kernels.types import (
    F32,
    AuxK,
    Batch,
    BlockMemory,
    Calls,
    Gradients,
    GradientSums,
    JumpReLU,
    Loss,
    Means,
    Parameters,
)

DENSE_ROWS = 512
"""Rows of a block: their errors stay in cache between the products that read them."""


class _Block(NamedTuple):
    """Rows that go through the products at once, and the memory of their results."""

    first: int
    rows: int
    x: torch.Tensor
    pre: torch.Tensor
    """``[F, rows]``."""
    f: torch.Tensor
    """Activations, later the gradients of the pre-activations ``[F, rows]``."""
    error: torch.Tensor
    """``[rows, d]``."""


class Products:
    """Five dense products a block of rows, and the kernels between them.

    Parameters
    ----------
    call
        Calls the kernels.
    x, error
        Rows of the batch and their errors ``[B, d]``.
    pre
        Memory for at least ``block_rows · d_sae`` numbers.
    d_sae, block_rows
        Latents; how many rows ``pre`` has room for.
    """

    def __init__(
        self,
        call: Calls,
        x: torch.Tensor,
        error: torch.Tensor,
        pre: torch.Tensor,
        d_sae: int,
        block_rows: int,
    ) -> None:
        self.call = call
        B, d = x.shape
        most = min(B, block_rows, DENSE_ROWS)
        f = torch.empty(most * d_sae)
        self.W_enc, self.W_dec = torch.empty(d_sae, d), torch.empty(d_sae, d)
        self.sums = GradientSums(
            f=f.numpy(),
            W_enc=self.W_enc.numpy(),
            W_dec=self.W_dec.numpy(),
            activations=np.empty(d_sae, np.float32),
        )
        self.blocks = []
        for first in range(0, B, most):
            n = min(most, B - first)
            here = slice(first, first + n)
            block_pre, block_f = (memory[: n * d_sae].view(d_sae, n) for memory in (pre, f))
            self.blocks.append(_Block(first, n, x[here], block_pre, block_f, error[here]))

    def reconstruct(
        self,
        weights: tuple[torch.Tensor, torch.Tensor],
        sae: Parameters,
        batch: Batch,
        bias: F32,
        loss: Loss,
        jump: JumpReLU,
        memory: BlockMemory,
        gradients: Gradients,
        auxk: AuxK,
    ) -> Means:
        """Select, reconstruct and add up gradients, block of rows by block.

        The same results as listing and reconstructing. Fills the batch's error, the sums, the
        gradients' ``b_enc``, ``b_dec`` and ``fired``, ``jump.gradient`` and the AuxK codes.
        ``weights`` are the encoder and the decoder as tensors.
        """
        call, sums = self.call, self.sums
        W_enc, W_dec = weights
        B, d = batch.x.shape
        squared = 0.0
        for block in self.blocks:
            first, rows = block.first, block.rows
            torch.mm(W_enc, block.x.T, out=block.pre)
            call(activate, first, rows, bias, jump, memory, sums, gradients, auxk)
            torch.mm(block.f.T, W_dec, out=block.error)
            squared += call(finish_errors, first, rows, sae.b_dec, batch, gradients)
            _add_product(self.W_dec, block.f, block.error, first)
            torch.mm(W_dec, block.error.T, out=block.f)
            call(gradients_to_pre, rows, B, d, loss, jump, memory, sums, gradients)
            _add_product(self.W_enc, block.f, block.x, first)
        n_active = int(gradients.fired.sum())
        cost = float(n_active)
        if jump.bandwidth == 0:
            cost = float(sums.activations @ loss.norms)
        return squared / (d * B), cost / B, n_active / B, math.inf


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: int) -> None:
    """``out = a · b`` for the first block of a batch, ``out += a · b`` for the others."""
    if first == 0:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(out, a, b, out=out)
