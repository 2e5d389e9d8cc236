"""Measures of a trained transformer: loss and accuracy of each split, and when it grokked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from husai.errors import InputError
from husai.tasks.modular import SPLITS, ModularDataset, Split, Vocabulary
from husai.transformer.device import resolve_device
from husai.transformer.functional import functional_logits, has_functional_form
from husai.transformer.model import TrainedTransformer

# rows evaluated at a time: the hooked model's cache of all hooks needs the most memory
EVALUATION_ROWS = 4096


@torch.no_grad()
def evaluate_transformer(
    transformer: TrainedTransformer, dataset: ModularDataset, device: str = "cpu"
) -> dict[str, float | None]:
    """Measure the loss and accuracy of a trained model on every split.

    Models with a functional form (see :mod:`husai.transformer.functional`) need no TransformerLens.

    Parameters
    ----------
    transformer
        For instance from :func:`~husai.transformer.load_transformer`.
    dataset
        Examples in the model's own vocabulary.
    device
        cpu, cuda, cuda:N or auto.

    Returns
    -------
    dict
        ``train_loss`` (mean cross-entropy in nats), ``train_accuracy``, and so on for ``val`` and
        ``test``; None for a split without rows.

    Raises
    ------
    InputError
        When the dataset's vocabulary is not the model's.
    """
    if dataset.vocabulary != transformer.vocabulary:
        raise InputError(
            f"the dataset is {_describe(dataset.vocabulary)}, but the model was trained on "
            f"{_describe(transformer.vocabulary)}"
        )
    forward = _answer_logits(transformer, resolve_device(device))
    tokens = torch.tensor(dataset.tokens())
    answers = torch.tensor(dataset.answers())
    parts = [forward(chunk).cpu() for chunk in torch.split(tokens, EVALUATION_ROWS)]
    rows = {split: torch.tensor(dataset.rows(split)) for split in SPLITS}
    metrics = split_metrics(torch.cat(parts), answers, rows)
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _answer_logits(
    transformer: TrainedTransformer, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function from tokens ``[n, n_ctx]`` to the logits ``[n, d_vocab]`` of the answer."""
    words, config = transformer.vocabulary, transformer.model_config
    if has_functional_form(config):
        weights = {name: value.to(device) for name, value in transformer.state_dict.items()}

        def functional(tokens: Tensor) -> Tensor:
            tokens = tokens.to(device)
            a, b = tokens[:, words.position_a], tokens[:, words.position_b]
            return functional_logits(weights, a, b, words, config)

        return functional
    model = transformer.build(device)
    return lambda tokens: model(tokens.to(device))[:, words.answer_position]


def split_metrics(
    logits: Tensor, answers: Tensor, rows: Mapping[Split, Tensor]
) -> dict[str, float]:
    """Compute the mean loss and accuracy of each split, NaN for a split without rows.

    In float64, because late in training the loss is smaller than float32 can resolve.
    """
    log_probs = logits.to(torch.float64).log_softmax(-1)
    losses = -log_probs.gather(1, answers.unsqueeze(1)).squeeze(1)
    correct = (logits.argmax(-1) == answers).to(torch.float64)
    metrics = {}
    for quantity, values in (("loss", losses), ("accuracy", correct)):
        for split in SPLITS:
            chosen = values[rows[split]]
            metrics[f"{split}_{quantity}"] = float(chosen.mean()) if chosen.numel() else math.nan
    return metrics


def _describe(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.operation} mod {vocabulary.modulus} ({vocabulary.token_format})"


def grokking_summary(history: pd.DataFrame, threshold: float = 0.99) -> dict[str, Any]:
    """Find when train and test accuracy first reached a threshold, and the delay between them.

    Parameters
    ----------
    history
        Curves with columns ``epoch``, ``train_accuracy``, ``test_accuracy`` ….
    threshold
        Accuracy that counts as learned.

    Returns
    -------
    dict
        ``epoch_train_99``, ``epoch_test_99`` (None if never; the 99 stands for the default
        threshold), ``grokking_delay_epochs`` (their difference), ``grokking_delay_ratio``
        (test over train), and the final losses and accuracies. Only evaluated epochs are known, so
        these may be up to ``evaluate_every - 1`` epochs too late.
    """

    def first(column: str) -> int | None:
        reached = history.loc[history[column] >= threshold, "epoch"]
        return int(reached.iloc[0]) if len(reached) else None

    train, test = first("train_accuracy"), first("test_accuracy")
    last = history.iloc[-1]
    summary: dict[str, Any] = {
        "epoch_train_99": train,
        "epoch_test_99": test,
        "grokking_delay_epochs": None,
        "grokking_delay_ratio": None,
    }
    if train is not None and test is not None:
        summary["grokking_delay_epochs"] = test - train
        summary["grokking_delay_ratio"] = test / train if train else None
    for split in SPLITS:
        for quantity in ("loss", "accuracy"):
            value = float(last[f"{split}_{quantity}"])
            summary[f"final_{split}_{quantity}"] = None if math.isnan(value) else value
    return summary
