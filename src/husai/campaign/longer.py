"""Trains a random part of the SAEs again for longer, to check the gate: did any of them change?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.campaign.config import LongerConfig
from husai.campaign.plan import records, row_training
from husai.campaign.records import gated_flags
from husai.consistency import pw_mcc
from husai.consistency.config import LEAST_CHANGE, ConsistencyConfig
from husai.consistency.scores.rows import row_cosines
from husai.errors import InputError
from husai.sae.config import BankTrainingConfig
from husai.sae.trained import TrainedSAE

SETTLED_COSINE = 0.95
"""Least mean |cosine| between the features of a settled SAE and those after longer training."""


def longer_plan(
    plan: pd.DataFrame, training: BankTrainingConfig, config: LongerConfig
) -> pd.DataFrame:
    """Choose a random part of a plan's SAEs, to be trained with the same seeds for longer.

    Parameters
    ----------
    plan
        The plan.
    training
        The training parameters of all SAEs; a row of the plan may change some of them.
    config
        How many SAEs, and how long.

    Returns
    -------
    pandas.DataFrame
        Rows of the plan with other ids and more steps; ``short_id`` is the id in the plan.

    Raises
    ------
    InputError
        When the plan has no SAE of the trained model.
    """
    own = plan[plan["model"] == "trained"]
    if own.empty:
        raise InputError("sae_plan: no SAE of the trained model to train for longer")
    n = ceil(config.share * len(own))
    chosen = own.iloc[np.sort(np.random.default_rng(config.seed).permutation(len(own))[:n])]
    rows = []
    for row in records(chosen):
        steps = round(config.factor * row_training(row, training).steps)
        overrides = {**json.loads(str(row["training"])), "steps": steps}
        rows.append(
            {
                **row,
                "sae_id": f"{row['sae_id']}-{steps}-steps",
                "short_id": row["sae_id"],
                "training": json.dumps(overrides, sort_keys=True),
            }
        )
    return pd.DataFrame(rows)


def moved_table(
    plan: pd.DataFrame,
    longer: pd.DataFrame,
    saes: Mapping[str, TrainedSAE],
    longer_saes: Mapping[str, TrainedSAE],
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Say which SAEs moved when they were trained for longer, and whether they passed the gate.

    An SAE moved if its features changed (mean |cosine| of live features with those after longer
    training below :data:`SETTLED_COSINE`), or if its mean PW-MCC with the other seeds of its
    group, which are not trained longer, changed by ``LEAST_CHANGE`` or more.

    Parameters
    ----------
    plan, longer
        The plan, and the table from :func:`longer_plan`.
    saes, longer_saes
        Their SAEs by id; those that failed are left out.
    config
        Thresholds of the gate.

    Returns
    -------
    pandas.DataFrame
        A row per SAE trained again: ``sae_id`` (in the plan), ``group``, ``converged`` (by the
        gate), ``steps`` (of the longer training), ``own_cosine``, ``pw_mcc``, ``pw_mcc_longer``
        (missing without another seed), ``moved``.
    """
    flags = gated_flags(plan, saes, config)
    rows: list[dict[str, Any]] = []
    for row in records(longer):
        short_id, sae_id = str(row["short_id"]), str(row["sae_id"])
        short, long = saes[short_id], longer_saes[sae_id]
        if short.failure is not None or long.failure is not None:
            continue
        live = (short.density > 0) & (long.density > 0)
        own = None
        if bool(live.any()):
            cosines = row_cosines(short.W_dec[live].numpy(), long.W_dec[live].numpy())
            own = float(np.abs(cosines).mean())
        group = plan.loc[plan["group"] == row["group"], "sae_id"]
        others = [
            _live(saes[one]) for one in group if one != short_id and saes[one].failure is None
        ]
        scores = [_mean_score(_live(sae), others) for sae in (short, long)]
        change = None if None in scores else abs(scores[1] - scores[0])  # type: ignore[operator]
        rows.append(
            {
                "sae_id": short_id,
                "group": row["group"],
                "converged": flags[short_id],
                "steps": json.loads(str(row["training"]))["steps"],
                "own_cosine": own,
                "pw_mcc": scores[0],
                "pw_mcc_longer": scores[1],
                "moved": own is None
                or own < SETTLED_COSINE
                or (change is not None and change >= LEAST_CHANGE),
            }
        )
    columns = ["sae_id", "group", "converged", "steps", "own_cosine", "pw_mcc", "pw_mcc_longer"]
    table = pd.DataFrame(rows, columns=[*columns, "moved"])
    table["converged"] = table["converged"].astype("boolean")
    return table


def _live(sae: TrainedSAE) -> NDArray[Any]:
    rows: NDArray[Any] = sae.W_dec[sae.density > 0].numpy()
    return rows


def _mean_score(W: NDArray[Any], others: list[NDArray[Any]]) -> float | None:
    known = [other for other in others if len(other)]
    if not len(W) or not known:
        return None
    return float(np.mean([pw_mcc(W, other) for other in known]))


def moved_text(table: pd.DataFrame) -> str:
    """Say how many SAEs moved, in one line."""
    if table.empty:
        return "no SAE could be trained for longer"
    passed = table[table["converged"].fillna(False).astype(bool)]
    return (
        f"{int(table['moved'].sum())} of {len(table)} SAEs moved when they were trained for "
        f"longer; of the {len(passed)} that pass the gate, {int(passed['moved'].sum())}"
    )
