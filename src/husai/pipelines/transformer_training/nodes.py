"""Nodes that train the transformer, or take a shipped one, and measure how it groks."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from husai.errors import InputError
from husai.pipelines.hints import Figure
from husai.storage import TensorFile
from husai.tasks import ModularDataset, ModularTaskConfig, Vocabulary
from husai.transformer.config import (
    TransformerChoice,
    TransformerConfig,
    TransformerTrainingConfig,
)

logger = logging.getLogger(__name__)


def train(
    examples: pd.DataFrame,
    vocabulary: dict[str, Any],
    task: ModularTaskConfig,
    transformer: TransformerChoice,
    training: TransformerTrainingConfig,
    checkpoints: Path,
) -> tuple[TensorFile, pd.DataFrame, dict[str, Any]]:
    """Take the shipped transformer, or train one until it has grokked.

    An interrupted training continues from its checkpoint.
    """
    from husai.transformer import CheckpointStore, load_shipped, train_transformer

    dataset = ModularDataset(examples, Vocabulary.model_validate(vocabulary))
    if transformer.start == "shipped":
        trained = load_shipped(transformer, dataset, training, task)
    else:
        shape = transformer.shape()
        store = CheckpointStore(run_folder(checkpoints, examples, shape, training))
        trained = train_transformer(dataset, shape, training, checkpoint_dir=store.directory)
        store.finish()
    file = TensorFile(trained.state_dict, trained.header())
    return file, trained.history, {**trained.summary, "transformer": trained.identity()}


def evaluate(transformer: TensorFile, examples: pd.DataFrame) -> dict[str, Any]:
    """Load the saved weights, and measure loss and accuracy of every split again."""
    from husai.transformer import TrainedTransformer, evaluate_transformer

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    measured = evaluate_transformer(trained, ModularDataset(examples, trained.vocabulary))
    return {**measured, "fingerprint": trained.fingerprint}


def measure_progress(
    transformer: TensorFile, examples: pd.DataFrame, checkpoints: Path
) -> pd.DataFrame:
    """Measure the Fourier structure over the checkpoints of the training.

    A shipped transformer's file has the measures from its training.
    """
    from husai.transformer import CheckpointStore, TrainedTransformer, progress_measures
    from husai.transformer.measures import MEASURES

    trained = TrainedTransformer.from_parts(transformer.tensors, transformer.header)
    if trained.progress is not None:
        return trained.progress
    folder = run_folder(checkpoints, examples, trained.model_config, trained.training_config)
    store = CheckpointStore(folder)
    dataset = ModularDataset(examples, trained.vocabulary)
    try:
        return progress_measures(store, dataset, trained.model_config)
    except InputError as error:
        # such as multiplication modulo a composite number, which is not a group
        logger.warning("progress measures are not defined here: %s", error)
        return pd.DataFrame({"epoch": store.epochs()}).reindex(columns=list(MEASURES))


def plot_training(training_curves: pd.DataFrame, progress_measures: pd.DataFrame) -> Figure:
    """Draw the loss curves and the progress measures in one figure."""
    from husai.figures.transformer import progress_figure

    return progress_figure(training_curves, progress_measures)


def run_folder(
    checkpoints: Path,
    examples: pd.DataFrame,
    transformer: TransformerConfig,
    training: TransformerTrainingConfig,
) -> Path:
    """Return a folder of checkpoints for this dataset and configuration, different for others."""
    configs = [transformer.model_dump(mode="json"), training.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True).encode())
    digest.update(pd.util.hash_pandas_object(examples).to_numpy().tobytes())
    return checkpoints / digest.hexdigest()[:12]
