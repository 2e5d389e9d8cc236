"""Nodes that read activations out of the transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from husai.activations import (
    Activations,
    ExtractionConfig,
    activation_statistics,
    extract_activations,
)
from husai.activations.rows import SPLITS
from husai.storage import TensorFile


def extract(
    transformer: TensorFile, examples: pd.DataFrame, activations: ExtractionConfig
) -> dict[str, TensorFile]:
    """Run the trained transformer over every example and keep the chosen hooks."""
    import torch

    from husai.transformer import TrainedTransformer

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    tokens = examples.filter(regex=r"^token_\d+$").to_numpy(dtype="int64", copy=True)
    split = examples["split"].map({name: index for index, name in enumerate(SPLITS)})
    extracted = extract_activations(
        trained.build(),
        torch.from_numpy(tokens),
        torch.from_numpy(split.to_numpy(dtype="int64", copy=True)),
        activations,
        {
            "config": trained.model_config.model_dump(mode="json"),
            "vocabulary": trained.vocabulary.model_dump(mode="json"),
        },
    )
    return {rows.key: TensorFile(*rows.to_tensors()) for rows in extracted}


def describe(activations: Mapping[str, Callable[[], TensorFile]]) -> pd.DataFrame:
    """Tabulate norms, variance and effective rank of every hook and position."""
    return pd.DataFrame([activation_statistics(rows) for rows in load_all(activations)])


def load_all(partitions: Mapping[str, Callable[[], TensorFile]]) -> list[Activations]:
    """Load and check every partition of activations."""
    return [load_activations(partitions, key) for key in sorted(partitions)]


def load_activations(partitions: Mapping[str, Callable[[], TensorFile]], key: str) -> Activations:
    """Load one partition, or say which there are."""
    from husai.errors import InputError

    if key not in partitions:
        raise InputError(f"no activations of '{key}'; there are: {', '.join(sorted(partitions))}")
    file: Any = partitions[key]()
    return Activations.from_tensors(file.tensors, file.header, key)
