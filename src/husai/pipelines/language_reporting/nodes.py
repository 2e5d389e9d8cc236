"""The node that writes the page of a language model's study."""

from __future__ import annotations

from typing import Any

import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.language.config import LanguageModelConfig
from husai.storage import TensorFile
from husai.text import Tokens


def write_language_page(
    origin: dict[str, Any],
    text_tokens: TensorFile,
    language_model: LanguageModelConfig,
    consistency: ConsistencyConfig,
    consistency_summary: dict[str, Any],
    **tables: pd.DataFrame,
) -> str:
    """Put the study's numbers on one page of Markdown."""
    from husai.reporting.language_page import LanguageTables, language_page

    tokens = Tokens.from_file(text_tokens)
    about = {"model": language_model.model_dump(mode="json"), **tokens.about}
    return language_page(
        origin,
        consistency_summary["provenance"],
        about,
        LanguageTables(**tables),
        threshold=consistency.shared_threshold,
        level=consistency.level,
    )
