"""The first section of a study's page: the main finding in five sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from husai.campaign.plan import UNTRAINED, records
from husai.consistency.config import ConsistencyConfig
from husai.consistency.study.labels import kind_words, main_group, plural
from husai.reporting.config import ReportingConfig
from husai.reporting.render import all_converged, render

Verdict = Literal["back", "partly", "not"]


class FirstTables(NamedTuple):
    """The tables that this section is written from; ``coverage`` and ``kinds`` may be empty."""

    groups: pd.DataFrame
    features: pd.DataFrame
    coverage: pd.DataFrame
    kinds: pd.DataFrame


def first_screen(
    tables: FirstTables, consistency: ConsistencyConfig, reporting: ReportingConfig
) -> dict[str, Any]:
    """Gather the main finding: which features are reproducible, their share, meaning and null.

    If labels explain features, it is about the group in which most classes of the leading kind
    have a latent; else about the group that is furthest above the permuted null.

    Parameters
    ----------
    tables
        The tables of the study.
    consistency, reporting
        The parameters that the text states.

    Returns
    -------
    dict
        The values for the template ``first_screen.j2``; empty if no group has two seeds.
    """
    hook = tables.groups["hook"].iloc[0]
    own = FirstTables(*(_at(table, hook) for table in tables))
    about = _by_kind(own) or _by_group(own)
    if not about:
        return {}
    converged = own.groups.drop_duplicates("group")
    return {
        **about,
        "verdict": verdict(about["main"], reporting),
        "no_better": no_better(about["main"]),
        "threshold": consistency.shared_threshold,
        "open": [
            str(name)
            for name, flag in zip(converged["group"], converged["converged"], strict=True)
            if pd.notna(flag) and not flag
        ],
        "before": _before(tables.kinds, hook, about["group"]),
    }


def main_sentence(first: Mapping[str, Any]) -> str:
    """Write one sentence of plain text about what a study found, for the end of a run and MLflow.

    Parameters
    ----------
    first
        From :func:`first_screen`.
    """
    return render("main_sentence.j2", first=first).strip()


def verdict(main: Mapping[str, Any], reporting: ReportingConfig) -> Verdict:
    """Decide whether features come back.

    Parameters
    ----------
    main
        ``reproducibility`` with the lower end ``low`` of its interval, ``null_mean`` and
        ``found_everywhere``.
    reporting
        The least share found in every other seed at which features are said to come back.

    Returns
    -------
    str
        ``"back"``: above the null, and most are found; ``"partly"``: above the null only;
        ``"not"``: not above the null.
    """
    lowest = next(
        (main[name] for name in ("low", "reproducibility") if pd.notna(main.get(name))), np.nan
    )
    null = main.get("null_mean")
    if not (pd.isna(null) or lowest > null):
        return "not"
    return "back" if main["found_everywhere"] >= reporting.comes_back else "partly"


def no_better(main: Mapping[str, Any]) -> str:
    """Return the words that compare features that are not above the null with it."""
    high, null = main.get("high"), main.get("null_mean")
    if not (pd.isna(high) or pd.isna(null)) and high < null:
        return "less than"
    return "not clearly better than"


def _at(table: pd.DataFrame, hook: str) -> pd.DataFrame:
    return table[table["hook"] == hook] if "hook" in table else table


def _by_kind(own: FirstTables) -> dict[str, Any]:
    """Gather the finding about the group in which most classes of the main kind have a latent."""
    found = main_group(own.coverage, own.kinds)
    if found is None:
        return {}
    lead, best = found
    covered = own.coverage
    if len(covered):
        covered = covered[covered["group"].isin(own.kinds["group"])]
        covered = covered[covered["family"] == lead]
    parts = own.kinds[own.kinds["kind"] == lead]
    parts = parts[parts["group"] == best]
    if parts.empty:
        return {}
    rest = own.kinds[(own.kinds["group"] == best) & (own.kinds["kind"] != lead)]
    architecture = parts["architecture"].iloc[0]
    return {
        "lead": plural(lead),
        "lead_kind": lead,
        "group": best,
        "main": records(parts)[0],
        "rest": {name: _together(rest, name) for name in ("reproducibility", "above_null")},
        "coverage": next(iter(records(covered[covered["group"] == best])), None)
        if len(covered)
        else None,
        "widths": records(covered[covered["architecture"] == architecture].sort_values("d_sae"))
        if len(covered)
        else [],
    }


def _together(rest: pd.DataFrame, column: str) -> float | None:
    """Mean over the features of several kinds."""
    weights = rest["n_features"]
    return float((rest[column] * weights).sum() / weights.sum()) if weights.sum() else None


def _by_group(own: FirstTables) -> dict[str, Any]:
    """Gather the finding about all features of the group furthest above the permuted null."""
    scores = own.groups.query("score == 'pw_mcc' and not signed and space == 'full'")
    scores = scores[scores["mean"].notna()]
    full = own.features.query("space == 'full' and n_other_seeds > 0")
    full = full[full["group"].isin(scores["group"])]
    if full.empty:
        return {}
    null = scores.get("permuted_mean", scores.get("isotropic_mean", pd.Series(dtype=float)))
    null = null.reindex(scores.index).astype(float)
    at = int((scores["mean"] - null.fillna(0.0)).to_numpy().argmax())
    row = scores.iloc[at]
    part = full[full["group"] == row["group"]]
    everywhere = part["n_seeds_found"] == part["n_other_seeds"]
    return {
        "lead": "",
        "lead_kind": None,
        "group": str(row["group"]),
        "main": {
            "n_features": row["n_live"],
            "share": row["n_live"] / row["d_sae"],
            "d_sae": row["d_sae"],
            "reproducibility": row["mean"],
            "low": row["low"],
            "high": row["high"],
            "null_mean": null.iloc[at],
            "found_everywhere": float(everywhere.mean()),
            "found_nowhere": float((part["n_seeds_found"] == 0).mean()),
            "n_seeds": row["n_seeds"],
            "converged": all_converged(part["converged"]),
        },
        "coverage": None,
        "widths": [],
    }


def _before(kinds: pd.DataFrame, hook: str, group: str) -> dict[str, Any] | None:
    """The most frequent kind of features on the untrained transformer.

    In the SAEs of the same group, if there are any; else in the widest ones.
    """
    if not len(kinds):
        return None
    found = kinds[(kinds["hook"] == f"{hook}@untrained") & ~kinds["kind"].isin(["other", "dead"])]
    if found.empty:
        return None
    own = found[found["group"] == group + UNTRAINED]
    chosen = own if len(own) else found[found["d_sae"] == found["d_sae"].max()]
    row = records(chosen.sort_values("share"))[-1]
    return {**row, "words": plural(kind_words(str(row["kind"])))}
