"""Chooses and orders the rows that a page shows: the main group first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from husai.campaign.plan import UNTRAINED, records
from husai.consistency.study.labels import kind_words
from husai.transformer.shipped import Shipped

Rows = list[dict[str, Any]]


def group_order(groups: pd.DataFrame, main: str | None) -> list[str]:
    """Order groups: the main one, its architecture from wide to narrow, then the others.

    Parameters
    ----------
    groups
        Columns ``group``, ``architecture`` and ``d_sae``; a group may have several rows.
    main
        The group that the page is about.
    """
    known = groups.drop_duplicates("group")
    own = known.loc[known["group"] == main, "architecture"]
    first = own.iloc[0] if len(own) else None
    ranked = known.assign(
        _main=known["group"] != main,
        _other=known["architecture"] != first,
        _untrained=known["group"].str.endswith(UNTRAINED),
        _narrow=-known["d_sae"].astype(float),
    )
    by = ["_untrained", "_main", "_other", "architecture", "_narrow", "group"]
    return [str(name) for name in ranked.sort_values(by, kind="stable")["group"]]


def ordered(table: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """Sort a table's rows by group in the order of :func:`group_order`; unknown groups last."""
    if "group" not in table:
        return table
    place = {name: at for at, name in enumerate(order)}
    rank = table["group"].map(lambda name: place.get(str(name), len(place)))
    return table.iloc[rank.argsort(kind="stable")]


def kind_rows(kinds: pd.DataFrame, lead: str | None) -> Rows:
    """Return the kinds with at least one feature per SAE, in words, the leading one first.

    Parameters
    ----------
    kinds
        The table of a report, in the order of the groups.
    lead
        The leading kind.
    """
    if kinds.empty:
        return []
    shown = kinds[kinds["n_features"].round(1) >= 1]
    rank = shown.assign(
        _group=shown["group"].map({name: i for i, name in enumerate(shown["group"].unique())}),
        _lead=shown["kind"] != lead,
        _rest=shown["kind"].isin(["other", "dead"]),
        _few=-shown["n_features"],
    ).sort_values(["_group", "_lead", "_rest", "_few"], kind="stable")
    return [{**row, "words": kind_words(str(row["kind"]))} for row in records(rank)]


def coverage_rows(coverage: pd.DataFrame, lead: str | None) -> Rows:
    """Return the families of classes with at least one covered class.

    The family of the leading kind is always shown.
    """
    if coverage.empty:
        return []
    counts = coverage.reindex(columns=["mean", "by_firing", "by_average_precision"])
    shown = (coverage["family"] == lead) | (counts.max(axis=1).round() >= 1)
    return records(coverage[shown])


def frequency_balance(
    waves: pd.DataFrame, hook: str, transformer: Mapping[str, Any], shipped: Sequence[Shipped]
) -> dict[str, Any]:
    """Compare the largest key frequency's share of variance with other shipped transformers.

    Parameters
    ----------
    waves
        Share of the variance of each key frequency's waves, by ``hook``, ``model``, ``variable``.
    hook
        The study's main hook.
    transformer
        ``name`` of the shipped transformer that the study used, and its ``seed``.
    shipped
        All shipped transformers.

    Returns
    -------
    dict
        ``own``, the largest share of one frequency, and ``n_frequencies``; for the other
        transformers of the same stop their number ``n``, and the lowest and highest of their
        largest shares, ``low`` and ``high``. Empty if the study's transformer is not a shipped one,
        or its frequencies are not known.
    """
    entry = next((one for one in shipped if one.name == transformer.get("name")), None)
    if entry is None or waves.empty:
        return {}
    chosen = (waves["hook"] == hook) & (waves["model"] == "trained")
    own = waves.loc[chosen & (waves["variable"] == "answer"), "share"].dropna()
    others = [
        max(one.frequency_shares.values())
        for one in shipped
        if one.shipped == entry.shipped and one.name != entry.name and one.frequency_shares
    ]
    if own.empty or not others:
        return {}
    return {
        "own": float(own.max()),
        "n_frequencies": len(own),
        "n": len(others),
        "low": min(others),
        "high": max(others),
    }
