"""What the data is: modular arithmetic and planted dictionaries."""

from husai.tasks.modular import (
    ModularDataset,
    ModularTaskConfig,
    Vocabulary,
    decode,
    label_distribution,
    modular_dataset,
)

__all__ = [
    "ModularDataset",
    "ModularTaskConfig",
    "Vocabulary",
    "decode",
    "label_distribution",
    "modular_dataset",
]
