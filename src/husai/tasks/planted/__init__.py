"""Planted dictionaries: synthetic activations whose true features are known.

A planted world is a dictionary of unit rows and a law by which they fire. Rows of data are

    x = Σ_i c_i d_i + bias + noise

with sparse coefficients c (the *codes*). Everything random is drawn from two seeds:
``dictionary_seed`` fixes the world (dictionary, bias, co-occurrence, magnitude parameters) and
``data_seed`` the rows. Rows are generated in blocks of :data:`BLOCK_ROWS`, each from a generator
of its own, so that a stream of any batch size equals the same rows held in memory.
"""

from husai.tasks.planted.config import (
    BernoulliFiring,
    CircularDictionary,
    ConstantMagnitude,
    Copula,
    CorrelatedDictionary,
    Dictionary,
    ExclusiveLayout,
    Firing,
    GroupCopula,
    HalfNormalMagnitude,
    HierarchicalDictionary,
    HierarchyConfig,
    LogNormalMagnitude,
    LowRankCopula,
    Magnitude,
    NearOrthogonalDictionary,
    PlantedConfig,
    RandomDictionary,
    RectifiedNormalMagnitude,
    UniformKFiring,
    UniformMagnitude,
    ZipfFiring,
    ZipfKFiring,
)
from husai.tasks.planted.dictionaries import (
    welch_bound,
)
from husai.tasks.planted.firing import (
    BLOCK_ROWS,
)
from husai.tasks.planted.published import (
    osae_world,
    song_world,
    synth_sae_bench_world,
)
from husai.tasks.planted.world import (
    PlantedData,
    planted_dictionary,
)

__all__ = [
    "BLOCK_ROWS",
    "BernoulliFiring",
    "CircularDictionary",
    "ConstantMagnitude",
    "Copula",
    "CorrelatedDictionary",
    "Dictionary",
    "ExclusiveLayout",
    "Firing",
    "GroupCopula",
    "HalfNormalMagnitude",
    "HierarchicalDictionary",
    "HierarchyConfig",
    "LogNormalMagnitude",
    "LowRankCopula",
    "Magnitude",
    "NearOrthogonalDictionary",
    "PlantedConfig",
    "PlantedData",
    "RandomDictionary",
    "RectifiedNormalMagnitude",
    "UniformKFiring",
    "UniformMagnitude",
    "ZipfFiring",
    "ZipfKFiring",
    "osae_world",
    "planted_dictionary",
    "song_world",
    "synth_sae_bench_world",
    "welch_bound",
]
