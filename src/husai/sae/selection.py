"""Choose the active latents: the selection rule of each architecture, in torch.

:mod:`husai.sae.kernels.select` does the same for the sparse engine; tests compare it with sorting.
"""

from __future__ import annotations

import torch

from husai.sae.architectures import Selection


def active_latents(
    rule: Selection,
    pre: torch.Tensor,
    *,
    k: int | torch.Tensor | None = None,
    threshold: torch.Tensor | None = None,
) -> torch.Tensor:
    """Set every pre-activation that the rule does not choose to 0.

    Parameters
    ----------
    rule
        ``all``: the positive ones. ``row``: the ``k`` largest positive ones of each row. ``batch``:
        the ``B·k`` largest positive ones of the batch, for each SAE by itself. ``threshold``: the
        positive ones above the threshold. A ``batch`` rule is for training; afterwards SAEs trained
        with it have a threshold.
    pre
        Pre-activations ``[B, F]``, or ``[B, N, F]`` of N SAEs.
    k
        For ``row`` and ``batch``: one number for all SAEs, or one per SAE ``[N]``.
    threshold
        For ``threshold``, broadcast against ``pre``.

    Returns
    -------
    torch.Tensor
        Features of the same shape as ``pre``, never negative.
    """
    positive = torch.relu(pre)
    if rule == "threshold":
        assert threshold is not None
        return positive * (pre > threshold)
    if rule == "row":
        assert k is not None
        return _top_of_rows(positive, k)
    if rule == "batch":
        assert k is not None
        if positive.dim() == 2:
            return _top_of_batch(positive, int(k))
        ks = torch.as_tensor(k).expand(positive.shape[1]).tolist()
        parts = [_top_of_batch(positive[:, i], k_of_one) for i, k_of_one in enumerate(ks)]
        return torch.stack(parts, dim=1)
    return positive


def _top_of_rows(positive: torch.Tensor, k: int | torch.Tensor) -> torch.Tensor:
    values, indices = positive.topk(int(k if isinstance(k, int) else k.max()), dim=-1)
    if not isinstance(k, int):
        rank = torch.arange(values.shape[-1], device=values.device)
        values = values * (rank < k[:, None])
    return torch.zeros_like(positive).scatter_(-1, indices, values)


def _top_of_batch(positive: torch.Tensor, k: int) -> torch.Tensor:
    flat = positive.reshape(-1)
    values, indices = flat.topk(min(len(positive) * k, len(flat)), sorted=False)
    return torch.zeros_like(flat).scatter_(0, indices, values).view(positive.shape)
