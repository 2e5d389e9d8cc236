"""Nodes of the dry run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from husai.campaign import CampaignConfig, CampaignFolders, estimate_campaign, plan_saes
from husai.pipelines.sae_training.nodes import load_rows
from husai.sae.config import BankTrainingConfig
from husai.storage import TensorFile

logger = logging.getLogger(__name__)


def estimate(
    activations: Mapping[str, Callable[[], TensorFile]],
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    store: Path,
    checkpoints: Path,
    campaign_folder: Path,
) -> tuple[pd.DataFrame, str]:
    """Measure every shape of bank for a moment, and add up what the campaign would take."""
    plan = plan_saes(campaign.plan)
    folders = CampaignFolders(store, checkpoints, campaign_folder)
    table, text = estimate_campaign(plan, load_rows(plan, activations), training, campaign, folders)
    logger.info("\n%s", text)
    return table, text
