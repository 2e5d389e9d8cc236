"""Prepares the training of a plan: finds missing SAEs, makes banks and chooses the executor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.activations import Activations, activation_key
from husai.campaign.banks import Bank, RowsInfo, adopt_banks, make_banks
from husai.campaign.config import CampaignConfig
from husai.campaign.executors import Progress, make_executor
from husai.campaign.executors.tasks import MACHINE_ERRORS, broken
from husai.campaign.folders import CampaignFolders
from husai.campaign.plan import records, row_config, row_training
from husai.campaign.store import Store, about_campaign
from husai.errors import CampaignStopped, InputError
from husai.memory import check_memory
from husai.sae.config import BankTrainingConfig, SAEConfig

if TYPE_CHECKING:
    from husai.campaign.executors import Executor

logger = logging.getLogger(__name__)


@contextmanager
def stopped_by_the_machine() -> Iterator[None]:
    """Report a full or broken disk as the reason why the campaign stopped.

    Raises
    ------
    CampaignStopped
        Instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        raise CampaignStopped(
            f"{broken(error).reason}; fix this and start the campaign again: it continues"
        ) from error


def planned_banks(
    plan: pd.DataFrame, activations: Mapping[str, Activations], training: BankTrainingConfig
) -> list[Bank]:
    """Return the plan's SAEs as one bank for each combination of training parameters and rows.

    The SAEs of such a bank may have different shapes.

    Raises
    ------
    InputError
        When rows are missing or cannot be trained on.
    """
    from husai.sae.rows import fits, rows_fingerprint

    groups: dict[tuple[str, str], Bank] = {}
    for row in records(plan):
        key = activation_key(row["hook_name"], row["position"], row["model"])
        if key not in activations:
            raise InputError(
                f"campaign.plan: no activations of '{key}'; choose from "
                f"{', '.join(sorted(activations))}"
            )
        own = row_training(row, training)
        group = (key, own.model_dump_json())
        if group not in groups:
            found = activations[key]
            values, store = found.training_rows, found.store
            own = fitting_batch(own, len(values), key)
            rows = RowsInfo(
                key,
                len(values),
                found.values.shape[1],
                rows_fingerprint(values, own),
                buffered_gb=0.0 if store is None or fits(store, own) else own.rows_memory_gb,
            )
            groups[group] = Bank((), (), own, rows)
        bank = groups[group]
        groups[group] = replace(
            bank, ids=(*bank.ids, row["sae_id"]), configs=(*bank.configs, row_config(row))
        )
    return list(groups.values())


def fitting_batch(training: BankTrainingConfig, n_rows: int, key: str) -> BankTrainingConfig:
    """Reduce the batch size to the number of training rows if there are fewer rows than that."""
    from husai.sae.rows import count_held_out

    there = n_rows - count_held_out(n_rows, training)
    if not 0 < there < training.batch_size:
        return training
    logger.warning(
        "%s has %d rows to train on: a batch has all of these, not sae_training.batch_size = %d",
        *(key, there, training.batch_size),
    )
    return training.model_copy(update={"batch_size": there})


@dataclass(frozen=True)
class Found:
    """The planned SAEs that are in the store, and those that are missing.

    Attributes
    ----------
    groups
        The planned SAEs; ``wanted`` are those that are missing.
    kept
        Names of those in the store.
    failed
        Those in the store as failures, with the reason.
    unfit
        Those whose file is damaged or does not fit the plan, with the reason.
    about
        For those in the store, the information in their files about the campaign that trained
        them.
    """

    groups: list[Bank]
    kept: list[str]
    failed: dict[str, str]
    unfit: dict[str, str]
    about: dict[str, dict[str, Any]] = field(default_factory=dict)


def find_missing(groups: list[Bank], store: Store) -> Found:
    """Look for the SAEs of :func:`planned_banks` in the store."""
    found = Found([], [], {}, {})
    for group in groups:
        missing = set()
        for sae_id, config in zip(group.ids, group.configs, strict=True):
            sae, problem = store.look(sae_id, config, group.training, group.rows.fingerprint)
            if sae is None:
                missing.add(sae_id)
                if problem is not None:
                    found.unfit[sae_id] = problem
                continue
            found.about[sae_id] = about_campaign(sae)
            if sae.failure is None:
                found.kept.append(sae_id)
            else:
                found.failed[sae_id] = sae.failure
        found.groups.append(replace(group, wanted=frozenset(missing)))
    return found


def missing_banks(
    groups: list[Bank], campaign: CampaignConfig, folders: CampaignFolders, slots: int
) -> list[Bank]:
    """Group the missing SAEs into banks; interrupted banks continue unchanged and come first."""
    interrupted: list[Bank] = []
    fresh: list[tuple[str, SAEConfig, Bank]] = []
    for group in groups:
        adopted = adopt_banks(folders.checkpoints, group)
        interrupted += adopted
        taken = {sae_id for bank in adopted for sae_id in bank.wanted}
        fresh += [
            (sae_id, config, group)
            for sae_id, config in zip(group.ids, group.configs, strict=True)
            if sae_id in group.wanted and sae_id not in taken
        ]
    if interrupted:
        logger.info("%d interrupted banks continue from their checkpoints", len(interrupted))
    banks = interrupted + make_banks(
        [sae_id for sae_id, _, _ in fresh],
        [config for _, config, _ in fresh],
        [group.training for _, _, group in fresh],
        [group.rows for _, _, group in fresh],
        slots=slots,
        max_bytes=campaign.compute.bank_memory_gb * 1e9,
    )
    check_room(banks, campaign, slots)
    return banks


def check_room(banks: list[Bank], campaign: CampaignConfig, slots: int) -> None:
    """Refuse banks that together need more memory than this machine has.

    The memory of a cluster or a GPU is not known here and is not checked.

    Raises
    ------
    InputError
        With the names of the fields to change.
    """
    import torch

    on_cpu = not torch.cuda.is_available() or {bank.training.device for bank in banks} == {"cpu"}
    if campaign.compute.backend == "local" and on_cpu:
        largest = sorted((bank.bytes for bank in banks), reverse=True)[:slots]
        check_memory(
            sum(largest),
            f"campaign.compute: {len(largest)} banks at once",
            "lower campaign.compute.processes or campaign.compute.bank_memory_gb",
        )


def executor_for(
    groups: list[Bank],
    campaign: CampaignConfig,
    folders: CampaignFolders,
    on_progress: Callable[[Progress], None],
) -> Executor:
    """Make the executor that trains the missing SAEs."""
    devices = {group.training.device for group in groups}
    return make_executor(
        campaign.compute,
        work=sum(group.part([i for i in group.ids if i in group.wanted]).work for group in groups),
        device="cpu" if devices == {"cpu"} else "auto",
        checkpoints=folders.checkpoints,
        on_progress=on_progress,
    )


def put_rows(banks: list[Bank], executor: Executor, activations: Mapping[str, Activations]) -> None:
    """Give the workers the rows that the banks are trained on.

    Raises
    ------
    CampaignStopped
        When there is no space for them.
    InputError
        When rows on disk have changed since they were written.
    """
    for key in sorted({bank.rows.key for bank in banks}):
        found = activations[key]
        if found.store is not None:  # checked once here, not when training reads the shards
            found.store.verify()
        try:
            executor.put(key, found.training_rows)
        except OSError as error:
            # numpy's error has no errno; it says how much of an array was written
            raise CampaignStopped(
                f"the rows of '{key}' cannot be given to the workers: {error}; fix this and "
                "start the campaign again: it continues"
            ) from error
