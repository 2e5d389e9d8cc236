"""Nodes that sample what features do in a language model, and write the page about it."""

from __future__ import annotations

from typing import Any

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
    about = {"group": study_features.group.name, "note": found.note}
    return found.strata.assign(**about), found.partners


def write_function_page(
    run_origin: dict[str, Any],
    consistency_summary: dict[str, Any],
    language_model: LanguageModelConfig,
    features: FeaturesConfig,
    language_function: pd.DataFrame,
) -> str:
    """Write in Markdown whether matched features do the same."""
    from husai.reporting.function_page import function_page

    return function_page(
        run_origin,
        consistency_summary["provenance"],
        language_model.name,
        language_function,
        features.level,
    )
