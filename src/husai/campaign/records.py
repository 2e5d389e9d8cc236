"""Records of a campaign's SAEs and of the rows that they read, gathered once for a comparison."""

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
    """The SAEs of one hook, encoded, beside the rows that they read.

    Attributes
    ----------
    rows
        The activations.
    records
        Those of the plan's SAEs that did not fail, with their codes of these rows.
    """

    rows: Activations
    records: list[SAERecord] = field(default_factory=list)

    @cached_property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance of the rows ``[d, d]``."""
        return activation_covariance(self.rows.values.numpy())


@dataclass(frozen=True)
class StudyRecords:
    """Everything that is compared in a study: each file is read once, each SAE encodes once.

    Attributes
    ----------
    plan
        The plan.
    saes
        The plan's SAEs by id, those that failed included.
    trained, untrained
        By hook of the trained model, the grid's first; and those of the model at its initial
        weights under the same hook, in groups of the same names.
    external
        SAEs from elsewhere; they read the first hook.
    """

    plan: pd.DataFrame
    saes: Mapping[str, TrainedSAE]
    trained: Mapping[str, RowsRecords]
    untrained: Mapping[str, RowsRecords]
    external: Sequence[SAERecord] = ()

    @property
    def first(self) -> RowsRecords:
        """The records of the study's own hook."""
        return next(iter(self.trained.values()))

    def record(self, sae_id: str) -> SAERecord:
        """Give one SAE's record."""
        everything = (one for hook in self.trained.values() for one in hook.records)
        return next(record for record in everything if record.id == sae_id)


def gather_records(
    plan: pd.DataFrame,
    saes: TensorFiles,
    external: Mapping[str, Sequence[SAERecord]],
    activations: TensorFiles,
    config: ConsistencyConfig | None = None,
) -> StudyRecords:
    """Read every SAE and all rows of a plan, encode the rows, and ask who has settled.

    Parameters
    ----------
    plan, saes, external, activations
        The plan, its SAEs, those from elsewhere by group, and the rows.
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
    """Name the activations of the trained model that a plan reads, the grid's first."""
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
    """Say of each SAE whether it has settled, from the decoders that training kept on the way.

    Parameters
    ----------
    records
        Of one hook and model.
    saes
        The SAEs by id.
    config
        ``gate_motion`` and ``gate_change``.

    Returns
    -------
    list
        The records with ``converged``, ``motion`` and ``plateau``; None in a group whose SAEs kept
        fewer than two decoders before the learning rate fell.
    """
    found = {}
    for members in group_members(records).values():
        gate = _ask([saes[record.id] for record in members], config)
        if gate.step is None:
            logger.warning(
                "%s: whether it has settled is not known: %s", members[0].group_name, gate.reason
            )
        for record, motion, settled in zip(members, gate.motion, gate.settled, strict=True):
            found[record.id] = replace(
                record, converged=settled, motion=motion, plateau=gate.plateau
            )
    return [found[record.id] for record in records]


def gated_flags(
    plan: pd.DataFrame, saes: Mapping[str, TrainedSAE], config: ConsistencyConfig
) -> dict[str, bool | None]:
    """Say of each of a plan's SAEs that did not fail whether it has settled; None when unknown."""
    found: dict[str, bool | None] = {}
    for _, part in plan.groupby("group", sort=False):
        ids = [one for one in part["sae_id"] if one in saes and saes[one].failure is None]
        if ids:
            gate = _ask([saes[one] for one in ids], config)
            found |= dict(zip(ids, gate.settled, strict=True))
    return found


def _ask(saes: Sequence[TrainedSAE], config: ConsistencyConfig) -> Gate:
    """Ask the gate of the SAEs of one group."""
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
    """Give an SAE's decoders by training step; none where none were kept on the way."""
    kept = {step: W.numpy() for step, W in sae.snapshots.items()}
    last = int(sae.history["step"].iloc[-1]) if len(sae.history) else 0
    return {0: sae.W_dec_init.numpy(), **kept, last: sae.W_dec.numpy()} if kept else {}


def example_saes(study: StudyRecords) -> dict[str, str]:
    """Choose an SAE of each architecture's narrowest and widest group: its id by the group's name.

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
    """Say which rows of a plan differ from the grid in architecture, width and sparsity alone."""
    grid = plan[plan["variant"] == ""]
    if grid.empty:
        return pd.Series(True, plan.index)
    own = {"sae_id", "group", "group_digest", "seed", "variant", "architecture", "d_sae", "k"}
    own |= {"l1_coefficient", "l0_coefficient", "init_seed", "data_seed"}
    same = [column for column in plan if column not in own]
    known = {tuple(map(str, row)) for row in grid[same].to_numpy()}
    return pd.Series([tuple(map(str, row)) in known for row in plan[same].to_numpy()], plan.index)
