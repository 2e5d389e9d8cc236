from .ambiguity import Ambiguity, ambiguity_tables, match_ambiguity
from .cards import FeatureCards, FeatureGroup, feature_cards, feature_group
from .config import FeaturesConfig
from .function import FunctionTables, functional_consistency
from .page import RowFacts, features_page
from .readouts import Readout, modular_readout

__all__ = [
    "Ambiguity",
    "FeatureCards",
    "FeatureGroup",
    "FeaturesConfig",
    "FunctionTables",
    "Readout",
    "RowFacts",
    "ambiguity_tables",
    "feature_cards",
    "feature_group",
    "features_page",
    "functional_consistency",
    "match_ambiguity",
    "modular_readout",
]
