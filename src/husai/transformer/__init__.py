"""The transformer, its training, its progress measures and its Fourier structure."""

from husai.transformer.checkpoints import CheckpointStore
from husai.transformer.config import TransformerConfig, TransformerTrainingConfig
from husai.transformer.measures import (
    FourierStructure,
    fourier_structure,
    progress_measures,
)
from husai.transformer.model import (
    TrainedTransformer,
    build_transformer,
    load_transformer,
    save_transformer,
)
from husai.transformer.training import evaluate_transformer, train_transformer

__all__ = [
    "CheckpointStore",
    "FourierStructure",
    "TrainedTransformer",
    "TransformerConfig",
    "TransformerTrainingConfig",
    "build_transformer",
    "evaluate_transformer",
    "fourier_structure",
    "load_transformer",
    "progress_measures",
    "save_transformer",
    "train_transformer",
]
