"""The node that writes the study's page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from husai.report import study_report


def write_report(
    training_summary: dict[str, Any],
    transformer_evaluation: dict[str, Any],
    activation_statistics: pd.DataFrame,
    sae_table: pd.DataFrame,
    consistency_groups: pd.DataFrame,
    consistency_summary: dict[str, Any],
) -> str:
    """Put the study's numbers on one page of Markdown."""
    return study_report(
        training_summary,
        transformer_evaluation,
        activation_statistics,
        sae_table,
        consistency_groups,
        consistency_summary["provenance"],
    )
