"""Measures the cost of banks on the executor that would train them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from husai.campaign.banks import Bank
from husai.campaign.config import CampaignConfig
from husai.campaign.cost.calibrations import Calibrations
from husai.campaign.executors import POLL_SECONDS, Lost, Progress
from husai.campaign.executors.outcomes import Broken, Calibration
from husai.campaign.folders import CALIBRATIONS, CampaignFolders
from husai.errors import CampaignStopped
from husai.progress import progress_bar, step

if TYPE_CHECKING:
    from husai.campaign.executors import Executor

logger = logging.getLogger(__name__)


def calibrations_for(
    executor: Executor, campaign: CampaignConfig, folders: CampaignFolders
) -> Calibrations:
    """Open the file of costs measured on this executor."""
    return Calibrations(
        folders.campaign / CALIBRATIONS,
        campaign.compute.backend,
        executor.devices,
        forget=campaign.compute.measure_again,
    )


def measure_banks(
    banks: list[Bank],
    executor: Executor,
    calibrations: Calibrations,
    max_retries: int,
    spent: Callable[[Bank, float], None] = lambda bank, seconds: None,
) -> None:
    """Measure the cost of every shape of bank that was not measured before.

    A bank that cannot be measured is left out: its training will show what is wrong, and fail only
    the SAE that causes it.

    Parameters
    ----------
    banks, executor
        The banks to be trained, and the executor that will train them.
    calibrations
        The file that keeps the measurements.
    max_retries
        How often the measurement of a bank is started again after its worker was lost.
    spent
        Called with each bank and the seconds that its measurement took, also if it failed.

    Raises
    ------
    CampaignStopped
        When the machine fails, for example with a full disk.
    """
    waiting: dict[str, Bank] = {}
    for bank in banks:
        if calibrations.get(bank) is None:
            # one bank for each key: banks of equal cost have the same key
            waiting.setdefault(calibrations.key(bank), bank)
    todo = list(waiting.values())
    out: dict[str, Bank] = {}
    begun: dict[str, float] = {}
    losses: dict[str, int] = {}
    said: dict[str, ExitStack] = {}
    with (
        progress_bar(len(todo), "measure banks", "shape", disable=not todo) as bar,
        ExitStack() as at_work,
    ):
        while todo or out:
            while todo and executor.room > 0:
                bank = todo.pop()
                out[bank.name] = bank
                said[bank.name] = at_work.enter_context(ExitStack())
                shape = f"{bank.configs[0].architecture} d{bank.configs[0].d_sae}"
                said[bank.name].enter_context(step(f"measuring {shape}"))
                executor.submit(bank, measure=True)
            for event in executor.wait(POLL_SECONDS):
                if event.name not in out:
                    continue
                if isinstance(event, Progress):
                    begun.setdefault(event.name, time.monotonic())
                    continue
                bank = out.pop(event.name)
                said.pop(event.name).close()
                since = begun.pop(event.name, None)
                reason = None
                if isinstance(event, Lost):
                    spent(bank, 0.0 if since is None else time.monotonic() - since)
                    losses[bank.name] = losses.get(bank.name, 0) + 1
                    if losses[bank.name] <= max_retries:
                        logger.warning("%s: bank %s is measured again", event.reason, bank.name)
                        todo.append(bank)
                        continue
                    reason = event.reason
                elif isinstance(event.result, Calibration):
                    spent(bank, event.result.measuring)
                    calibrations.put(bank, event.result)
                elif isinstance(event.result, Broken):
                    spent(bank, event.result.seconds)
                    reason = event.result.reason
                    if event.result.kind == "machine":
                        raise CampaignStopped(
                            f"measuring {bank.ids[0]}: {reason}; fix this and start the "
                            "campaign again: it continues"
                        )
                if reason is not None:
                    logger.warning(
                        "measuring %s: %s; its cost is estimated from the other banks",
                        bank.ids[0],
                        reason,
                    )
                bar.update()
