"""The table of how many seeds a study needs, from its own pair scores or from a pilot study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from husai.consistency.inference.planning import (
    VarianceComponents,
    seeds_for_half_width,
    seeds_to_separate,
    variance_components,
)
from husai.consistency.study.groups import score_matrix

HALF_WIDTH = 0.05
"""Half the width of the interval for which seeds are planned."""

POWER = 0.8
"""Probability with which planned seeds show that two settings differ."""

LEAST = 4
"""Fewest seeds with which seed effects and pair noise can be separated."""

PILOT = "pilot.json"
"""File beside this module with the variances of the study over transformers, the pilot study;
``benchmarks/transformers_study.py`` writes it."""


def own_components(
    pairs: pd.DataFrame,
) -> tuple[dict[str, VarianceComponents], dict[str, str]]:
    """Estimate the variances of seeds and pairs of every group, from PW-MCC in the full space.

    Parameters
    ----------
    pairs
        The table ``pairs`` of a report.

    Returns
    -------
    components, reasons
        For each group, either its variances or the reason why they are not known.
    """
    chosen = pairs[
        pairs["within"]
        & (pairs["score"] == "pw_mcc")
        & ~pairs["signed"].astype(bool)
        & (pairs["space"] == "full")
    ]
    found, reasons = {}, {}
    for group, part in chosen.groupby("group", sort=False):
        ids = list(dict.fromkeys([*part["id_a"], *part["id_b"]]))
        at = {name: place for place, name in enumerate(ids)}
        W = score_matrix(
            {
                (at[a], at[b]): value
                for a, b, value in zip(part["id_a"], part["id_b"], part["value"], strict=True)
            },
            len(ids),
        )
        if len(ids) < LEAST:
            reasons[str(group)] = f"{len(ids)} seeds; seed effects need at least {LEAST}"
        elif np.isnan(W).any():
            reasons[str(group)] = "a pair score is not defined"
        else:
            found[str(group)] = variance_components(W)
    return found, reasons


def seeds_needed(
    components: Mapping[str, VarianceComponents],
    settings: pd.DataFrame,
    *,
    level: float = 0.95,
    reasons: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Make the table of how many seeds each setting needs, and how many show a difference.

    Two settings are compared if they differ either in width or in architecture.

    Parameters
    ----------
    components
        Variances by group.
    settings
        A row per group: ``group``, ``architecture``, ``d_sae``, ``n_seeds`` (present or planned).
    level
        Confidence level of the intervals.
    reasons
        Reasons by group why its variances are not known.

    Returns
    -------
    pandas.DataFrame
        A row per group (``other`` missing): ``pw_mcc``, ``seed_sd``, ``pair_sd``, ``n_seeds``,
        ``half_width`` (expected half width of its jackknife interval), ``seeds`` for an interval
        within ± :data:`HALF_WIDTH`. A row per two groups that differ in one setting:
        ``difference``, and the ``seeds`` in each that show it with power :data:`POWER`. ``seeds``
        is missing where 200 are not enough; ``reason`` says why a number is not known.
    """
    rows: list[dict[str, Any]] = []
    known = settings.drop_duplicates("group").to_dict("records")
    for row in known:
        line: dict[str, Any] = {"group": row["group"], "n_seeds": row["n_seeds"]}
        one = components.get(row["group"])
        if one is None:
            reason = (reasons or {}).get(row["group"], "one seed: no pair to compare")
            rows.append({**line, "reason": reason})
            continue
        n = int(row["n_seeds"])
        rows.append(
            {
                **line,
                "pw_mcc": one.mean,
                "seed_sd": one.seed_sd,
                "pair_sd": one.pair_sd,
                "half_width": one.half_width(n, level) if n > 2 else None,
                "seeds": seeds_for_half_width(one, HALF_WIDTH, level=level),
                "reason": "" if n > 2 else "an interval needs at least three seeds",
            }
        )
    for first, second in combinations([row for row in known if row["group"] in components], 2):
        alike = first["architecture"] == second["architecture"]
        if alike == (first["d_sae"] == second["d_sae"]):
            continue
        a, b = components[first["group"]], components[second["group"]]
        rows.append(
            {
                "group": first["group"],
                "other": second["group"],
                "n_seeds": min(first["n_seeds"], second["n_seeds"]),
                "difference": a.mean - b.mean,
                "seeds": seeds_to_separate(a, b, power=POWER, level=level),
                "reason": "",
            }
        )
    columns = ["group", "other", "n_seeds", "pw_mcc", "seed_sd", "pair_sd", "half_width"]
    table = pd.DataFrame(rows, columns=[*columns, "difference", "seeds", "reason"])
    table["other"] = table["other"].astype(object).where(table["other"].notna(), None)
    table["seeds"] = table["seeds"].astype("Int64")
    return table


@cache
def pilot() -> pd.DataFrame:
    """Read the variances of the study over transformers.

    A row per architecture and width: ``architecture``, ``d_sae``, ``pw_mcc``, ``seed_sd``,
    ``pair_sd`` (root mean squares over transformers), ``n_seeds`` of each, ``n_transformers``.
    """
    text = resources.files("husai.consistency.study").joinpath(PILOT).read_text("utf-8")
    return pd.DataFrame(json.loads(text))


def piloted(settings: pd.DataFrame) -> tuple[dict[str, VarianceComponents], dict[str, str]]:
    """Return for each setting the variances of the most similar setting of the pilot study.

    Parameters
    ----------
    settings
        A row per group: ``group``, ``architecture``, ``d_sae``.

    Returns
    -------
    components, sources
        For each group its variances, and the pilot's setting that they come from: the nearest in
        width with the same architecture, or with any if the pilot has none of it. Both are empty
        without a pilot.
    """
    table = pilot()
    found: dict[str, VarianceComponents] = {}
    sources: dict[str, str] = {}
    if table.empty:
        return found, sources
    for row in settings.drop_duplicates("group").to_dict("records"):
        own = table[table["architecture"] == row["architecture"]]
        own = own if len(own) else table
        away = np.abs(np.log(own["d_sae"].astype(float) / row["d_sae"]))
        near = own.iloc[int(np.argmin(away))]
        found[str(row["group"])] = VarianceComponents(
            float(near["pw_mcc"]),
            float(near["seed_sd"]),
            float(near["pair_sd"]),
            int(near["n_seeds"]),
        )
        sources[str(row["group"])] = f"{near['architecture']} d{near['d_sae']}"
    return found, sources
