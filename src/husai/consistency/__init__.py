"""Which features come back: matching, scores, nulls and statistics."""

from husai.consistency.matching import Match, match_features
from husai.consistency.nulls import NullDistribution, null_between, null_scores
from husai.consistency.scores import (
    MMCS,
    Nearest,
    SharedFeatures,
    gt_mcc,
    mmcs,
    nearest_features,
    pw_mcc,
    shared_fraction,
    uniqueness,
)
from husai.consistency.statistics import SeedInterval, seed_interval

__all__ = [
    "MMCS",
    "Match",
    "Nearest",
    "NullDistribution",
    "SeedInterval",
    "SharedFeatures",
    "gt_mcc",
    "match_features",
    "mmcs",
    "nearest_features",
    "null_between",
    "null_scores",
    "pw_mcc",
    "seed_interval",
    "shared_fraction",
    "uniqueness",
]
