from .checkpoints import CheckpointStore
from .config import TransformerConfig, TransformerTrainingConfig
from .measures import (
    FourierStructure,
    fourier_structure,
    progress_measures,
)
from .model import (
    TrainedTransformer,
    build_transformer,
    load_transformer,
    save_transformer,
)
from .splice import spliced_loss
from .training import evaluate_transformer, train_transformer

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
    "spliced_loss",
    "train_transformer",
]
