from .checkpoints import CheckpointStore
from .config import TransformerChoice, TransformerConfig, TransformerTrainingConfig
from .evaluation import evaluate_transformer
from .functional import answer_activations
from .measures import (
    FourierStructure,
    fourier_structure,
    frequency_balance,
    frequency_shares,
    progress_measures,
)
from .model import (
    TrainedTransformer,
    build_transformer,
    load_transformer,
    save_transformer,
)
from .shipped import Shipped, load_shipped, shipped_transformers
from .splice import spliced_loss
from .training import train_transformer

__all__ = [
    "CheckpointStore",
    "FourierStructure",
    "Shipped",
    "TrainedTransformer",
    "TransformerChoice",
    "TransformerConfig",
    "TransformerTrainingConfig",
    "answer_activations",
    "build_transformer",
    "evaluate_transformer",
    "fourier_structure",
    "frequency_balance",
    "frequency_shares",
    "load_shipped",
    "load_transformer",
    "progress_measures",
    "save_transformer",
    "shipped_transformers",
    "spliced_loss",
    "train_transformer",
]
