"""Progress measures: what happens inside a model before its test accuracy rises (grokking).

Nanda et al., arXiv 2301.05217, section 5: before test accuracy rises, the waves of the final
solution already form inside the network. The measures describe each checkpoint by the key
frequencies of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from husai.errors import InputError
from husai.progress import progress_bar
from husai.tasks.modular import ModularDataset, Operation, Vocabulary, encode
from husai.transformer.checkpoints import CheckpointStore
from husai.transformer.config import TransformerConfig
from husai.transformer.fourier import (
    Array,
    answer_indices,
    basis_norms,
    canonical_frequencies,
    fourier_basis,
    fraction_explained,
    frequency_rows,
    gini,
    group_elements,
    key_frequencies,
    value_table,
)
from husai.transformer.functional import answer_activations, has_functional_form
from husai.transformer.model import build_transformer

_ROWS_AT_ONCE = 4096

MEASURES = (
    "epoch",
    "restricted_loss",
    "excluded_loss",
    "trig_loss",
    "gini_W_E",
    "gini_W_L",
    "sum_squared_weights",
    "logits_explained",
    "mlp_post_explained",
    "resid_post_explained",
)


@dataclass(frozen=True)
class FourierStructure:
    """The key frequencies of a trained model, and how much they explain.

    Attributes
    ----------
    modulus, operation
        p and the task's operation; its group has order n (p, or p - 1 for multiplication).
    key_frequencies
        Frequencies that stand out in the neuron-logit map, ascending.
    explained
        Share of variance at the key frequencies: ``W_E``, ``W_L = W_U W_out`` (tables over Z_p),
        ``logits`` (by ``cos 2πk(s-c)/n``, s the answer, c the class), ``mlp_post`` (by the
        products of waves of a and b, and by waves of the answer alone in ``mlp_post_answer``),
        ``resid_post`` (by waves of the answer).
    """

    modulus: int
    operation: Operation
    key_frequencies: tuple[int, ...]
    explained: dict[str, float]


@dataclass(frozen=True)
class _AnswerTables:
    """Float64 activations at the answer position for all p² pairs in (a, b) order."""

    logits: Array  # [p*p, p]: the classes that are numbers
    post: Array  # [p*p, d_mlp]
    resid_post: Array  # [p*p, d_model]


def fourier_structure(
    state_dict: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    model_config: TransformerConfig,
    key: Sequence[int] | None = None,
) -> FourierStructure:
    """Describe a model's key frequencies and how much they explain.

    Parameters
    ----------
    state_dict
        The model's weights.
    vocabulary, model_config
        The task and the model's shape.
    key
        Key frequencies; None finds them in the neuron-logit map ``W_U W_out``.

    Raises
    ------
    InputError
        For multiplication modulo a number that is not an odd prime, or a model without a key
        frequency.
    """
    p, operation = vocabulary.modulus, vocabulary.operation
    order = len(group_elements(p, operation))
    W_E, W_L = _number_tables(state_dict, vocabulary, model_config)
    chosen = canonical_frequencies(key, order) if key is not None else key_frequencies(W_L)
    if not chosen:
        raise InputError(
            "no frequency stands out in this model's neuron-logit map: it has not grokked. Train "
            "it for longer, or give the key frequencies"
        )
    tables = _AnswerTableMaker(vocabulary, model_config)(state_dict)
    return FourierStructure(
        modulus=p,
        operation=operation,
        key_frequencies=tuple(chosen),
        explained={
            "W_E": fraction_explained(W_E, chosen, order),
            "W_L": fraction_explained(W_L, chosen, order),
            "logits": _logit_waves(_group_logits(tables.logits, vocabulary), chosen, operation)[1],
            "mlp_post": fraction_explained(tables.post, chosen, p, operation, "pair"),
            "mlp_post_answer": fraction_explained(tables.post, chosen, p, operation),
            "resid_post": fraction_explained(tables.resid_post, chosen, p, operation),
        },
    )


def frequency_shares(
    state_dict: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    model_config: TransformerConfig,
    key: Sequence[int],
) -> dict[int, float]:
    """Compute the share of the residual stream's variance at each key frequency of the answer.

    At the answer position, after the last block. :func:`frequency_balance` says how even these
    shares are.

    Parameters
    ----------
    state_dict, vocabulary, model_config
        As in :func:`fourier_structure`.
    key
        Frequencies.
    """
    rows = _AnswerTableMaker(vocabulary, model_config)(state_dict).resid_post
    p, operation = vocabulary.modulus, vocabulary.operation
    return {int(k): fraction_explained(rows, [k], p, operation) for k in key}


def frequency_balance(shares: Sequence[float]) -> float:
    """Compute the effective number of frequencies over their number, in (0, 1]: 1 if all are equal.

    The effective number is the exponential of the entropy of the shares, normalised to sum to 1.

    Raises
    ------
    InputError
        Without a positive share.
    """
    values = np.asarray(shares, dtype=np.float64)
    values = values[values > 0]
    if not len(values):
        raise InputError("shares: none is above 0; give at least one that is")
    part = values / values.sum()
    return float(np.exp(-(part * np.log(part)).sum()) / len(shares))


def progress_measures(
    checkpoints: Iterable[tuple[int, Mapping[str, Tensor]]],
    dataset: ModularDataset,
    model_config: TransformerConfig | None = None,
    *,
    key: Sequence[int] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Compute the progress measures of Nanda et al., arXiv 2301.05217, section 5.1.

    For addition and subtraction n = p. For multiplication n is p - 1, numbers are replaced by their
    discrete logarithms, and only nonzero pairs and classes count.
    Losses are mean cross-entropies in nats over the n classes. With s the answer and c the class:

    - ``restricted_loss``, over all pairs: of the logits' mean plus their components along
      ``cos 2πks/n`` and ``sin 2πks/n``, k a key frequency;
    - ``excluded_loss``, over the train pairs: of the logits without those components;
    - ``trig_loss``, over all pairs: of ``Σ_k α_k cos 2πk(s-c)/n`` with α_k the logits' projection,
      that is, of the algorithm alone;
    - ``gini_W_E``, ``gini_W_L``: Gini coefficient of the n - 1 non-constant Fourier norms of the
      embedding and of ``W_L = W_U W_out``;
    - ``sum_squared_weights``: over all parameters;
    - ``logits_explained``: share of the logits' variance (means over classes and over pairs
      removed) at ``cos 2πk(s-c)/n``;
    - ``mlp_post_explained``: share of the neurons' variance at products of key waves of a and b;
    - ``resid_post_explained``: share of the residual stream's variance at key waves of the answer.

    Parameters
    ----------
    checkpoints
        (epoch, state dict) in the order of training, for example a
        :class:`~husai.transformer.checkpoints.CheckpointStore`.
    dataset
        The data that the model was trained on: operation, formats and training rows.
    model_config
        The model's shape; None asks the checkpoint store.
    key
        Key frequencies; None takes those of the last checkpoint's neuron-logit map.
    progress
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        A row per checkpoint. ``attrs["key_frequencies"]`` lists the frequencies used. When none
        stands out in the last checkpoint (the model has not grokked), the list is empty and the
        measures that need them are NaN.

    Raises
    ------
    InputError
        Without checkpoints or the model's shape; for multiplication when p is not an odd prime.
    """
    vocabulary = dataset.vocabulary
    p, operation = vocabulary.modulus, vocabulary.operation
    order = len(group_elements(p, operation))
    series = list(checkpoints)
    if not series:
        raise InputError("checkpoints: there is none to measure; train with a checkpoint folder")
    if model_config is None:
        if not isinstance(checkpoints, CheckpointStore):
            raise InputError("model_config: give it, unless checkpoints is a CheckpointStore")
        model_config = checkpoints.model_config()
    if key is None:
        chosen = key_frequencies(_number_tables(series[-1][1], vocabulary, model_config)[1])
    else:
        chosen = canonical_frequencies(key, order)
    place = np.full(p, -1)
    place[group_elements(p, operation)] = np.arange(order)
    examples = dataset.examples.iloc[dataset.rows("train")]
    train_a, train_b = (place[examples[name].to_numpy(dtype=np.int64)] for name in ("a", "b"))
    inside = (train_a >= 0) & (train_b >= 0)
    train_pairs = (train_a * order + train_b)[inside]
    answers = answer_indices(p, operation)
    rows = []
    with progress_bar(len(series), "progress measures", "checkpoint", disable=not progress) as bar:
        tables_of = _AnswerTableMaker(vocabulary, model_config)
        for epoch, state in series:
            tables = tables_of(state)
            W_E, W_L = _number_tables(state, vocabulary, model_config)
            row = dict.fromkeys(MEASURES, math.nan)
            row |= {
                "epoch": epoch,
                "gini_W_E": gini(basis_norms(W_E)[1:]),
                "gini_W_L": gini(basis_norms(W_L)[1:]),
                "sum_squared_weights": _sum_of_squares(state),
            }
            if chosen:
                logits = _group_logits(tables.logits, vocabulary)
                key_part = _key_part(logits, chosen, operation)
                restricted = logits.mean(0) + key_part  # [answer, class]
                excluded = logits[train_pairs] - key_part[answers[train_pairs]]
                trig, logits_explained = _logit_waves(logits, chosen, operation)
                row |= {
                    "restricted_loss": _cross_entropy(restricted, np.arange(order)),
                    "excluded_loss": _cross_entropy(excluded, answers[train_pairs]),
                    "trig_loss": _cross_entropy(trig, np.arange(order)),
                    "logits_explained": logits_explained,
                    "mlp_post_explained": fraction_explained(
                        tables.post, chosen, p, operation, "pair"
                    ),
                    "resid_post_explained": fraction_explained(
                        tables.resid_post, chosen, p, operation
                    ),
                }
            rows.append(row)
            bar.update()
    table = pd.DataFrame(rows, columns=list(MEASURES))
    table.attrs["key_frequencies"] = chosen
    return table


def _number_tables(
    state: Mapping[str, Tensor], vocabulary: Vocabulary, config: TransformerConfig
) -> tuple[Array, Array]:
    """Rows of the embedding [n, d_model] and of the neuron-logit map [n, d_mlp] for the numbers."""
    elements = torch.from_numpy(group_elements(vocabulary.modulus, vocabulary.operation))
    W_E = state["embed.weight"].cpu()[elements].to(torch.float64)
    W_U = state["unembed.weight"].cpu()[elements].to(torch.float64)
    W_out = state[f"blocks.{config.n_layers - 1}.mlp.out.weight"].cpu().to(torch.float64)
    return W_E.numpy(), (W_U @ W_out).numpy()


class _AnswerTableMaker:
    """Turns state dicts into activations of all pairs; builds a hooked model at most once."""

    def __init__(self, vocabulary: Vocabulary, config: TransformerConfig) -> None:
        self.vocabulary = vocabulary
        self.config = config
        self.functional = has_functional_form(config)
        if not self.functional:
            self.model = build_transformer(config, vocabulary.d_vocab, vocabulary.n_ctx)
            self.model.eval()

    @torch.no_grad()
    def __call__(self, state: Mapping[str, Tensor]) -> _AnswerTables:
        p = self.vocabulary.modulus
        pairs = np.divmod(np.arange(p * p, dtype=np.int64), p)
        parts = []
        if self.functional:
            a, b = (torch.from_numpy(operand) for operand in pairs)
            for rows in torch.split(torch.arange(p * p), _ROWS_AT_ONCE):
                found = answer_activations(state, a[rows], b[rows], self.vocabulary, self.config)
                parts.append((found.logits, found.post, found.resid_post))
        else:
            self.model.load_state_dict(dict(state))
            last = f"blocks.{self.config.n_layers - 1}."
            names = [last + "mlp.hook_post", last + "hook_resid_post"]
            position = self.vocabulary.answer_position
            tokens = torch.from_numpy(encode(*pairs, self.vocabulary))
            for chunk in torch.split(tokens, _ROWS_AT_ONCE):
                logits, cache = self.model.run_with_cache(chunk, names_filter=names)
                parts.append((logits[:, position], *(cache[n][:, position] for n in names)))
        logits, post, resid_post = (
            torch.cat(column).to(torch.float64).numpy() for column in zip(*parts, strict=True)
        )
        return _AnswerTables(logits=logits[:, :p], post=post, resid_post=resid_post)


def _group_logits(logits: Array, vocabulary: Vocabulary) -> Array:
    """Logits of the group's pairs and classes in its order, [n*n, n]."""
    p = vocabulary.modulus
    elements = group_elements(p, vocabulary.operation)
    pairs = (elements[:, None] * p + elements[None, :]).ravel()
    return logits[np.ix_(pairs, elements)]


def _answer_means(logits: Array, operation: Operation) -> Array:
    """Mean logits of the pairs that share an answer, [answer, class]."""
    order = logits.shape[1]
    # in the group's order, multiplication is addition
    like: Operation = "subtraction" if operation == "subtraction" else "addition"
    return value_table(logits, order, like)


def _key_part(logits: Array, key: Sequence[int], operation: Operation) -> Array:
    """Components of the logits at the key waves of the answer, [answer, class]."""
    table = _answer_means(logits, operation)
    order = table.shape[0]
    waves = fourier_basis(order)[[row for k in key for row in frequency_rows(k, order)]]
    return waves.T @ (waves @ table)


def _logit_waves(logits: Array, key: Sequence[int], operation: Operation) -> tuple[Array, float]:
    """``Σ_k α_k cos 2πk(s-c)/n``, [answer, class], and its share of the logits' variance."""
    table = _answer_means(logits, operation)
    n = table.shape[0]
    difference = (np.arange(n)[:, None] - np.arange(n)[None, :]) % n
    # a constant over classes has no effect; a constant over pairs is not a wave of the answer
    centred = logits - logits.mean(1, keepdims=True)
    total = ((centred - centred.mean(0)) ** 2).sum()
    waves = np.zeros((n, n))
    for k in key:
        wave = np.cos(2 * np.pi * ((k * difference) % n) / n)
        waves += (table * wave).sum() / (wave**2).sum() * wave
    # each cell of the table is the mean of n pairs
    return waves, float(n * (waves**2).sum() / total)


def _cross_entropy(logits: Array, classes: npt.NDArray[np.int64]) -> float:
    top = logits.max(1, keepdims=True)
    log_partition = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return float((log_partition - logits[np.arange(len(classes)), classes]).mean())


def _sum_of_squares(state: Mapping[str, Tensor]) -> float:
    return sum(float(value.to(torch.float64).square().sum()) for value in state.values())
