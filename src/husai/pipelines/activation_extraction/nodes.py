"""Nodes that read activations out of the transformer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.activations import (
    Activations,
    ExtractionConfig,
    activation_statistics,
    extract_activations,
)
from husai.activations.rows import SPLITS
from husai.errors import InputError
from husai.storage import TensorFile

if TYPE_CHECKING:
    from husai.transformer import TrainedTransformer

logger = logging.getLogger(__name__)


def extract(
    transformer: TensorFile, examples: pd.DataFrame, activations: ExtractionConfig
) -> dict[str, TensorFile]:
    """Run the trained transformer over every example and keep the chosen hooks.

    And, where they are asked for, those of the same transformer at its initial weights.
    """
    import torch

    from husai.transformer import TrainedTransformer, build_transformer

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    tokens = examples.filter(regex=r"^token_\d+$").to_numpy(dtype="int64", copy=True)
    split = examples["split"].map({name: index for index, name in enumerate(SPLITS)})
    frequencies = _key_frequencies(trained)
    vocabulary = trained.vocabulary
    models = {True: trained.build()}
    if activations.untrained:
        # the seed of the configuration decides the initial weights
        models[False] = build_transformer(
            trained.model_config, vocabulary.d_vocab, vocabulary.n_ctx
        ).eval()
    files = {}
    for is_trained, model in models.items():
        for rows in extract_activations(
            model,
            torch.from_numpy(tokens),
            torch.from_numpy(split.to_numpy(dtype="int64", copy=True)),
            activations,
            {
                "config": trained.model_config.model_dump(mode="json"),
                "vocabulary": vocabulary.model_dump(mode="json"),
            },
        ):
            kept = _with_planes(replace(rows, trained=is_trained), trained, frequencies)
            files[kept.key] = TensorFile(*kept.to_tensors())
    return files


def _key_frequencies(trained: TrainedTransformer) -> tuple[int, ...]:
    from husai.transformer import fourier_structure

    try:
        structure = fourier_structure(trained.state_dict, trained.vocabulary, trained.model_config)
    except InputError as error:
        logger.warning("no ground truth for these activations: %s", error)
        return ()
    if not structure.key_frequencies:
        logger.warning("no ground truth for these activations: no frequency stands out")
    return structure.key_frequencies


def _with_planes(
    rows: Activations, trained: TrainedTransformer, frequencies: tuple[int, ...]
) -> Activations:
    """Add the planes of the key frequencies, the truth that features are held against."""
    import torch

    from husai.transformer.fourier import frequency_planes

    vocabulary = trained.vocabulary
    # in a group of even order the last frequency is a line, an alternating sign, and no plane
    order = vocabulary.modulus - (vocabulary.operation == "multiplication")
    frequencies = tuple(k for k in frequencies if 2 * k != order)
    if not frequencies:
        return rows
    if len(rows.values) != vocabulary.modulus**2:
        logger.warning("no ground truth for %s: not every pair (a, b) is there", rows.key)
        return rows
    planes = frequency_planes(
        rows.values.numpy(), frequencies, vocabulary.modulus, vocabulary.operation
    )
    return replace(
        rows,
        planes=torch.from_numpy(planes).float(),
        plane_names=tuple(f"k = {k}" for k in frequencies),
    )


def describe(activations: Mapping[str, Callable[[], TensorFile]]) -> pd.DataFrame:
    """Tabulate norms, variance and effective rank of every hook and position."""
    return pd.DataFrame([activation_statistics(rows) for rows in load_all(activations)])


def load_all(partitions: Mapping[str, Callable[[], TensorFile]]) -> list[Activations]:
    """Load and check every partition of activations."""
    return [load_activations(partitions, key) for key in sorted(partitions)]


def load_activations(partitions: Mapping[str, Callable[[], TensorFile]], key: str) -> Activations:
    """Load one partition, or say which there are."""
    if key not in partitions:
        raise InputError(f"no activations of '{key}'; there are: {', '.join(sorted(partitions))}")
    file: Any = partitions[key]()
    return Activations.from_tensors(file.tensors, file.header, key)
