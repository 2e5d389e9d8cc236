"""Progress measures: what the loss curves hide while a model groks.

Nanda et al., arXiv 2301.05217, section 5: before test accuracy moves, the waves of the final
solution already form inside the network. The measures look at each checkpoint through the key
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
from husai.tasks.modular import ModularDataset, Vocabulary, compute_answers, encode
from husai.transformer.checkpoints import CheckpointStore
from husai.transformer.config import TransformerConfig
from husai.transformer.fourier import (
    Array,
    basis_norms,
    canonical_frequencies,
    fourier_basis,
    fraction_explained,
    frequencies,
    gini,
    key_frequencies,
    refuse_multiplication,
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
    """The waves of a trained model.

    Attributes
    ----------
    modulus
        p.
    key_frequencies
        Frequencies that stand out in the neuron-logit map, ascending.
    W_E_norms, W_L_norms
        Norm of each row of :func:`husai.transformer.fourier.fourier_basis` in the embedding's
        number rows and in ``W_L = W_U W_out``, [p].
    explained
        Share of variance at the key frequencies: ``W_E``, ``W_L`` (tables over Z_p),
        ``logits`` (by ``cos 2πk(s-c)/p``, s the answer, c the class), ``mlp_post`` (by the
        products of waves of a and b, and by waves of the answer alone in ``mlp_post_answer``),
        ``resid_post`` (by waves of the answer).
    """

    modulus: int
    key_frequencies: tuple[int, ...]
    W_E_norms: Array
    W_L_norms: Array
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
        For multiplication, an even modulus, or a model without a key frequency.
    """
    refuse_multiplication(vocabulary.operation)
    p, operation = vocabulary.modulus, vocabulary.operation
    frequencies(p)
    W_E, W_L = _number_tables(state_dict, vocabulary, model_config)
    chosen = canonical_frequencies(key, p) if key is not None else key_frequencies(W_L)
    if not chosen:
        raise InputError(
            "no frequency stands out in this model's neuron-logit map: it has not grokked. Train "
            "it longer or name the key frequencies"
        )
    tables = _AnswerTableMaker(vocabulary, model_config)(state_dict)
    return FourierStructure(
        modulus=p,
        key_frequencies=tuple(chosen),
        W_E_norms=basis_norms(W_E),
        W_L_norms=basis_norms(W_L),
        explained={
            "W_E": fraction_explained(W_E, chosen, p),
            "W_L": fraction_explained(W_L, chosen, p),
            "logits": _logit_waves(tables.logits, chosen, vocabulary)[1],
            "mlp_post": fraction_explained(tables.post, chosen, p, operation, "pair"),
            "mlp_post_answer": fraction_explained(tables.post, chosen, p, operation),
            "resid_post": fraction_explained(tables.resid_post, chosen, p, operation),
        },
    )


def progress_measures(
    checkpoints: Iterable[tuple[int, Mapping[str, Tensor]]],
    dataset: ModularDataset,
    model_config: TransformerConfig | None = None,
    *,
    key: Sequence[int] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Compute the progress measures of Nanda et al., arXiv 2301.05217, section 5.1.

    Losses are mean cross-entropies in nats over the p classes that are numbers. With M(s, c) the
    mean logit of class c over the pairs whose answer is s:

    - ``restricted_loss``, over all pairs: of the logits' mean plus their components along
      ``cos 2πks/p`` and ``sin 2πks/p``, k a key frequency;
    - ``excluded_loss``, over the train pairs: of the logits without those components;
    - ``trig_loss``, over all pairs: of ``Σ_k α_k cos 2πk(s-c)/p`` with α_k the logits' projection,
      the algorithm by itself;
    - ``gini_W_E``, ``gini_W_L``: Gini coefficient of the p - 1 non-constant Fourier norms of the
      embedding and of ``W_L = W_U W_out``;
    - ``sum_squared_weights``: over all parameters;
    - ``logits_explained``: share of the logits' variance (means over classes and over pairs
      removed) at ``cos 2πk(s-c)/p``;
    - ``mlp_post_explained``: share of the neurons' variance at products of key waves of a and b;
    - ``resid_post_explained``: share of the residual stream's variance at key waves of the answer.

    Parameters
    ----------
    checkpoints
        (epoch, state dict) in the order of training; a
        :class:`~husai.transformer.checkpoints.CheckpointStore` will do.
    dataset
        What the model was trained on: operation, formats and the train rows.
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
        Without checkpoints or the model's shape; for multiplication or an even modulus.
    """
    vocabulary = dataset.vocabulary
    refuse_multiplication(vocabulary.operation)
    p, operation = vocabulary.modulus, vocabulary.operation
    frequencies(p)
    series = list(checkpoints)
    if not series:
        raise InputError("there is no checkpoint to measure")
    if model_config is None:
        if not isinstance(checkpoints, CheckpointStore):
            raise InputError("model_config is needed: only a CheckpointStore knows it by itself")
        model_config = checkpoints.model_config()
    if key is None:
        chosen = key_frequencies(_number_tables(series[-1][1], vocabulary, model_config)[1])
    else:
        chosen = canonical_frequencies(key, p)
    train = dataset.rows("train")
    examples = dataset.examples
    train_pairs = (
        examples["a"].to_numpy(dtype=np.int64)[train] * p
        + examples["b"].to_numpy(dtype=np.int64)[train]
    )
    answers = _all_answers(vocabulary)
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
                key_part = _key_part(tables.logits, chosen, vocabulary)
                restricted = tables.logits.mean(0) + key_part  # [answer, class]
                excluded = tables.logits[train_pairs] - key_part[answers[train_pairs]]
                trig, logits_explained = _logit_waves(tables.logits, chosen, vocabulary)
                row |= {
                    "restricted_loss": _cross_entropy(restricted, np.arange(p)),
                    "excluded_loss": _cross_entropy(excluded, answers[train_pairs]),
                    "trig_loss": _cross_entropy(trig, np.arange(p)),
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


def _all_answers(vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    a, b = np.divmod(np.arange(vocabulary.modulus**2, dtype=np.int64), vocabulary.modulus)
    return compute_answers(a, b, vocabulary)


def _number_tables(
    state: Mapping[str, Tensor], vocabulary: Vocabulary, config: TransformerConfig
) -> tuple[Array, Array]:
    """The embedding's and the neuron-logit map's rows of numbers, [p, d_model] and [p, d_mlp]."""
    p = vocabulary.modulus
    W_E = state["embed.weight"][:p].to(torch.float64)
    W_U = state["unembed.weight"][:p].to(torch.float64)
    W_out = state[f"blocks.{config.n_layers - 1}.mlp.out.weight"].to(torch.float64)
    return W_E.cpu().numpy(), (W_U @ W_out).cpu().numpy()


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


def _key_part(logits: Array, key: Sequence[int], vocabulary: Vocabulary) -> Array:
    """Components of the logits at the key waves of the answer, [answer, class]."""
    table = value_table(logits, vocabulary.modulus, vocabulary.operation)
    waves = fourier_basis(vocabulary.modulus)[[r for k in key for r in (2 * k - 1, 2 * k)]]
    return waves.T @ (waves @ table)


def _logit_waves(logits: Array, key: Sequence[int], vocabulary: Vocabulary) -> tuple[Array, float]:
    """``Σ_k α_k cos 2πk(s-c)/p``, [answer, class], and its share of the logits' variance."""
    p = vocabulary.modulus
    table = value_table(logits, p, vocabulary.operation)
    difference = (np.arange(p)[:, None] - np.arange(p)[None, :]) % p
    # a constant over classes does nothing; a constant over pairs is no wave of the answer
    centred = logits - logits.mean(1, keepdims=True)
    total = ((centred - centred.mean(0)) ** 2).sum()
    waves = np.zeros((p, p))
    for k in key:
        wave = np.cos(2 * np.pi * ((k * difference) % p) / p)
        # a wave's squared norm over the p² cells of the table is p²/2
        waves += (table * wave).sum() / (p * p / 2) * wave
    # each cell of the table stands for p pairs
    return waves, float(p * (waves**2).sum() / total)


def _cross_entropy(logits: Array, classes: npt.NDArray[np.int64]) -> float:
    top = logits.max(1, keepdims=True)
    log_partition = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return float((log_partition - logits[np.arange(len(classes)), classes]).mean())


def _sum_of_squares(state: Mapping[str, Tensor]) -> float:
    return sum(float(value.to(torch.float64).square().sum()) for value in state.values())
