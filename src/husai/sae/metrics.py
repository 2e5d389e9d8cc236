"""Metrics of an SAE on held-out rows, in float64: error, sparsity, dead latents, loss recovered."""

from __future__ import annotations

from collections.abc import Callable

import torch

from husai.sae.trained import TrainedSAE

CHUNK = 512
"""Rows that are measured at once; their codes in float64 stay in the processor's cache."""

LossWith = Callable[[Callable[[torch.Tensor], torch.Tensor]], float]


def evaluate(
    sae: TrainedSAE,
    rows: torch.Tensor,
    loss_with: LossWith | None = None,
) -> tuple[dict[str, float], torch.Tensor]:
    """Measure an SAE on rows it was not trained on.

    Parameters
    ----------
    sae
        The SAE; it encodes as at inference (with its threshold, if it has one).
    rows
        ``[n, d_in]``.
    loss_with
        Returns the loss of the model that the rows come from when a function is applied to the
        activations at the hook. If it is given, the metrics include :func:`loss_recovered`.

    Returns
    -------
    metrics
        ``mse``: mean over rows and elements of (x̂ − x)². ``fvu``: Σ‖x − x̂‖² / Σ‖x − x̄‖², the
        mean over the same rows. ``explained_variance``: 1 − Σ_j var(x_j − x̂_j) / Σ_j var(x_j),
        which ignores a constant offset, unlike fvu. ``l0``: active latents per row.
        ``l1``: Σ f_i‖W_dec_i‖ per row. ``dead_fraction``: latents active on none of the rows.
        ``cosine_to_init``: mean over latents of the |cosine| of a decoder row with its initial
        value.
    density
        Fraction of the rows on which each latent is active ``[d_sae]``.
    """
    W_dec = sae.W_dec.double()
    norms = W_dec.norm(dim=1)
    mean = rows.double().mean(0)
    error = total = l0 = l1 = 0.0
    residual_sum = torch.zeros(sae.d_in, dtype=torch.float64)
    active = torch.zeros(sae.config.d_sae, dtype=torch.float64)
    for chunk in torch.split(rows, CHUNK):
        # float64, because sums over many rows would lose small differences in float32
        x = chunk.double()
        f = sae.encode(x)
        residual = x - sae.decode(f)
        error += float(residual.square().sum())
        residual_sum += residual.sum(0)
        total += float((x - mean).square().sum())
        fired = f > 0
        l0 += float(fired.sum())
        l1 += float((f @ norms).sum())
        active += fired.sum(0)
    n = len(rows)
    density = active / n
    start = sae.W_dec_init.double()
    cosine = (W_dec * start).sum(1) / (norms * start.norm(dim=1)).clamp_min(1e-30)
    metrics = {
        "mse": error / (n * sae.d_in),
        "fvu": error / total,
        "explained_variance": 1 - (error - float(residual_sum.square().sum()) / n) / total,
        "l0": l0 / n,
        "l1": l1 / n,
        "dead_fraction": float((active == 0).double().mean()),
        # a row and its negative are the same direction
        "cosine_to_init": float(cosine.abs().mean()),
    }
    if loss_with is not None:
        metrics |= loss_recovered(sae, loss_with)
    return metrics, density


def loss_recovered(
    sae: TrainedSAE, loss_with: LossWith, bounds: tuple[float, float] | None = None
) -> dict[str, float]:
    """Measure how much of a model's performance is kept when activations are reconstructed.

    Parameters
    ----------
    sae
        The SAE; it encodes as at inference.
    loss_with
        See :func:`evaluate`.
    bounds
        ``loss_clean`` and ``loss_zero`` if they are already known: they are the same for all SAEs
        of one hook.

    Returns
    -------
    dict
        ``loss_clean``, ``loss_zero`` (activations replaced by 0), ``loss_spliced``, and
        ``loss_recovered`` = (L_zero − L_spliced) / (L_zero − L_clean): 1 for a perfect
        reconstruction, 0 for one that is no better than zeros.
    """
    clean, zero = bounds or (loss_with(lambda x: x), loss_with(torch.zeros_like))
    spliced = loss_with(lambda x: sae.decode(sae.encode(x)))
    return {
        "loss_clean": clean,
        "loss_zero": zero,
        "loss_spliced": spliced,
        "loss_recovered": (zero - spliced) / (zero - clean),
    }
