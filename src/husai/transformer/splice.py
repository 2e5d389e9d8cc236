"""The transformer's loss when its activations at one hook are replaced, for example by an SAE's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from husai.errors import InputError
from husai.transformer.training import answer_loss

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def spliced_loss(
    model: TransformerBridge,
    tokens: Tensor,
    answers: Tensor,
    hook_name: str,
    position: int,
    *,
    answer_position: int = -1,
    chunk_size: int = 4096,
) -> Callable[[Callable[[Tensor], Tensor]], float]:
    """Make a function that measures the loss when activations at one place are changed.

    Parameters
    ----------
    model
        A TransformerLens bridge.
    tokens, answers
        int64 ``[n, n_ctx]`` and ``[n]``.
    hook_name, position
        Where the activations are; axes after (batch, position) are flattened into one, as in the
        extraction.
    answer_position
        The position at which the model predicts the answer.
    chunk_size
        Inputs in one forward pass.

    Returns
    -------
    callable
        It takes a function of rows ``[n, d]`` and returns the mean cross-entropy in nats, as
        :func:`husai.sae.loss_recovered` needs it.

    Raises
    ------
    InputError
        When the model has no such hook.
    """
    if hook_name not in model.hook_dict:
        raise InputError(f"hook_name: no hook '{hook_name}' in the model")
    device = next(model.parameters()).device

    def loss_with(apply: Callable[[Tensor], Tensor]) -> float:
        def splice(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            rows = value[:, position]
            flat = rows.reshape(len(rows), -1)
            value[:, position] = apply(flat).to(flat).reshape(rows.shape)
            return value

        total = 0.0
        with torch.no_grad():
            for chunk, wanted in zip(
                torch.split(tokens, chunk_size), torch.split(answers, chunk_size), strict=True
            ):
                logits = model.run_with_hooks(chunk.to(device), fwd_hooks=[(hook_name, splice)])
                loss = answer_loss(logits[:, answer_position].cpu(), wanted)
                total += float(loss) * len(chunk)
        return total / len(tokens)

    return loss_with
