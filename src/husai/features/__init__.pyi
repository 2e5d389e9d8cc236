from .ambiguity import Ambiguity, ambiguity_tables, match_ambiguity
from .cards import FeatureCards, FeatureGroup, feature_cards, feature_group, single_class
from .combinations import combination_table, combine
from .config import ConsensusConfig, FeaturesConfig
from .consensus import (
    Consensus,
    ConsensusResult,
    build_consensus,
    consensus_directions,
    consensus_recurrence,
    fit_encoder,
)
from .function import FunctionTables, functional_consistency
from .identifiability import code_identifiability, matching_pursuit
from .known import known_cards
from .page import RowFacts, features_page
from .readouts import Readout, modular_readout
from .returning import ReturnModel, fit_return, reliability, return_probabilities

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
    "fit_encoder",
    "fit_return",
    "functional_consistency",
    "known_cards",
    "match_ambiguity",
    "matching_pursuit",
    "modular_readout",
    "reliability",
    "return_probabilities",
    "single_class",
]
