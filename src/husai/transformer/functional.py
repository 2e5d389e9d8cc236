"""A fast forward pass of the one-layer model: its answer logits as a function of its parameters.

Only the last position is read, and the tokens there and at the fixed positions are the same in
all examples. So the query is one vector, the attention scores and values of each operand take only
p different values, and attention needs 2p + n_ctx - 2 vectors for any number of examples. The fixed
positions act as one: their scores add up in the softmax (a log-sum-exp) and their values are
averaged with constant weights.

Logits and gradients are the same as those of the hooked model; the tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from husai.errors import InputError
from husai.tasks.modular import Vocabulary
from husai.transformer.config import TransformerConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def has_functional_form(config: TransformerConfig) -> bool:
    """Whether :func:`functional_logits` can compute a model: one layer, no normalisation."""
    return config.n_layers == 1 and config.normalization == "none"


class AttentionTerms(NamedTuple):
    """Inputs of the attention at the last position, per operand value and head.

    Attributes
    ----------
    score_a, score_b
        Attention score of each value of the operand, [p, n_heads].
    score_fixed
        Log-sum-exp of the scores of the fixed positions, [n_heads].
    value_a, value_b
        Value vectors, [p, n_heads, d_head].
    value_fixed
        Mean value of the fixed positions, weighted by their own softmax, [n_heads, d_head].
    resid_pre
        Residual stream before the block at the last position, [d_model].
    """

    score_a: Tensor
    score_b: Tensor
    score_fixed: Tensor
    value_a: Tensor
    value_b: Tensor
    value_fixed: Tensor
    resid_pre: Tensor


def attention_terms(
    parameters: Mapping[str, Tensor], vocabulary: Vocabulary, n_heads: int
) -> AttentionTerms:
    """Compute scores and values of the 2p + n_ctx - 2 distinct (token, position) vectors."""
    p = vocabulary.modulus
    W_E, W_pos = parameters["embed.weight"], parameters["pos_embed.weight"]
    fixed = [(i, token) for i, token in enumerate(vocabulary.template) if token >= 0]
    positions = torch.tensor([i for i, _ in fixed], device=W_E.device)
    ids = torch.tensor([token for _, token in fixed], device=W_E.device)
    numbers = W_E[:p]
    x_fixed = W_E[ids] + W_pos[positions]
    x = torch.cat(
        [numbers + W_pos[vocabulary.position_a], numbers + W_pos[vocabulary.position_b], x_fixed]
    )
    resid_pre = x_fixed[-1]  # the last position is `=`, a fixed token

    attn = "blocks.0.attn."
    query = F.linear(resid_pre, parameters[attn + "q.weight"], parameters[attn + "q.bias"])
    keys = F.linear(x, parameters[attn + "k.weight"], parameters[attn + "k.bias"])
    values = F.linear(x, parameters[attn + "v.weight"], parameters[attn + "v.bias"])
    d_head = query.shape[0] // n_heads
    keys = keys.view(-1, n_heads, d_head)
    values = values.view(-1, n_heads, d_head)
    query = query.view(n_heads, d_head)
    scores = (keys * query).sum(-1) / math.sqrt(d_head)

    weights = scores[2 * p :].softmax(0)
    return AttentionTerms(
        score_a=scores[:p],
        score_b=scores[p : 2 * p],
        score_fixed=scores[2 * p :].logsumexp(0),
        value_a=values[:p],
        value_b=values[p : 2 * p],
        value_fixed=(weights.unsqueeze(-1) * values[2 * p :]).sum(0),
        resid_pre=resid_pre,
    )


class AnswerActivations(NamedTuple):
    """Activations of the one-layer model at the answer position.

    Attributes
    ----------
    resid_mid, resid_post
        Residual stream between attention and MLP, and after the MLP, [n, d_model].
    post
        Neurons after the nonlinearity, [n, d_mlp].
    logits
        [n, d_vocab].
    """

    resid_mid: Tensor
    post: Tensor
    resid_post: Tensor
    logits: Tensor


def functional_logits(
    parameters: Mapping[str, Tensor],
    a: Tensor,
    b: Tensor,
    vocabulary: Vocabulary,
    config: TransformerConfig,
) -> Tensor:
    """Answer logits of the one-layer model, [n, d_vocab]; see :func:`answer_activations`."""
    return answer_activations(parameters, a, b, vocabulary, config).logits


def answer_activations(
    parameters: Mapping[str, Tensor],
    a: Tensor,
    b: Tensor,
    vocabulary: Vocabulary,
    config: TransformerConfig,
) -> AnswerActivations:
    """Activations at the answer position of the one-layer model without normalisation.

    Parameters
    ----------
    parameters
        The model's parameters under the names of its ``state_dict``.
    a, b
        Operands, int64 [n] each.
    vocabulary
        The positions of the operands, and which tokens are fixed.
    config
        Shape of the model.

    Returns
    -------
    AnswerActivations
        Equal to the hooked model's; differentiable in the parameters.
    """
    terms = attention_terms(parameters, vocabulary, config.n_heads)
    scores = torch.stack(
        [terms.score_a[a], terms.score_b[b], terms.score_fixed.expand(a.shape[0], -1)]
    )
    pattern = scores.softmax(0).unsqueeze(-1)
    z = (
        pattern[0] * terms.value_a[a]
        + pattern[1] * terms.value_b[b]
        + pattern[2] * terms.value_fixed
    ).flatten(1)
    block = "blocks.0."
    attn_out = F.linear(z, parameters[block + "attn.o.weight"], parameters[block + "attn.o.bias"])
    resid_mid = terms.resid_pre + attn_out
    post, resid_post = after_attention(parameters, resid_mid, config)
    logits = F.linear(resid_post, parameters["unembed.weight"])
    return AnswerActivations(resid_mid, post, resid_post, logits)


def after_attention(
    parameters: Mapping[str, Tensor], resid_mid: Tensor, config: TransformerConfig
) -> tuple[Tensor, Tensor]:
    """Compute neurons ``[n, d_mlp]`` and the residual stream after the MLP from the one before."""
    mlp = "blocks.0.mlp."
    pre = F.linear(resid_mid, parameters[mlp + "in.weight"], parameters[mlp + "in.bias"])
    post = ACTIVATIONS[config.act_fn](pre)
    out = F.linear(post, parameters[mlp + "out.weight"], parameters[mlp + "out.bias"])
    return post, resid_mid + out


LOGITS_FROM = ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_post")
"""Hooks whose activations at the answer position determine the logits."""


def logits_from(
    parameters: Mapping[str, Tensor], hook_name: str, rows: Tensor, config: TransformerConfig
) -> Tensor:
    """Answer logits ``[n, d_vocab]`` of the one-layer model, from activations at one hook.

    Parameters
    ----------
    parameters
        The model's parameters under the names of its ``state_dict``.
    hook_name
        One of :data:`LOGITS_FROM`.
    rows
        ``[n, d_model]`` activations at this hook and the answer position; they may be changed.
    config
        Shape of the model.

    Raises
    ------
    InputError
        When the activations of this hook do not determine the logits.
    """
    if hook_name not in LOGITS_FROM or not has_functional_form(config):
        raise InputError(
            f"hook_name: the activations at {hook_name} do not determine the logits; use one of "
            f"{', '.join(LOGITS_FROM)}"
        )
    if hook_name == "blocks.0.hook_resid_mid":
        _, rows = after_attention(parameters, rows, config)
    return F.linear(rows, parameters["unembed.weight"])
