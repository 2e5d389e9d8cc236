"""AuxK on a CUDA device: dense products over the dead latents only."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DeadGradients(NamedTuple):
    """What AuxK adds to the gradients of dead latents, ``D`` of them at most an SAE."""

    place: torch.Tensor
    """Each latent's place among the dead, −1 for the live ones ``[n, F]`` int32."""
    W_enc: torch.Tensor
    """``[n, D, d]``"""
    W_dec: torch.Tensor
    """``[n, D, d]``"""
    b_enc: torch.Tensor
    """``[n, D]``"""


class Encoder(NamedTuple):
    """What AuxK needs of SAEs that share rows."""

    x: torch.Tensor
    """Rows ``[B, d]``."""
    W_enc: torch.Tensor
    """``[n, F, d]``"""
    bias: torch.Tensor
    """Bias of the encoder, centring included ``[n, F]``."""
    W_dec: torch.Tensor
    """``[n, F, d]``"""
    b_dec: torch.Tensor
    """``[n, d]``"""


def auxk(
    sae: Encoder, error: torch.Tensor, dead: torch.Tensor, most: int, k_aux: int, weight: float
) -> tuple[torch.Tensor, DeadGradients]:
    """AuxK (Gao et al., arXiv 2406.04093, §2.3): dead latents reconstruct the residual.

    Parameters
    ----------
    sae
        Rows and weights.
    error
        x̂ − x ``[n, B, d]``.
    dead
        ``[n, F]`` bool.
    most
        The largest number of dead latents of an SAE, above 0.
    k_aux
        Dead latents per row.
    weight
        Of the auxiliary loss.

    Returns
    -------
    auxiliary, gradients
        Squared error over the residual's variance ``[n]``, 0 where no latent is dead; and its
        gradients times ``weight``.
    """
    n, B, d = error.shape
    number = dead.sum(1)
    at = torch.argsort(dead.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    slot = torch.arange(most, device=at.device).expand_as(at)
    valid = slot < number[:, None]
    place = torch.full(dead.shape, -1, dtype=torch.int32, device=at.device)
    place.scatter_(1, at, torch.where(valid, slot, -1).to(torch.int32))
    rows = at[:, :, None].expand(-1, -1, d)
    W_enc, W_dec = sae.W_enc.gather(1, rows), sae.W_dec.gather(1, rows)
    x = sae.x.expand(n, -1, -1)
    code = torch.baddbmm(sae.bias.gather(1, at)[:, None, :], x, W_enc.transpose(1, 2))
    code = torch.where(valid[:, None, :], code, -torch.inf).relu_()
    if most > k_aux:
        top = code.topk(k_aux, dim=2)
        code = torch.zeros_like(code).scatter_(2, top.indices, top.values)
    off = torch.baddbmm(error, code, W_dec)
    squared = off.square().sum(2).mean(1)
    variance = (error - error.mean(1, keepdim=True)).square().sum(2).mean(1)
    ratio = squared / variance
    counts = (number > 0) & ratio.isfinite()
    factor = torch.where(counts, 2 * weight / (B * variance), 0.0)
    to_guess = factor[:, None, None] * off
    to_code = torch.bmm(to_guess, W_dec.transpose(1, 2)) * (code > 0)
    to_bias = to_code.sum(1)
    to_W_enc = torch.bmm(to_code.transpose(1, 2), x) - to_bias[:, :, None] * sae.b_dec[:, None, :]
    to_W_dec = torch.bmm(code.transpose(1, 2), to_guess)
    return torch.where(counts, ratio, 0.0), DeadGradients(place, to_W_enc, to_W_dec, to_bias)
