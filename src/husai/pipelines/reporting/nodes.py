"""The node that writes the study's page."""

from __future__ import annotations

from typing import Any

import pandas as pd

from husai.campaign import CampaignConfig
from husai.consistency.config import ConsistencyConfig
from husai.reporting.config import ReportingConfig
from husai.sae.config import BankTrainingConfig


def write_report(
    origin: dict[str, Any],
    training_summary: dict[str, Any],
    transformer_evaluation: dict[str, Any],
    consistency_summary: dict[str, Any],
    campaign: CampaignConfig,
    campaign_totals: dict[str, float],
    consistency: ConsistencyConfig,
    sae_training: BankTrainingConfig,
    reporting: ReportingConfig,
    **tables: pd.DataFrame,
) -> tuple[str, str]:
    """Write the study's page in Markdown, and its main finding in one sentence."""
    from husai.reporting.page import StudyRun, StudyTables, study_page

    run = StudyRun(
        origin,
        training_summary,
        transformer_evaluation,
        consistency_summary["provenance"],
        campaign.name,
        campaign_totals,
    )
    truth = pd.DataFrame(consistency_summary["truth"])
    # without a transformer its tables are empty mappings
    known = {name: pd.DataFrame(table) for name, table in tables.items()}
    page = study_page(run, StudyTables(truth=truth, **known), consistency, sae_training, reporting)
    return page.text, page.sentence
