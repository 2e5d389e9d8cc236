"""Nodes that make the dataset of the modular task."""

from __future__ import annotations

from typing import Any

import pandas as pd

from husai.tasks import ModularTaskConfig, label_distribution, modular_dataset


def generate_examples(task: ModularTaskConfig) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Make every example of the task, and the vocabulary of its tokens."""
    dataset = modular_dataset(task)
    return dataset.examples, dataset.vocabulary.model_dump(mode="json")


def count_labels(examples: pd.DataFrame) -> pd.DataFrame:
    """Count the answers in every split."""
    return label_distribution(examples)
