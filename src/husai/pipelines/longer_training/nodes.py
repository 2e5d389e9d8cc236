"""Nodes that train some SAEs again for longer, as a check of the convergence gate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from husai.activations import load_activations
from husai.campaign import CampaignConfig, CampaignFolders, run_campaign
from husai.campaign.config import LongerConfig
from husai.campaign.plan import plan_keys
from husai.consistency.config import ConsistencyConfig
from husai.sae.config import BankTrainingConfig
from husai.storage import TensorFile, TensorFiles

logger = logging.getLogger(__name__)


def choose(
    sae_plan: pd.DataFrame, training: BankTrainingConfig, longer: LongerConfig
) -> pd.DataFrame:
    """Choose which SAEs are trained again."""
    from husai.campaign.longer import longer_plan

    return longer_plan(sae_plan, training, longer)


def train(
    longer_plan: pd.DataFrame,
    activations: TensorFiles,
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    folder: Path,
    stores: Path,
) -> Iterator[dict[str, TensorFile]]:
    """Train them with the same seeds for longer; each is saved when its bank has ended."""
    from husai.sae import to_tensors

    keys = sorted(set(plan_keys(longer_plan)))
    rows = {key: load_activations(activations, key, stores) for key in keys}
    folders = CampaignFolders.below(folder)
    for sae_id, sae in run_campaign(longer_plan, rows, training, campaign, folders):
        yield {sae_id: TensorFile(*to_tensors(sae))}


def judge(
    sae_plan: pd.DataFrame,
    longer_plan: pd.DataFrame,
    saes: TensorFiles,
    longer_saes: TensorFiles,
    consistency: ConsistencyConfig,
) -> pd.DataFrame:
    """Measure which of them moved, beside the result of the gate."""
    from husai.campaign.longer import moved_table, moved_text
    from husai.sae import load_trained

    groups = sae_plan[sae_plan["group"].isin(set(longer_plan["group"]))]
    table = moved_table(
        groups,
        longer_plan,
        load_trained(saes, groups["sae_id"].tolist()),
        load_trained(longer_saes, longer_plan["sae_id"].tolist()),
        consistency,
    )
    logger.info(moved_text(table))
    return table
