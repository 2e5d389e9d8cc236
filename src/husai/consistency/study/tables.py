"""Makes the tables beside the report: training, settings, orderings and correlates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from husai.consistency.analyses.curves import (
    against_width,
    consistency_over_training,
    published_orders,
)
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import mean_interval
from husai.consistency.inference.ranks import rank_correlation
from husai.consistency.scores.score import CLAIM_KINDS
from husai.consistency.study.beside import BESIDE
from husai.consistency.study.matched import FOLLOWED, orders_in_contrasts
from husai.consistency.study.record import (
    SAERecord,
    all_converged,
    group_settings,
    live_latents,
)
from husai.threads import worker_pool

Row = dict[str, Any]


def trajectory_table(
    members: Mapping[str, Sequence[SAERecord]],
    decoders: Callable[[SAERecord], Mapping[int, ArrayLike]],
    nulls: Mapping[str, Mapping[str, float]],
    config: ConsistencyConfig,
) -> pd.DataFrame:
    """Follow the agreement between the seeds of every group over their training.

    Parameters
    ----------
    members
        SAEs by name of their group.
    decoders
        Returns the decoders ``[d_sae, d]`` of an SAE by step.
    nulls
        For each group, the means of its nulls of PW-MCC by kind, as in the report.
    config
        Level, threads.

    Returns
    -------
    pandas.DataFrame
        A row per group and step, as :func:`husai.consistency.consistency_over_training`, with
        ``group``, ``architecture``, ``d_sae``, ``converged``; a row with a ``reason`` where a
        group's decoders were not kept or it has one seed only.
    """

    def one(item: tuple[str, Sequence[SAERecord]]) -> pd.DataFrame:
        name, records = item
        head = group_settings(name, records)
        kept = [decoders(record) for record in records]
        steps = sorted(set.intersection(*(set(own) for own in kept)))
        if len(records) < 2 or not steps:
            reason = (
                "one seed: no pair to compare" if steps else "no decoders saved during training"
            )
            return pd.DataFrame([{**head, "reason": reason}])
        # the same latents as in the report
        live = [live_latents(record, config.dead) for record in records]
        if not all(len(index) for index in live):
            return pd.DataFrame([{**head, "reason": "an SAE has no live latent"}])
        inits = [
            np.asarray(record.W_dec_init)[index]
            for record, index in zip(records, live, strict=True)
            if record.W_dec_init is not None
        ]
        curve = consistency_over_training(
            {
                step: [np.asarray(own[step])[i] for own, i in zip(kept, live, strict=True)]
                for step in steps
            },
            inits=inits if len(inits) == len(records) else None,
            nulls=nulls.get(name, {}),
            level=config.level,
        )
        return curve.assign(**{key: value for key, value in head.items() if key != "n_seeds"})

    if not members:
        return pd.DataFrame([{"group": None, "reason": "no SAE to follow"}])
    with worker_pool(config.workers) as pool:
        tables = list(pool.map(one, members.items()))
    columns = ["group", "architecture", "d_sae", "step"]
    table = pd.concat(tables, ignore_index=True)
    first = [column for column in columns if column in table]
    return table[[*first, *(column for column in table if column not in first)]]


def settings_table(groups: pd.DataFrame, effective_rank: float) -> pd.DataFrame:
    """Make the table of every group's scores beside its setting: width over effective rank, k, L0.

    Parameters
    ----------
    groups
        The table ``groups`` of a report.
    effective_rank
        Effective rank of the activations, from :func:`husai.activations.activation_statistics`.

    Raises
    ------
    InputError
        When the rank is not positive.
    """
    wanted = pd.concat(
        [groups[(groups["score"] == s) & (groups["signed"] == g)] for s, g in FOLLOWED]
    )
    columns = [
        *("group", "architecture", "d_sae", "width_ratio", "k", "l1_coefficient", "l0", "space"),
        *("score", "signed", "mean", "low", "high"),
        *(f"{kind}_{part}" for part in ("mean", "corrected") for kind in CLAIM_KINDS),
        *("n_live", "n_everywhere", "fvu", "n_seeds", "converged", "reason"),
    ]
    table = against_width(wanted, effective_rank)
    return table.reindex(columns=columns).reset_index(drop=True)


def orderings_table(groups: pd.DataFrame, contrasts: pd.DataFrame) -> pd.DataFrame:
    """Compare this study's order of architectures with that of each paper, at every width.

    Once with matched architectures, which is fair, and once with one setting of each
    architecture, as in the papers.

    Parameters
    ----------
    groups
        The table ``groups`` of a report. If an architecture has several settings at one width, the
        one whose L0 is nearest the median of all is taken.
    contrasts
        :func:`husai.consistency.study.matched.matched_tables` of the same groups.

    Returns
    -------
    pandas.DataFrame
        A row per paper, pair of architectures that it orders, width and ``basis`` ("own L0", or
        the axis on which they are matched): ``paper_higher``, ``paper_lower``, ``at``,
        ``difference`` (higher minus lower), ``agrees`` (None in a tie), ``separated`` (matched:
        the interval of the difference excludes 0; own L0: the two intervals do not overlap),
        ``reason``.
    """
    orders = published_orders()
    rows: list[Row] = []
    signs = dict(FOLLOWED)
    known = groups[(groups["space"] == "full") & groups["mean"].notna()]
    for order in orders:
        head = {
            "source": order["source"],
            "score": order["score"],
            "paper_higher": order["higher"],
            "paper_lower": order["lower"],
        }
        chosen = known[
            (known["score"] == order["score"]) & (known["signed"] == signs[order["score"]])
        ]
        for width, part in groups.groupby("d_sae", sort=True):
            own = _own_settings(chosen[chosen["d_sae"] == width])
            line = {**head, "d_sae": width, "basis": "own L0"}
            if not {order["higher"], order["lower"]} <= set(part["architecture"]):
                rows.append({**line, "reason": "not both measured here"})
            elif not {order["higher"], order["lower"]} <= set(own):
                rows.append({**line, "reason": "a score is not defined"})
            else:
                rows.append({**line, **_own_order(own[order["higher"]], own[order["lower"]])})
    table = pd.DataFrame(rows)
    matched = orders_in_contrasts(contrasts, orders)
    return pd.concat([matched, table], ignore_index=True) if len(matched) else table


def _own_settings(groups: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return for each architecture the group whose L0 is nearest the median of all."""
    away = (groups["l0"] - groups["l0"].median()).abs().fillna(np.inf)
    picked = groups.assign(_away=away).sort_values("_away", kind="stable")
    rows = picked.drop_duplicates("architecture").to_dict("records")
    return {str(row["architecture"]): {str(k): v for k, v in row.items()} for row in rows}


def _own_order(higher: Row, lower: Row) -> Row:
    difference = float(higher["mean"] - lower["mean"])
    ends = [side[end] for side in (higher, lower) for end in ("low", "high")]
    apart = higher["low"] > lower["high"] or lower["low"] > higher["high"]
    return {
        "difference": difference,
        "agrees": difference > 0 if difference else None,
        "separated": None if any(pd.isna(end) for end in ends) else bool(apart),
        "reason": "",
    }


# Properties of a feature that may be related to its reproducibility.
COVARIATES = (
    "firing_rate",
    "cosine_to_init",
    "cosine_to_encoder",
    "purity",
    "energy",
)


def correlates_table(features: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Rank correlation of reproducibility with other properties, over the features of an SAE.

    Parameters
    ----------
    features
        The table ``features`` of a report.
    level
        Confidence level of the intervals, which are over SAEs.

    Returns
    -------
    pandas.DataFrame
        A row per group and covariate: ``mean`` Spearman correlation with ``reproducibility``, with
        interval, ``n_seeds``, ``converged``, ``reason``.
    """
    rows: list[Row] = []
    full = features[features["space"] == "full"]
    for name, group in full.groupby("group", sort=False):
        flags = group.groupby("id")["converged"].first()
        head: Row = {
            "group": name,
            "n_seeds": int(group["id"].nunique()),
            "converged": all_converged([None if pd.isna(v) else bool(v) for v in flags]),
        }
        if "hook" in group:
            head["hook"] = group["hook"].iloc[0]
        for covariate in COVARIATES:
            line: Row = {**head, "covariate": covariate}
            if covariate not in group or "reproducibility" not in group:
                rows.append({**line, "reason": "not known"})
                continue
            found = [
                rank_correlation(own["reproducibility"], own[covariate])
                for _, own in group.groupby("id", sort=False)
            ]
            if np.isnan(found).any():
                rows.append({**line, "reason": "does not vary, or is not known, in some SAE"})
                continue
            interval = mean_interval(found, level=level, bounds=(-1.0, 1.0))
            line |= {"mean": interval.mean, "low": interval.low, "high": interval.high}
            rows.append({**line, "reason": interval.reason})
    return BESIDE["correlates"].check(pd.DataFrame(rows))
