"""Tables beside the report: training, settings, and what correlates with reproducibility."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from husai.consistency.analyses.curves import (
    against_width,
    at_matched_l0,
    consistency_over_training,
    orderings_beside_published,
)
from husai.consistency.config import ConsistencyConfig
from husai.consistency.inference.intervals import mean_interval
from husai.consistency.study.record import (
    SAERecord,
    all_converged,
    group_settings,
    live_latents,
)
from husai.consistency.study.schema import BESIDE
from husai.threads import worker_pool

Row = dict[str, Any]

# Scores that are followed across settings, with their sign convention: the two papers' own.
FOLLOWED = (("pw_mcc", False), ("shared_fraction", True), ("mmcs", False))


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
        Group name to its SAEs.
    decoders
        Gives an SAE's decoders by step.
    nulls
        Group name to its chance levels of PW-MCC by kind, as the report has them.
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
            reason = "one seed: no pair to compare" if steps else "no decoders kept on the way"
            return pd.DataFrame([{**head, "reason": reason}])
        # the latents that the report compares: those that never fire are no features
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
    """Scores of every group against its setting: width over effective rank, k, L0.

    Parameters
    ----------
    groups
        ``groups`` of a report.
    effective_rank
        Of the activations, :func:`husai.activations.activation_statistics`.

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
        *("score", "signed", "mean", "low", "high", "isotropic_mean", "data_aware_mean"),
        *("permuted_mean", "isotropic_corrected", "data_aware_corrected", "permuted_corrected"),
        *("untrained_mean", "n_seeds", "converged", "reason"),
    ]
    table = against_width(wanted, effective_rank)
    return table.reindex(columns=columns).reset_index(drop=True)


def matched_l0_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Architectures at common values of L0, at each width by itself.

    Parameters
    ----------
    groups
        ``groups`` of a report; groups without an L0 are left out.

    Returns
    -------
    pandas.DataFrame
        As :func:`husai.consistency.at_matched_l0`, with ``d_sae``, ``space``, ``score``,
        ``signed``, and ``converged`` of all groups on the curve. Where the curves of a width
        share no L0, or no score is defined, rows say so in ``reason``.
    """
    tables: list[pd.DataFrame] = []
    columns = ["mean", "low", "high", "isotropic_mean", "data_aware_mean"]
    for score, signed in FOLLOWED:
        chosen = groups[
            (groups["score"] == score) & (groups["signed"] == signed) & (groups["l0"] > 0)
        ]
        for _, part in chosen.groupby(["d_sae", "space"], sort=True):
            points = part.reindex(columns=["architecture", "l0", *columns]).astype(
                dict.fromkeys(columns, "float64")
            )
            if points["mean"].notna().sum() == 0:
                continue
            table = at_matched_l0(points, columns=columns, n_points=5)
            gates = {
                str(name): all_converged([None if pd.isna(v) else bool(v) for v in own])
                for name, own in part.groupby("architecture")["converged"]
            }
            table["converged"] = pd.array([gates[a] for a in table["architecture"]], "boolean")
            order = list(table.columns)
            table = table.assign(
                d_sae=part["d_sae"].iloc[0], space=part["space"].iloc[0], score=score, signed=signed
            )
            tables.append(table[["d_sae", "space", "score", "signed", *order]])
    if not tables:
        reason = "no group has both an L0 and a score"
        head = ["d_sae", "space", "score", "signed", "architecture", "l0", *columns, "converged"]
        return pd.DataFrame([{**dict.fromkeys(head), "reason": reason}])
    return pd.concat(tables, ignore_index=True)


def orderings_table(groups: pd.DataFrame, matched: pd.DataFrame) -> pd.DataFrame:
    """Say where this study orders architectures as each paper does, at every width.

    Twice: at matched L0, which is fair, and each architecture at a setting of its own, which is
    what the papers print.

    Parameters
    ----------
    groups
        ``groups`` of a report. Of an architecture with several settings at one width, the one
        whose L0 is nearest the others' median stands for it.
    matched
        :func:`matched_l0_table` of the same groups.

    Returns
    -------
    pandas.DataFrame
        As :func:`husai.consistency.orderings_beside_published`, with ``d_sae`` and ``basis``.
    """
    full = matched[matched["space"] == "full"]
    tables = []
    for width in sorted(set(groups["d_sae"])):
        fair, own = {}, {}
        for score, signed in FOLLOWED[:2]:
            part = full[
                (full["d_sae"] == width) & (full["score"] == score) & (full["signed"] == signed)
            ]
            if len(part):
                fair[score] = part
            chosen = groups[
                (groups["d_sae"] == width)
                & (groups["space"] == "full")
                & (groups["score"] == score)
                & (groups["signed"] == signed)
                & groups["mean"].notna()
            ]
            if len(chosen):
                middle = float(chosen["l0"].median())
                away = (chosen["l0"] - middle).abs().fillna(np.inf)
                picked = chosen.assign(away=away).sort_values("away", kind="stable")
                own[score] = picked.drop_duplicates("architecture").assign(basis="own L0")
        for basis, scores, column in (("matched L0", fair, "l0"), ("own L0", own, "basis")):
            table = orderings_beside_published(scores, l0_column=column)
            if basis == "own L0":
                table = table.drop(columns="l0", errors="ignore")
            tables.append(table.assign(d_sae=width, basis=basis))
    return pd.concat(tables, ignore_index=True)


# What may explain that a feature comes back.
COVARIATES = (
    "firing_rate",
    "cosine_to_init",
    "cosine_to_encoder",
    "purity",
    "energy",
)


def correlates_table(features: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Correlate reproducibility with other properties, by rank, over the features of an SAE.

    Parameters
    ----------
    features
        ``features`` of a report.
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
                _rank_correlation(own["reproducibility"], own[covariate])
                for _, own in group.groupby("id", sort=False)
            ]
            known = [value for value in found if value is not None]
            if len(known) < len(found):
                rows.append({**line, "reason": "does not vary, or is not known, in some SAE"})
                continue
            interval = mean_interval(known, level=level, bounds=(-1.0, 1.0))
            line |= {"mean": interval.mean, "low": interval.low, "high": interval.high}
            rows.append({**line, "reason": interval.reason})
    return BESIDE["correlates"].check(pd.DataFrame(rows))


def _rank_correlation(x: pd.Series[float], y: pd.Series[float]) -> float | None:
    both = pd.DataFrame({"x": x, "y": y}).astype("float64").dropna()
    if len(both) < 4 or both.nunique().min() < 2:
        return None
    return float(stats.spearmanr(both["x"], both["y"]).statistic)
