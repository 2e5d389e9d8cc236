"""Working memory of a thread of the sparse engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from husai.sae.kernels.types import F32, BlockMemory, Codes, LatentOrder


class Block(NamedTuple):
    """Rows whose pre-activations are held at once: views that each product would make anew."""

    first: int
    rows: int
    x: torch.Tensor
    x_T: torch.Tensor
    pre: torch.Tensor
    """``[rows, F]``."""
    pre_T: torch.Tensor
    """The same memory as ``[F, rows]``."""


def blocks_of_rows(
    x: torch.Tensor, pre: torch.Tensor, d_sae: int, most: int, first_rows: int
) -> list[Block]:
    """Cut a batch ``x [B, d]`` into blocks of at most ``most`` rows, which take turns in ``pre``.

    The first has at most ``first_rows`` rows, unless that is 0.
    """
    blocks, first, n = [], 0, min(first_rows or most, most, len(x))
    while n:
        rows, memory = x[first : first + n], pre[: n * d_sae]
        by_row, by_latent = memory.view(n, d_sae), memory.view(d_sae, n)
        blocks.append(Block(first, n, rows, rows.T, by_row, by_latent))
        first += n
        n = min(most, len(x) - first)
    return blocks


def empty_codes(batch_size: int, d_sae: int, capacity: int) -> Codes:
    """Memory for ``capacity`` active latents of a batch."""
    value = np.empty(capacity, np.float32)
    order = LatentOrder(
        start=np.zeros(d_sae + 1, np.int64),
        row=np.empty(capacity, np.int32),
        value=np.empty(capacity, np.float32),
        gradient=np.empty(capacity, np.float32),
    )
    return Codes(
        start=np.zeros(batch_size + 1, np.int64),
        latent=np.empty(capacity, np.int32),
        value=value,
        bits=value.view(np.int32),
        gradient=np.empty(capacity, np.float32),
        order=order,
    )


def block_memory(pre: F32, d_sae: int) -> BlockMemory:
    """Memory for the selection in a block whose pre-activations are ``pre [rows · d_sae]``."""
    chunk_max = np.empty(d_sae + 1, np.float32)
    return BlockMemory(
        pre=pre,
        bits=pre.view(np.int32),
        chunk_max=chunk_max,
        chunk_bits=chunk_max.view(np.int32),
        chosen=np.empty(d_sae + 1, np.int32),
        candidate_bits=np.empty(d_sae + 1, np.int32),
        candidate=np.empty(d_sae + 1, np.int32),
        state=np.zeros(4, np.int64),
    )
