"""Comparisons that are fair: at matched L0, against width, over training, beside papers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from husai.consistency.inference.intervals import seed_interval
from husai.consistency.inference.nulls import null_scores
from husai.consistency.scores.rows import row_cosines
from husai.errors import InputError
from husai.matching.match import match_features


def _need(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(f"{name}: columns {missing} are missing")


def at_matched_l0(
    points: pd.DataFrame,
    *,
    by: str = "architecture",
    columns: Sequence[str] = ("mean", "low", "high"),
    n_points: int = 9,
    l0: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Read each architecture's score off its L0 curve at common values of L0.

    Linear in log L0 between measured points and never beyond them: where an architecture was
    not measured on both sides of an L0, its score there is not defined.

    Parameters
    ----------
    points
        A row per group: ``by``, ``l0`` (> 0) and the columns to read. Rows without L0 or with a
        column missing are left out of that column.
    by
        Column of the curves.
    columns
        Which to interpolate; they must exist.
    n_points
        Common values of L0, spread evenly in log over the range all curves share.
    l0
        Use these instead.

    Returns
    -------
    pandas.DataFrame
        ``by``, ``l0``, the columns, ``n_measured`` points on the curve, ``reason`` (empty where
        defined).

    Raises
    ------
    InputError
        When a column is missing, an L0 is not positive, or no curve has a point.
    """
    _need(points, [by, "l0", *columns], "points")
    known = points[points["l0"].notna() & points[columns[0]].notna()]
    curves = {str(name): part for name, part in known.groupby(by, sort=True)}
    if not curves:
        raise InputError("points: no row has an L0 and a score")
    if (known["l0"].astype(float) <= 0).any():
        raise InputError("points: an L0 is not positive; an SAE that never fires has no curve")
    spans = {n: (float(p["l0"].min()), float(p["l0"].max())) for n, p in curves.items()}
    low, high = max(s[0] for s in spans.values()), min(s[1] for s in spans.values())
    if l0 is None:
        grid = np.geomspace(low, high, n_points) if low < high else np.array([np.sqrt(low * high)])
    else:
        grid = np.asarray(l0, dtype=np.float64)
    rows: list[dict[str, Any]] = []
    for name, part in curves.items():
        # several groups of one L0 (widths, say) count as their mean
        mean = part.groupby("l0")[list(columns)].mean(numeric_only=False).sort_index()
        x = np.log(mean.index.to_numpy(dtype=np.float64))
        for value in grid:
            inside = spans[name][0] * (1 - 1e-9) <= value <= spans[name][1] * (1 + 1e-9)
            line: dict[str, Any] = {by: name, "l0": float(value), "n_measured": len(mean)}
            for column in columns:
                y = mean[column].to_numpy(dtype=np.float64)
                fine = ~np.isnan(y)
                line[column] = (
                    float(np.interp(np.log(value), x[fine], y[fine]))
                    if inside and fine.any()
                    else None
                )
            line["reason"] = (
                ""
                if inside
                else f"measured from L0 {spans[name][0]:.3g} to {spans[name][1]:.3g} only"
            )
            rows.append(line)
    return pd.DataFrame(rows)


def against_width(groups: pd.DataFrame, effective_rank: float) -> pd.DataFrame:
    """Add ``width_ratio``, d_sae over the data's effective rank, and sort by it.

    At a ratio near 1 an SAE has about as many features as the data have dimensions (matched); far
    above it is redundant.

    Raises
    ------
    InputError
        When the rank is not positive or ``d_sae`` is missing.
    """
    _need(groups, ["d_sae"], "groups")
    if not effective_rank > 0:
        raise InputError(f"effective_rank: {effective_rank}; give a positive number")
    return groups.assign(width_ratio=groups["d_sae"] / effective_rank).sort_values(
        "width_ratio", kind="stable"
    )


def consistency_over_training(
    decoders: Mapping[int, Sequence[ArrayLike]],
    *,
    inits: Sequence[ArrayLike] | None = None,
    signed: bool = False,
    covariance: ArrayLike | None = None,
    nulls: Mapping[str, float] | None = None,
    n_draws: int = 20,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """PW-MCC of the same seeds at each checkpoint, with interval and nulls.

    A score that still rises at the last step is one of SAEs that are not converged.

    Parameters
    ----------
    decoders
        ``{step: [W_dec of each seed]}``, the same seeds in the same order at each step.
    inits
        Initial decoders: adds the mean ``|cosine|`` of each row to its own start.
    signed
        Use the cosine itself instead of its absolute value.
    covariance
        ``[d, d]`` of the activations: adds the data-aware null.
    nulls
        Chance levels that are known, by kind; drawn here when None.
    n_draws, seed
        Of the nulls.
    level
        Confidence level.

    Returns
    -------
    pandas.DataFrame
        ``step``, ``mean``, ``low``, ``high``, ``isotropic_mean``, ``data_aware_mean``,
        ``cosine_to_init``, ``n_seeds``, ``reason``.

    Raises
    ------
    InputError
        When there is no step, or steps hold different numbers of seeds.
    """
    if not decoders:
        raise InputError("decoders: no checkpoint given")
    counts = {step: len(seeds) for step, seeds in decoders.items()}
    if len(set(counts.values())) != 1:
        raise InputError(f"decoders: seeds by step are {counts}; give the same seeds at each")
    rows: list[dict[str, Any]] = []
    for step in sorted(decoders):
        seeds = [np.asarray(W) for W in decoders[step]]
        if nulls is None:
            n, d = seeds[0].shape
            drawn = {
                "isotropic": null_scores(
                    n, n, d, scores=("pw_mcc",), signed=signed, n_draws=n_draws, seed=seed
                )["pw_mcc"].mean
            }
            if covariance is not None:
                drawn["data_aware"] = null_scores(
                    n,
                    n,
                    d,
                    kind="data_aware",
                    scores=("pw_mcc",),
                    signed=signed,
                    covariance=covariance,
                    n_draws=n_draws,
                    seed=seed,
                )["pw_mcc"].mean
            nulls = drawn
        W = np.zeros((len(seeds), len(seeds)))
        for i, j in combinations(range(len(seeds)), 2):
            W[i, j] = W[j, i] = match_features(seeds[i], seeds[j], signed=signed).mean
        interval = seed_interval(W, level=level, bounds=(-1.0 if signed else 0.0, 1.0))
        line: dict[str, Any] = {
            "step": step,
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            **{f"{kind}_mean": value for kind, value in nulls.items()},
            "n_seeds": len(seeds),
            "reason": interval.reason,
        }
        if inits is not None:
            line["cosine_to_init"] = float(
                np.mean(
                    [np.abs(row_cosines(W, W0)).mean() for W, W0 in zip(seeds, inits, strict=True)]
                )
            )
        rows.append(line)
    return pd.DataFrame(rows)


@cache
def _published() -> dict[str, Any]:
    text = (
        resources.files("husai.consistency.analyses").joinpath("published.json").read_text("utf-8")
    )
    data: dict[str, Any] = json.loads(text)
    return data


def published_numbers() -> pd.DataFrame:
    """Consistency numbers printed in papers, with their source and what each one is."""
    return pd.DataFrame(_published()["entries"])


def beside_published(groups: pd.DataFrame, *, model: str) -> pd.DataFrame:
    """Put this study's groups and the published numbers in one table and say which compare.

    Parameters
    ----------
    groups
        ``groups`` of a report; only rows in the full space, of scores that papers print, are used.
    model
        What the SAEs were trained on.

    Returns
    -------
    pandas.DataFrame
        ``source``, ``model``, ``architecture``, ``d_sae``, ``score``, ``signed``, ``value``,
        ``low``, ``high``, ``isotropic_mean``, ``data_aware_mean``, ``converged``,
        ``like_for_like`` ("this study", "no") and ``differs_in``.

    Raises
    ------
    InputError
        When a column is missing.
    """
    _need(groups, ["architecture", "d_sae", "space", "score", "signed", "mean"], "groups")
    printed = published_numbers()
    ours = groups[(groups["space"] == "full") & groups["score"].isin(printed["score"].unique())]
    rows: list[dict[str, Any]] = [
        {
            "source": "this study",
            "model": model,
            "architecture": line["architecture"],
            "d_sae": line["d_sae"],
            "k": line.get("k"),
            "l0": line.get("l0"),
            "score": line["score"],
            "signed": line["signed"],
            "value": line["mean"],
            "low": line.get("low"),
            "high": line.get("high"),
            "isotropic_mean": line.get("isotropic_mean"),
            "data_aware_mean": line.get("data_aware_mean"),
            "converged": line.get("converged"),
            "like_for_like": "this study",
            "differs_in": "",
        }
        for line in ours.to_dict("records")
    ]
    widths = set(ours["d_sae"])
    for entry in printed.to_dict("records"):
        # every printed number is of another model and without a null, so none is comparable
        differs = ["model and data", "no null printed"]
        if entry["d_sae"] not in widths:
            differs.append("width")
        if not entry["matched_l0"]:
            differs.append("architectures not at matched L0")
        if entry["signed"] is None or pd.isna(entry["signed"]):
            differs.append("signed or absolute not settled")
        rows.append(
            {
                **{k: entry[k] for k in ("source", "model", "architecture", "d_sae", "score")},
                "signed": entry["signed"],
                "value": entry["value"],
                "like_for_like": "no",
                "differs_in": "; ".join(differs) + f" ({entry['note']})",
            }
        )
    return pd.DataFrame(rows)


def orderings_beside_published(
    scores: Mapping[str, pd.DataFrame], *, l0_column: str = "l0"
) -> pd.DataFrame:
    """Say where this study orders architectures as each paper does.

    Parameters
    ----------
    scores
        For each score a paper orders by (``"pw_mcc"``, ``"shared_fraction"``), a table with
        ``architecture``, ``l0``, ``mean``, ``low``, ``high`` at matched L0, from
        :func:`at_matched_l0`.
    l0_column
        Column of L0; each value is compared by itself.

    Returns
    -------
    pandas.DataFrame
        A row per paper, score, L0 and pair of architectures it orders: ``paper_higher``,
        ``paper_lower``, ``difference`` (ours, first minus second), ``agrees`` (None in a tie),
        ``separated`` (our intervals do not overlap: only then is the order more than noise),
        ``reason``.
    """
    rows: list[dict[str, Any]] = []
    for paper in _published()["orderings"]:
        table = scores.get(paper["score"])
        for higher, lower in combinations(paper["order"], 2):
            head = {
                "source": paper["source"],
                "score": paper["score"],
                "paper_higher": higher,
                "paper_lower": lower,
            }
            if table is None or not {higher, lower} <= set(table["architecture"]):
                rows.append({**head, "reason": "not both measured here"})
                continue
            for value, part in table.groupby(l0_column, sort=True):
                one, other = (
                    part[part["architecture"] == name].iloc[0] for name in (higher, lower)
                )
                line = {**head, "l0": value}
                if pd.isna(one["mean"]) or pd.isna(other["mean"]):
                    rows.append({**line, "reason": "outside a measured L0 curve"})
                    continue
                known = not any(
                    pd.isna(v) for v in (*one[["low", "high"]], *other[["low", "high"]])
                )
                difference = float(one["mean"] - other["mean"])
                rows.append(
                    {
                        **line,
                        "difference": difference,
                        "agrees": difference > 0 if difference else None,
                        "separated": bool(one["low"] > other["high"] or other["low"] > one["high"])
                        if known
                        else None,
                        "reason": "",
                    }
                )
    return pd.DataFrame(rows)
