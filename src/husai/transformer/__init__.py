"""The transformer, its training, its progress measures and its Fourier structure."""

from husai.transformer.checkpoints import CheckpointStore
from husai.transformer.config import TransformerConfig, TransformerTrainingConfig
from husai.transformer.model import (
    TrainedTransformer,
    build_transformer,
    load_transformer,
    save_transformer,
)
from husai.transformer.training import train_transformer

__all__ = [
    "CheckpointStore",
    "TrainedTransformer",
    "TransformerConfig",
    "TransformerTrainingConfig",
    "build_transformer",
    "load_transformer",
    "save_transformer",
    "train_transformer",
]
