"""How many seeds a study's settings need, from its own pair scores or from those of a pilot."""

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
"""Half of the width of interval that a plan is asked for."""

POWER = 0.8
"""Chance with which a plan is to show that two settings differ."""

LEAST = 4
"""Fewest seeds that separate seed effects from pair noise."""

PILOT = "pilot.json"
"""Components of the study over transformers, beside the code; its benchmark writes it."""


def own_components(
    pairs: pd.DataFrame,
) -> tuple[dict[str, VarianceComponents], dict[str, str]]:
    """Estimate the variances of seeds and pairs of every group, from PW-MCC in the full space.

    Parameters
    ----------
    pairs
        ``pairs`` of a report.

    Returns
    -------
    components, reasons
        By group: the components, or why they are not known.
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
            reasons[str(group)] = f"{len(ids)} seeds; seed effects take at least {LEAST}"
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
    """Tabulate how many seeds each setting needs, and to separate settings.

    Settings are compared where they differ in one thing, width or kind of SAE.

    Parameters
    ----------
    components
        By group.
    settings
        A row per group: ``group``, ``architecture``, ``d_sae``, ``n_seeds`` (those it has, or would
        have).
    level
        Of the intervals.
    reasons
        By group, why its components are not known.

    Returns
    -------
    pandas.DataFrame
        A row per group (``other`` missing): ``pw_mcc``, ``seed_sd``, ``pair_sd``, ``n_seeds``,
        ``half_width`` (expected of its jackknife interval), ``seeds`` for an interval within
        ± :data:`HALF_WIDTH`. A row per two groups that differ in one thing: ``difference``, and
        ``seeds`` in each that show it with power :data:`POWER`. ``seeds`` is missing where
        200 are not enough; ``reason`` says why nothing is known.
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
                "reason": "" if n > 2 else "an interval takes at least three seeds",
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
    """Give the components of the study over transformers.

    A row per architecture and width: ``architecture``, ``d_sae``, ``pw_mcc``, ``seed_sd``,
    ``pair_sd`` (root mean squares over transformers), ``n_seeds`` of each, ``n_transformers``.
    """
    text = resources.files("husai.consistency.study").joinpath(PILOT).read_text("utf-8")
    return pd.DataFrame(json.loads(text))


def piloted(settings: pd.DataFrame) -> tuple[dict[str, VarianceComponents], dict[str, str]]:
    """Take for each setting the components of the pilot's nearest one.

    Parameters
    ----------
    settings
        A row per group: ``group``, ``architecture``, ``d_sae``.

    Returns
    -------
    components, sources
        By group: the components, and the pilot's setting that they are of, the nearest in width of
        the same architecture, or of all where the pilot has none of it; both empty without a
        pilot.
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
