"""Which features come back: matching, scores, nulls and statistics."""

from husai.consistency.matching import Match, match_features
from husai.consistency.nulls import NullDistribution, null_between, null_scores
from husai.consistency.report import (
    ConsistencyConfig,
    ConsistencyReport,
    SAERecord,
    consistency_report,
)
from husai.consistency.scores import (
    MMCS,
    PAIR_SCORES,
    DictionaryPair,
    Nearest,
    SharedFeatures,
    gt_mcc,
    lp_distance,
    mmcs,
    nearest_features,
    orderedness,
    pw_mcc,
    shared_fraction,
    subspace_overlap,
    uniqueness,
)
from husai.consistency.statistics import SeedInterval, seed_interval
from husai.consistency.subspace import DataSpan, activation_covariance, data_span

__all__ = [
    "MMCS",
    "PAIR_SCORES",
    "ConsistencyConfig",
    "ConsistencyReport",
    "DataSpan",
    "DictionaryPair",
    "Match",
    "Nearest",
    "NullDistribution",
    "SAERecord",
    "SeedInterval",
    "SharedFeatures",
    "activation_covariance",
    "consistency_report",
    "data_span",
    "gt_mcc",
    "lp_distance",
    "match_features",
    "mmcs",
    "nearest_features",
    "null_between",
    "null_scores",
    "orderedness",
    "pw_mcc",
    "seed_interval",
    "shared_fraction",
    "subspace_overlap",
    "uniqueness",
]
