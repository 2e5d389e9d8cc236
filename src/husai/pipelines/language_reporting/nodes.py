"""The node that writes the page of a language model's study."""

from __future__ import annotations

from typing import Any

import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.language.config import LanguageModelConfig
from husai.pipelines.hints import Figure
from husai.storage import TensorFile
from husai.text import Tokens


def write_language_page(
    origin: dict[str, Any],
    text_tokens: TensorFile,
    language_model: LanguageModelConfig,
    consistency: ConsistencyConfig,
    consistency_summary: dict[str, Any],
    **tables: pd.DataFrame,
) -> tuple[str, Figure]:
    """Write the study's page in Markdown, and draw the reproducibility of its features."""
    from husai.figures.language import language_figure
    from husai.figures.style import drawn_or_reason
    from husai.reporting.language_page import LanguageTables, figure_tables, language_page

    known = LanguageTables(**tables)
    tokens = Tokens.from_file(text_tokens)
    about = {"model": language_model.model_dump(mode="json"), **tokens.about}
    page = language_page(
        origin,
        consistency_summary["provenance"],
        about,
        known,
        threshold=consistency.shared_threshold,
        level=consistency.level,
    )
    figure = drawn_or_reason(lambda: language_figure(*figure_tables(known, consistency.level)))
    return page, figure
