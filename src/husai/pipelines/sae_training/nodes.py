"""Nodes that plan the SAEs, train them and tabulate them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from husai.activations import Activations
from husai.campaign import (
    CampaignConfig,
    CampaignFolders,
    plan_saes,
    read_ledger,
    run_campaign,
)
from husai.campaign.plan import plan_keys
from husai.errors import InputError
from husai.pipelines.activation_extraction.nodes import load_activations
from husai.sae.config import BankTrainingConfig
from husai.storage import TensorFile, locked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from husai.sae import TrainedSAE
else:
    Figure = TrainedSAE = (
        object  # Kedro resolves the hints of every node; matplotlib is slow to import
    )


def plan(campaign: CampaignConfig, campaign_folder: Path) -> pd.DataFrame:
    """Lay out architecture x width x sparsity x seed as a table.

    Not while a campaign works in this folder: its plan would be overwritten.
    """
    with locked(campaign_folder):
        return plan_saes(campaign.plan)


def train(
    sae_plan: pd.DataFrame,
    activations: Mapping[str, Callable[[], TensorFile]],
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    store: Path,
    checkpoints: Path,
    campaign_folder: Path,
) -> Iterator[dict[str, TensorFile]]:
    """Train every planned SAE that is not there yet; each is saved once its bank has ended."""
    from husai.sae import to_tensors

    rows = load_rows(sae_plan, activations)
    folders = CampaignFolders(store, checkpoints, campaign_folder)
    for sae_id, sae in run_campaign(sae_plan, rows, training, campaign, folders):
        yield {sae_id: TensorFile(*to_tensors(sae))}


def load_rows(
    sae_plan: pd.DataFrame, activations: Mapping[str, Callable[[], TensorFile]]
) -> dict[str, Activations]:
    """Load the activations that the plan's SAEs are trained on, by key."""
    return {key: load_activations(activations, key) for key in sorted(set(plan_keys(sae_plan)))}


def tabulate(sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]]) -> pd.DataFrame:
    """Put the plan and what was measured of each SAE into one table."""
    rows = []
    for sae_id, sae in load_saes(sae_plan, saes).items():
        rows.append({"sae_id": sae_id, **sae.metrics, "failure": sae.failure or ""})
    return sae_plan.merge(pd.DataFrame(rows), on="sae_id", validate="one_to_one")


def account(
    sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]], campaign_folder: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Tabulate what happened to every planned SAE, and add up what they took."""
    table = read_ledger(campaign_folder, sae_plan["sae_id"].tolist())
    counts = table["status"].value_counts()
    totals = {status: float(counts.get(status, 0)) for status in ("done", "failed")}
    sums = {name: float(table[name].sum()) for name in ("attempts", "seconds", "cost")}
    if table["ended"].notna().any():
        # by the clock, from the first start to the last end; what lay between counts
        sums["elapsed"] = float(table["ended"].max() - table["started"].min())
    return table, {"planned": float(len(table)), **totals, **sums}


def plot_learning_curves(
    sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]]
) -> Figure:
    """Draw loss, FVU, L0 and dead latents over training, by architecture and width."""
    from husai.figures.sae import learning_curves

    loaded = load_saes(sae_plan, saes)
    return learning_curves(
        {
            str(group): [loaded[sae_id] for sae_id in ids]
            for group, ids in sae_plan.groupby("group", sort=False)["sae_id"]
        }
    )


def load_saes(
    sae_plan: pd.DataFrame, saes: Mapping[str, Callable[[], TensorFile]]
) -> dict[str, TrainedSAE]:
    """Load the SAEs of the plan; partitions of other plans are left alone."""
    from husai.sae import from_tensors

    missing = [sae_id for sae_id in sae_plan["sae_id"] if sae_id not in saes]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(sae_plan)} planned SAEs are not trained, the first is "
            f"{missing[0]}; run the pipeline sae_training"
        )
    loaded = {}
    for sae_id in sae_plan["sae_id"]:
        file = saes[sae_id]()
        loaded[sae_id] = from_tensors(file.tensors, file.header, sae_id)
    return loaded
