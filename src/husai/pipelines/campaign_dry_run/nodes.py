"""The node of the dry run."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from husai.activations import load_activations
from husai.campaign import CampaignConfig, CampaignFolders, estimate_campaign, plan_saes
from husai.campaign.plan import plan_keys
from husai.consistency.config import ConsistencyConfig
from husai.sae.config import BankTrainingConfig
from husai.storage import TensorFiles

logger = logging.getLogger(__name__)


def estimate(
    activations: TensorFiles,
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    folder: Path,
    stores: Path,
    earlier_pairs: pd.DataFrame,
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """Estimate time, memory and cost of the campaign, and how many seeds its settings need."""
    from husai.campaign.seeds import planned_seeds, seeds_text

    plan = plan_saes(campaign.plan)
    rows = {key: load_activations(activations, key, stores) for key in sorted(set(plan_keys(plan)))}
    folders = CampaignFolders.below(folder)
    table, text = estimate_campaign(plan, rows, training, campaign, folders)
    seeds = planned_seeds(plan, earlier_pairs, level=consistency.level)
    text = f"{text}\n\n{seeds_text(seeds)}"
    logger.info("\n%s", text)
    return table, text, seeds
