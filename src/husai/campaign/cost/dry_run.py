"""The dry run: estimates the time, memory and cost of a campaign without training it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import pandas as pd

from husai.activations import Activations
from husai.campaign.config import CampaignConfig
from husai.campaign.cost.budget import Budget
from husai.campaign.cost.estimates import Estimates
from husai.campaign.cost.measure import calibrations_for, measure_banks
from husai.campaign.executors import check_backend
from husai.campaign.folders import LEDGER, QUARANTINE, CampaignFolders
from husai.campaign.ledger import Ledger
from husai.campaign.preparation import (
    executor_for,
    find_missing,
    missing_banks,
    planned_banks,
    put_rows,
    stopped_by_the_machine,
)
from husai.campaign.progress_view import duration
from husai.campaign.store import Store
from husai.sae.config import BankTrainingConfig

BUSY = 1.2
"""Above this load per core the dry run says that its measured times are too long."""


def estimate_campaign(
    plan: pd.DataFrame,
    activations: Mapping[str, Activations],
    training: BankTrainingConfig,
    campaign: CampaignConfig,
    folders: CampaignFolders,
) -> tuple[pd.DataFrame, str]:
    """Estimate the time, memory and cost of a plan's missing SAEs, without training any.

    Each shape of bank is trained for a moment on the executor that would train it. Measurements
    are kept, so that a second dry run, or a budget, does not repeat them. The ledger does not
    change: it does not count the time of a dry run.

    Parameters
    ----------
    plan, activations, training, campaign, folders
        As for :func:`husai.campaign.run_campaign`.

    Returns
    -------
    table
        One row per bank, in the order of submission: ``bank``, ``architecture``, ``d_sae``,
        ``saes``, ``activations``, ``steps``, ``seconds``, ``memory_mb`` (the measured peak of
        its process, or on its GPU), ``cost``.
    text
        The table and its totals as text: wall-clock time with as many banks at once as there are
        slots, cost, and whether limits would be reached, earlier starts included.

    Raises
    ------
    CampaignStopped
        When the machine fails, for example with a full disk.
    """
    check_backend(campaign.compute)
    store = Store(folders.store, folders.campaign / QUARANTINE)
    found = find_missing(planned_banks(plan, activations, training), store)
    executor = executor_for(found.groups, campaign, folders, lambda progress: None)
    try:
        banks = missing_banks(found.groups, campaign, folders, executor.slots)
        calibrations = calibrations_for(executor, campaign, folders)
        with stopped_by_the_machine():
            put_rows(banks, executor, activations)
            measure_banks(banks, executor, calibrations, campaign.compute.max_retries)
        slots, devices = executor.slots, executor.devices
    finally:
        executor.close()
    estimates = Estimates(folders.checkpoints, calibrations)
    loads = [known.load for bank in banks if (known := estimates.known(bank)) and known.load]
    estimates.complete(banks)
    spent = Ledger(folders.campaign / LEDGER).cost()
    budget = Budget(campaign.budget, devices, spent)
    rows = []
    for bank in banks:
        seconds = estimates.seconds(bank)
        calibration = estimates.known(bank)
        rows.append(
            {
                "bank": bank.name,
                "architecture": bank.configs[0].architecture,
                "d_sae": bank.configs[0].d_sae,
                "saes": len(bank.wanted),
                "activations": bank.rows.key,
                "steps": bank.training.steps,
                "seconds": seconds,
                "memory_mb": (calibration.peak_bytes if calibration else bank.bytes) / 1e6,
                "cost": budget.cost(seconds),
            }
        )
    columns = ["bank", "architecture", "d_sae", "saes", "activations", "steps"]
    table = pd.DataFrame(rows, columns=[*columns, "seconds", "memory_mb", "cost"])
    text = _text(table, campaign, len(plan), len(found.kept), slots, spent)
    if max(loads, default=0.0) > BUSY:
        text += (
            f"\nmeasured with up to {max(loads):.1f} running processes per core: an idle machine "
            "takes less time; measure again with --params campaign.compute.measure_again=true"
        )
    return table, text


def clock_seconds(seconds: list[float], slots: int) -> float:
    """Wall-clock time of banks when each free slot takes the next bank of the list."""
    ends = [0.0] * slots
    for each in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return max(ends)


def _text(
    table: pd.DataFrame,
    campaign: CampaignConfig,
    planned: int,
    kept: int,
    slots: int,
    spent: float,
) -> str:
    budget = campaign.budget
    shown = table.assign(
        time=[duration(seconds) for seconds in table["seconds"]],
        memory=[f"{mb:.0f} MB" for mb in table["memory_mb"]],
        cost=[f"{cost:.4f}" for cost in table["cost"]],
    )[["bank", "architecture", "d_sae", "saes", "activations", "steps", "time", "memory", "cost"]]
    clock = clock_seconds(table["seconds"].tolist(), slots)
    memory = sum(sorted(table["memory_mb"], reverse=True)[:slots])
    cost = float(table["cost"].sum())
    lines = [
        f"Campaign {campaign.name}: {planned} SAEs planned, {kept} trained already, "
        f"{int(table['saes'].sum())} to train in {len(table)} banks",
        "",
        shown.to_string(index=False) if len(table) else "(nothing to train)",
        "",
        f"{campaign.compute.backend}, {slots} banks at once: about {duration(clock)}, at most "
        f"{memory:.0f} MB together, {cost:.4f} {budget.currency} at {budget.rate:g} "
        f"{budget.currency} per device-hour",
    ]
    if spent:
        lines.append(f"{spent:.4f} {budget.currency} were spent before")
    if budget.max_cost is not None and spent + cost > budget.max_cost:
        lines.append(f"budget.max_cost = {budget.max_cost:g} would stop it before its end")
    if budget.max_hours is not None and clock / 3600 > budget.max_hours:
        lines.append(f"budget.max_hours = {budget.max_hours:g} would stop it before its end")
    return "\n".join(lines)
