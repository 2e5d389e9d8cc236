"""The node that samples what features do in a language model."""

from __future__ import annotations

import pandas as pd

from husai.features.config import FeaturesConfig
from husai.language.config import LanguageModelConfig, ReadingConfig
from husai.pipelines.hints import StudyFeatures
from husai.storage import TensorFile


def sample_function(
    study_features: StudyFeatures,
    text_tokens: TensorFile,
    language_model: LanguageModelConfig,
    reading: ReadingConfig,
    features: FeaturesConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ablate a random part of the main group's features, and put their partners in their place."""
    from husai.campaign.features import language_function
    from husai.text import Tokens

    tokens = Tokens.from_file(text_tokens)
    found = language_function(study_features, tokens, language_model, reading, features)
    return found.strata.assign(note=found.note), found.partners
