from .architectures import (
    ARCHITECTURES,
    Architecture,
    architecture,
    register_architecture,
)
from .bank import SAEBank, geometric_median, group_into_banks
from .config import BankTrainingConfig, SAEConfig
from .metrics import evaluate
from .train import train_bank
from .trained import TrainedSAE, from_tensors, load_sae, save_sae, to_tensors

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BankTrainingConfig",
    "SAEBank",
    "SAEConfig",
    "TrainedSAE",
    "architecture",
    "evaluate",
    "from_tensors",
    "geometric_median",
    "group_into_banks",
    "load_sae",
    "register_architecture",
    "save_sae",
    "to_tensors",
    "train_bank",
]
