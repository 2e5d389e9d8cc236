"""The node that writes the study's page."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from husai.campaign import CampaignConfig
from husai.config import Config
from husai.reporting.page import StudyTables, study_report


class ReportingConfig(Config):
    """What a page says of itself."""

    command: str = Field(default="kedro run", description="what makes all that is on it")


def write_report(
    training_summary: dict[str, Any],
    transformer_evaluation: dict[str, Any],
    consistency_summary: dict[str, Any],
    activation_statistics: pd.DataFrame,
    fourier_waves: pd.DataFrame,
    sae_table: pd.DataFrame,
    groups: pd.DataFrame,
    features: pd.DataFrame,
    matched_l0: pd.DataFrame,
    published: pd.DataFrame,
    orderings: pd.DataFrame,
    trajectories: pd.DataFrame,
    geometry: pd.DataFrame,
    symmetries: pd.DataFrame,
    correlates: pd.DataFrame,
    campaign: CampaignConfig,
    campaign_totals: dict[str, float],
    reporting: ReportingConfig,
) -> str:
    """Put the study's numbers on one page of Markdown."""
    tables = StudyTables(
        statistics=activation_statistics,
        waves=fourier_waves,
        saes=sae_table,
        groups=groups,
        features=features,
        truth=pd.DataFrame(consistency_summary["truth"]),
        matched_l0=matched_l0,
        published=published,
        orderings=orderings,
        trajectories=trajectories,
        geometry=geometry,
        symmetries=symmetries,
        correlates=correlates,
    )
    return study_report(
        training_summary,
        transformer_evaluation,
        tables,
        consistency_summary["provenance"],
        campaign.name,
        campaign_totals,
        reporting.command,
    )
