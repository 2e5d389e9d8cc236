"""Reads a campaign's SAEs and activations, once, as records for the comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from husai.activations import Activations, load_activations
from husai.campaign.plan import UNTRAINED, plan_keys
from husai.consistency import (
    ConsistencyConfig,
    Gate,
    SAERecord,
    activation_covariance,
    convergence_gate,
    decay_start,
    with_codes,
)
from husai.consistency.scores.codes import sparse_codes
from husai.consistency.study.record import group_members
from husai.errors import InputError
from husai.sae.trained import TrainedSAE, load_trained
from husai.storage import TensorFiles

logger = logging.getLogger(__name__)

BLOCK_ROWS = 4096


@dataclass(frozen=True)
class RowsRecords:
    """The SAEs of one hook and the activations that they read.

    Attributes
    ----------
    rows
        The activations.
    records
        The plan's SAEs at this hook that did not fail, with their codes of these rows.
    """

    rows: Activations
    records: list[SAERecord] = field(default_factory=list)

    @cached_property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the rows ``[d, d]``."""
        return activation_covariance(self.rows.values.numpy())


@dataclass(frozen=True)
class StudyRecords:
    """Everything that is compared in a study; each file is read once, each SAE encodes once.

    Attributes
    ----------
    plan
        The plan.
    saes
        The plan's SAEs by id, also those that failed.
    trained, untrained
        The SAEs by hook, the hook of the grid first: those of the trained model, and those of the
        model at its initial weights, whose groups have the same names.
    external
        SAEs that were not trained here; they read the first hook.
    """

    plan: pd.DataFrame
    saes: Mapping[str, TrainedSAE]
    trained: Mapping[str, RowsRecords]
    untrained: Mapping[str, RowsRecords]
    external: Sequence[SAERecord] = ()

    @property
    def first(self) -> RowsRecords:
        """The records of the study's main hook."""
        return next(iter(self.trained.values()))

    def record(self, sae_id: str) -> SAERecord:
        """Return the record of one SAE."""
        everything = (one for hook in self.trained.values() for one in hook.records)
        return next(record for record in everything if record.id == sae_id)


def gather_records(
    plan: pd.DataFrame,
    saes: TensorFiles,
    external: Mapping[str, Sequence[SAERecord]],
    activations: TensorFiles,
    config: ConsistencyConfig | None = None,
) -> StudyRecords:
    """Read all SAEs and activations of a plan, encode the rows, and apply the gate.

    Parameters
    ----------
    plan, saes, external, activations
        The plan, its SAEs, external SAEs by group, and the activations.
    config
        Thresholds of the convergence gate; the defaults when None.

    Raises
    ------
    InputError
        When an SAE or a hook's activations are missing.
    """
    keys = pd.Series(plan_keys(plan), index=plan.index)
    loaded = load_trained(saes, plan["sae_id"].tolist())

    def at(key: str) -> RowsRecords:
        rows = load_activations(activations, key)
        found = _records(plan[keys == key], loaded, rows.values)
        return RowsRecords(rows, gated(found, loaded, config or ConsistencyConfig()))

    hooks = study_hooks(plan)
    trained = {hook: at(hook) for hook in hooks}
    before = {hook: f"{hook}@untrained" for hook in hooks}
    untrained = {hook: at(key) for hook, key in before.items() if (keys == key).any()}
    values = trained[hooks[0]].rows.values.numpy()
    others = [
        with_codes(
            replace(sae, id=f"{group}: {sae.id}", group=group, architecture="external", seed=seed),
            values,
        )
        for group, members in external.items()
        for seed, sae in enumerate(members)
    ]
    return StudyRecords(plan, loaded, trained, untrained, others)


def study_hooks(plan: pd.DataFrame) -> list[str]:
    """Return the hooks of the trained model that a plan reads, that of the grid first."""
    trained = plan[plan["model"] == "trained"]
    return list(dict.fromkeys(plan_keys(trained.sort_values("variant", kind="stable"))))


def _records(
    plan: pd.DataFrame, loaded: Mapping[str, TrainedSAE], rows: torch.Tensor
) -> list[SAERecord]:
    found = []
    for row in plan[["sae_id", "group", "seed"]].itertuples(index=False):
        sae = loaded[str(row.sae_id)]
        if sae.failure is not None:
            continue
        found.append(
            SAERecord(
                id=str(row.sae_id),
                group=str(row.group).removesuffix(UNTRAINED),
                architecture=sae.config.architecture,
                seed=int(row.seed),  # type: ignore[arg-type]
                k=sae.config.k,
                l1_coefficient=sae.config.l1_coefficient,
                W_dec=sae.W_dec.numpy(),
                W_enc=sae.W_enc.numpy(),
                W_dec_init=sae.W_dec_init.numpy(),
                firing_rate=sae.density.numpy(),
                codes=sparse_codes(_code_blocks(sae, rows)),
                cosine_to_init=sae.metrics["cosine_to_init"],
                l0=sae.metrics["l0"],
                fvu=sae.metrics["fvu"],
            )
        )
    return found


def gated(
    records: Sequence[SAERecord], saes: Mapping[str, TrainedSAE], config: ConsistencyConfig
) -> list[SAERecord]:
    """Add to each record whether the SAE has settled, from decoders saved during training.

    Parameters
    ----------
    records
        The SAEs of one hook and model.
    saes
        The SAEs by id.
    config
        ``gate_motion`` and ``gate_change``.

    Returns
    -------
    list
        The records with ``converged``, ``motion`` and ``plateau``; None in a group with fewer than
        two saved decoders before the learning rate fell.
    """
    found = {}
    for members in group_members(records).values():
        gate = _group_gate([saes[record.id] for record in members], config)
        if gate.step is None:
            logger.warning(
                "%s: not known whether it has settled: %s", members[0].group_name, gate.reason
            )
        for record, motion, settled in zip(members, gate.motion, gate.settled, strict=True):
            found[record.id] = replace(
                record, converged=settled, motion=motion, plateau=gate.plateau
            )
    return [found[record.id] for record in records]


def gated_flags(
    plan: pd.DataFrame, saes: Mapping[str, TrainedSAE], config: ConsistencyConfig
) -> dict[str, bool | None]:
    """Return for each of a plan's SAEs whether it has settled, None when unknown.

    SAEs that failed are left out.
    """
    found: dict[str, bool | None] = {}
    for _, part in plan.groupby("group", sort=False):
        ids = [one for one in part["sae_id"] if one in saes and saes[one].failure is None]
        if ids:
            gate = _group_gate([saes[one] for one in ids], config)
            found |= dict(zip(ids, gate.settled, strict=True))
    return found


def _group_gate(saes: Sequence[TrainedSAE], config: ConsistencyConfig) -> Gate:
    """Apply the gate to the SAEs of one group."""
    return convergence_gate(
        [sae.snapshots for sae in saes],
        decay_start(saes[0].provenance["training"]),
        live=[sae.density.numpy() > 0 for sae in saes],
        least_motion=config.gate_motion,
        least_change=config.gate_change,
    )


def _code_blocks(sae: TrainedSAE, rows: torch.Tensor) -> Iterator[NDArray[Any]]:
    for block in torch.split(rows, BLOCK_ROWS):
        yield sae.encode(block).numpy()


def decoders_by_step(sae: TrainedSAE) -> dict[int, NDArray[Any]]:
    """Return an SAE's decoders by training step; empty if none were saved during training."""
    kept = {step: W.numpy() for step, W in sae.snapshots.items()}
    last = int(sae.history["step"].iloc[-1]) if len(sae.history) else 0
    return {0: sae.W_dec_init.numpy(), **kept, last: sae.W_dec.numpy()} if kept else {}


def example_saes(study: StudyRecords) -> dict[str, str]:
    """Choose one SAE of the narrowest and of the widest group of each architecture.

    Returns
    -------
    dict
        Id of the SAE by name of the group.

    Raises
    ------
    InputError
        When every SAE of the study failed.
    """
    keys = pd.Series(plan_keys(study.plan), index=study.plan.index)
    own = study.plan[keys == next(iter(study.trained))]
    own = own[own["variant"] == ""] if (own["variant"] == "").any() else own
    picked: dict[str, str] = {}
    for _, part in own.groupby("architecture", sort=False):
        for width in sorted({part["d_sae"].min(), part["d_sae"].max()}):
            for group, members in part[part["d_sae"] == width].groupby("group", sort=False):
                whole = [i for i in members["sae_id"] if study.saes[i].failure is None]
                if str(group) not in picked and whole:
                    picked[str(group)] = whole[0]
                    break
    if not picked:
        raise InputError("campaign.plan: every SAE of the study failed; nothing to draw")
    return picked


def plain_settings(plan: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows of a plan differ from the grid only in architecture, width and sparsity."""
    grid = plan[plan["variant"] == ""]
    if grid.empty:
        return pd.Series(True, plan.index)
    own = {"sae_id", "group", "group_digest", "seed", "variant", "architecture", "d_sae", "k"}
    own |= {"l1_coefficient", "l0_coefficient", "init_seed", "data_seed"}
    same = [column for column in plan if column not in own]
    known = {tuple(map(str, row)) for row in grid[same].to_numpy()}
    return pd.Series([tuple(map(str, row)) in known for row in plan[same].to_numpy()], plan.index)
