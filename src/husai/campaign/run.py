"""Carry out a plan: bank after bank, keeping what is already trained."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from husai import __version__
from husai.activations import Activations
from husai.campaign.plan import plan_keys, records, row_config
from husai.errors import InputError
from husai.sae.config import BankTrainingConfig, SAEConfig

if TYPE_CHECKING:
    from husai.sae import TrainedSAE

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
    from husai.sae import group_into_banks, train_bank
    from husai.sae.train import prepare_rows

    for key, rows_of_plan in plan.groupby(pd.Series(plan_keys(plan), plan.index), sort=False):
        if key not in activations:
            raise InputError(
                f"campaign.plan: no activations of '{key}'; there are: "
                f"{', '.join(sorted(activations))}"
            )
        rows = activations[key].values
        fingerprint = prepare_rows(rows, None, training).fingerprint
        wanted = {row["sae_id"]: row_config(row) for row in records(rows_of_plan)}
        missing = {}
        for sae_id, config in wanted.items():
            kept = _kept(store_dir, sae_id)
            if kept is not None and is_same(kept, config, training, fingerprint):
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
            folder = None
            if checkpoint_dir is not None:
                folder = checkpoint_dir / _bank_name(ids, training, fingerprint)
            configs = [missing[sae_id] for sae_id in ids]
            trained = train_bank(rows, configs, training, checkpoint_dir=folder, progress=progress)
            for sae_id, sae in zip(ids, trained, strict=True):
                provenance = {**sae.provenance, "husai": __version__}
                yield sae_id, replace(sae, provenance=provenance), False
            # the consumer has saved them all by now
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def is_same(
    sae: TrainedSAE, config: SAEConfig, training: BankTrainingConfig, fingerprint: str
) -> bool:
    """Whether a SAE is what training this configuration on these rows would give."""
    return (
        sae.failure is None
        and sae.config == config
        and sae.provenance.get("training") == training.model_dump(mode="json")
        and sae.provenance.get("rows", {}).get("fingerprint") == fingerprint
        and sae.provenance.get("husai") == __version__
    )


def _bank_name(ids: Sequence[str], training: BankTrainingConfig, fingerprint: str) -> str:
    content = json.dumps([list(ids), training.model_dump(mode="json"), fingerprint])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _kept(store_dir: Path | None, sae_id: str) -> TrainedSAE | None:
    from husai.sae import load_sae

    path = None if store_dir is None else store_dir / f"{sae_id}.safetensors"
    if path is None or not path.is_file():
        return None
    try:
        return load_sae(path)
    except InputError as error:
        logger.warning("%s; it is trained again", error)
        return None
