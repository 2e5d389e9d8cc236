from .ambiguity import Ambiguity, ambiguity_tables, match_ambiguity
from .cards import FeatureCards, FeatureGroup, feature_cards, feature_group, single_class
from .combinations import combination_table, combine, share_table
from .config import ConsensusConfig, FeaturesConfig
from .consensus import (
    Consensus,
    ConsensusResult,
    build_consensus,
    consensus_directions,
    fit_encoder,
)
from .function import FunctionTables, functional_consistency
from .identifiability import code_identifiability, matching_pursuit
from .known import known_cards
from .page import RowFacts, features_page
from .planes import find_planes, plane_table, span_energy, span_table
from .readouts import Readout, modular_readout
from .recurrence import consensus_recurrence
from .returning import (
    ReturnModel,
    fit_return,
    new_seed_calibration,
    reliability,
    return_probabilities,
)
from .sampled import sampled_function

__all__ = [
    "Ambiguity",
    "Consensus",
    "ConsensusConfig",
    "ConsensusResult",
    "FeatureCards",
    "FeatureGroup",
    "FeaturesConfig",
    "FunctionTables",
    "Readout",
    "ReturnModel",
    "RowFacts",
    "ambiguity_tables",
    "build_consensus",
    "code_identifiability",
    "combination_table",
    "combine",
    "consensus_directions",
    "consensus_recurrence",
    "feature_cards",
    "feature_group",
    "features_page",
    "find_planes",
    "fit_encoder",
    "fit_return",
    "functional_consistency",
    "known_cards",
    "match_ambiguity",
    "matching_pursuit",
    "modular_readout",
    "new_seed_calibration",
    "plane_table",
    "reliability",
    "return_probabilities",
    "sampled_function",
    "share_table",
    "single_class",
    "span_energy",
    "span_table",
]
