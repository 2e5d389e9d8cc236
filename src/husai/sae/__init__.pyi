from .architectures import (
    ARCHITECTURES,
    Architecture,
    architecture,
    register_architecture,
)
from .bank import SAEBank, geometric_median, group_into_banks
from .config import BankTrainingConfig, SAEConfig
from .formats import detect_format, export_sae, load_dictionary, load_sae
from .metrics import evaluate, loss_recovered
from .shipped import shipped_saes
from .train import train_bank
from .trained import TrainedSAE, from_tensors, load_trained, save_sae, to_tensors

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "BankTrainingConfig",
    "SAEBank",
    "SAEConfig",
    "TrainedSAE",
    "architecture",
    "detect_format",
    "evaluate",
    "export_sae",
    "from_tensors",
    "geometric_median",
    "group_into_banks",
    "load_dictionary",
    "load_sae",
    "load_trained",
    "loss_recovered",
    "register_architecture",
    "save_sae",
    "shipped_saes",
    "to_tensors",
    "train_bank",
]
