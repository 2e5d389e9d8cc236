"""Nodes that plan the SAEs, train them and tabulate them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from husai.activations import load_activations
from husai.campaign import (
    CampaignConfig,
    CampaignFolders,
    ledger_totals,
    plan_saes,
    read_ledger,
    run_campaign,
)
from husai.campaign.plan import plan_keys
from husai.pipelines.hints import Figure
from husai.sae.config import BankTrainingConfig
from husai.storage import TensorFile, TensorFiles


def plan(campaign: CampaignConfig) -> pd.DataFrame:
    """Make the plan: a table of architectures x widths x sparsity x seeds."""
    return plan_saes(campaign.plan)


def train(
    sae_plan: pd.DataFrame,
    activations: TensorFiles,
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    folder: Path,
    stores: Path,
) -> Iterator[dict[str, TensorFile]]:
    """Train every planned SAE that is missing; each is saved when its bank has ended."""
    from husai.sae import to_tensors

    rows = {
        key: load_activations(activations, key, stores) for key in sorted(set(plan_keys(sae_plan)))
    }
    folders = CampaignFolders.below(folder)
    for sae_id, sae in run_campaign(sae_plan, rows, training, campaign, folders):
        yield {sae_id: TensorFile(*to_tensors(sae))}


def tabulate(
    sae_plan: pd.DataFrame, saes: TensorFiles, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Make the tables of each SAE's metrics and ledger entry, and the totals of the campaign."""
    from husai.sae import load_trained

    ids = sae_plan["sae_id"].tolist()
    measured = pd.DataFrame(
        [
            {"sae_id": sae_id, **sae.metrics, "failure": sae.failure or ""}
            for sae_id, sae in load_trained(saes, ids).items()
        ]
    )
    ledger = read_ledger(CampaignFolders.below(folder).campaign, ids)
    table = sae_plan.merge(measured, on="sae_id", validate="one_to_one")
    return table, ledger, ledger_totals(ledger)


def plot_learning_curves(sae_plan: pd.DataFrame, saes: TensorFiles) -> Figure:
    """Draw loss, FVU, L0 and dead latents over training, by architecture and width."""
    from husai.figures.sae import learning_curves
    from husai.sae import load_trained

    loaded = load_trained(saes, sae_plan["sae_id"].tolist())
    groups = sae_plan.groupby("group", sort=False)["sae_id"]
    return learning_curves({str(name): [loaded[one] for one in ids] for name, ids in groups})
