from .modular import (
    ModularDataset,
    ModularTaskConfig,
    Vocabulary,
    decode,
    label_distribution,
    modular_dataset,
)
from .planted import (
    PlantedConfig,
    PlantedData,
    osae_world,
    planted_dictionary,
    song_world,
    synth_sae_bench_world,
)

__all__ = [
    "ModularDataset",
    "ModularTaskConfig",
    "PlantedConfig",
    "PlantedData",
    "Vocabulary",
    "decode",
    "label_distribution",
    "modular_dataset",
    "osae_world",
    "planted_dictionary",
    "song_world",
    "synth_sae_bench_world",
]
