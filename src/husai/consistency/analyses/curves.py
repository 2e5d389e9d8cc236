"""Scores by width, over training, and beside the numbers that papers report."""

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
from husai.consistency.scores.score import CLAIM_KINDS
from husai.errors import InputError
from husai.matching.match import match_features


def _need(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    if missing := [column for column in columns if column not in table.columns]:
        raise InputError(f"{name}: columns {missing} are missing")


def against_width(groups: pd.DataFrame, effective_rank: float) -> pd.DataFrame:
    """Add ``width_ratio``, d_sae over the data's effective rank, and sort by it.

    At a ratio near 1 an SAE has about as many features as the data have dimensions; far above 1 it
    has many more.

    Parameters
    ----------
    groups
        A table with the column ``d_sae``.
    effective_rank
        Effective number of dimensions of the data.

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

    If the score still rises at the last step, the SAEs have not converged.

    Parameters
    ----------
    decoders
        ``{step: [W_dec of each seed]}``, the same seeds in the same order at each step.
    inits
        Initial decoders; with them the table has the mean ``|cosine|`` of each row with its
        initial value.
    signed
        Use the cosine itself instead of its absolute value.
    covariance
        ``[d, d]`` covariance of the activations; with it the table has the data-aware null.
    nulls
        Means of the nulls by kind, if they are known; drawn here when None.
    n_draws, seed
        Number of draws of the nulls, and their seed.
    level
        Confidence level.

    Returns
    -------
    pandas.DataFrame
        ``step``, ``mean``, ``low``, ``high``, a ``<kind>_mean`` for each null, ``cosine_to_init``,
        ``n_seeds``, ``reason``.

    Raises
    ------
    InputError
        When there is no step, or steps have different numbers of seeds.
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
    """Consistency numbers reported in papers: one row each, with its source and a note."""
    return pd.DataFrame(_published()["entries"])


def published_orders() -> list[dict[str, Any]]:
    """Pairs of architectures that a paper ranks: ``source``, ``score``, ``higher``, ``lower``."""
    return [
        {"source": paper["source"], "score": paper["score"], "higher": higher, "lower": lower}
        for paper in _published()["orderings"]
        for higher, lower in combinations(paper["order"], 2)
    ]


def beside_published(groups: pd.DataFrame, *, model: str) -> pd.DataFrame:
    """Put this study's groups and the published numbers in one table, and say how they differ.

    Parameters
    ----------
    groups
        The groups table of a study; only rows in the full space, of scores that papers report,
        are used.
    model
        Name of the model that the SAEs were trained on.

    Returns
    -------
    pandas.DataFrame
        ``source``, ``model``, ``architecture``, ``d_sae``, ``score``, ``signed``, ``value``,
        ``low``, ``high``, ``permuted_mean``, ``isotropic_mean``, ``data_aware_mean``,
        ``converged``, ``like_for_like`` ("this study", "no") and ``differs_in``.

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
            **{f"{kind}_mean": line.get(f"{kind}_mean") for kind in CLAIM_KINDS},
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
