"""Sparse autoencoders: architectures, the bank that trains many at once, weights on disk."""

from husai.sae.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture,
    register_architecture,
)
from husai.sae.bank import SAEBank, geometric_median, group_into_banks
from husai.sae.config import BankTrainingConfig, SAEConfig
from husai.sae.metrics import evaluate
from husai.sae.train import train_bank
from husai.sae.trained import TrainedSAE, from_tensors, save_sae, to_tensors
from husai.sae.trained import read_sae as load_sae

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
