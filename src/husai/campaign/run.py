"""Carry out a plan: bank after bank, keeping what is already trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from husai.activations import Activations, activation_key
from husai.campaign.plan import row_config
from husai.errors import InputError
from husai.sae import (
    BankTrainingConfig,
    TrainedSAE,
    group_into_banks,
    is_reusable,
    load_sae,
    train_bank,
)

logger = logging.getLogger(__name__)


def train_plan(
    plan: pd.DataFrame,
    activations: Mapping[str, Activations],
    training: BankTrainingConfig,
    *,
    checkpoint_dir: Path | None = None,
    store_dir: Path | None = None,
    progress: bool = True,
) -> Iterator[tuple[str, TrainedSAE, bool]]:
    """Train every SAE of a plan, in banks, and give each as soon as its bank has finished.

    Parameters
    ----------
    plan
        The table of :func:`husai.campaign.plan_saes`.
    activations
        Rows by key (hook and position) for every key in the plan.
    training
        What the SAEs share.
    checkpoint_dir
        Folder for the banks' checkpoints: an interrupted bank goes on from its last one.
    store_dir
        Folder with SAEs of earlier runs, ``<sae_id>.safetensors``. One that was trained with the
        same configuration on the same rows is given again and not trained again.
    progress
        Show a progress bar.

    Yields
    ------
    sae_id, sae, reused
        Reused ones first.
    """
    for (hook_name, position), rows_of_plan in plan.groupby(["hook_name", "position"], sort=False):
        key = activation_key(str(hook_name), int(position))
        if key not in activations:
            raise InputError(
                f"campaign.plan: no activations of '{key}'; there are: "
                f"{', '.join(sorted(activations))}"
            )
        rows = activations[key].values
        fingerprint = activations[key].fingerprint
        wanted = {str(row["sae_id"]): row_config(row) for row in rows_of_plan.to_dict("records")}
        missing = {}
        for sae_id, config in wanted.items():
            kept = _kept(store_dir, sae_id)
            if kept is not None and is_reusable(kept, config, training, fingerprint):
                yield sae_id, kept, True
            else:
                missing[sae_id] = config
        if len(missing) < len(wanted):
            logger.info(
                "%d of %d SAEs are already trained on these rows and are kept",
                len(wanted) - len(missing),
                len(wanted),
            )
        names = list(missing)
        for bank in group_into_banks(list(missing.values())):
            ids = [names[index] for index in bank]
            trained = train_bank(
                rows,
                [missing[sae_id] for sae_id in ids],
                training,
                checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / key,
                progress=progress,
            )
            for sae_id, sae in zip(ids, trained, strict=True):
                yield sae_id, sae, False


def _kept(store_dir: Path | None, sae_id: str) -> TrainedSAE | None:
    path = None if store_dir is None else store_dir / f"{sae_id}.safetensors"
    if path is None or not path.is_file():
        return None
    try:
        return load_sae(path)
    except InputError as error:
        logger.warning("%s; it is trained again", error)
        return None
