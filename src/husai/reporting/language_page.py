"""The page of a language model's study, written from the tables of the run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from husai.campaign.plan import records
from husai.consistency import mean_interval
from husai.reporting.render import made_by, render

DENSITIES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Edges of the classes of features by how often they fire."""

CHOSEN, ALIKE, OTHERS = "chosen by a probe", "others that fire as often", "all others"

STEPS_A_DECADE = 4
"""Within so much of how often they fire, features count as firing as often as one another."""

EXAMPLES = 8
"""Features of either kind that are shown with their contexts."""

PROBED = 16
"""Latents that a probe chooses, for the features that probes choose; or the most there were."""


@dataclass(frozen=True)
class LanguageTables:
    """The tables of a language model's study.

    Attributes
    ----------
    statistics
        Statistics of the activations, a row per hook.
    groups, features
        Tables of the comparison of seeds.
    untrained_groups, untrained_features
        The same tables for the model with new initial weights; empty where it was not read.
    metrics, probes, probe_summary, contexts
        Tables of :mod:`husai.language`.
    """

    statistics: pd.DataFrame
    groups: pd.DataFrame
    features: pd.DataFrame
    untrained_groups: pd.DataFrame
    untrained_features: pd.DataFrame
    metrics: pd.DataFrame
    probes: pd.DataFrame
    probe_summary: pd.DataFrame
    contexts: pd.DataFrame


class FigureTables(NamedTuple):
    """What the picture shows: the tables by density and by probe, and the untrained groups."""

    by_density: pd.DataFrame
    by_probe: pd.DataFrame
    untrained: tuple[str, ...]


def figure_tables(tables: LanguageTables, level: float) -> FigureTables:
    """Gather what the picture of a language model's study shows."""
    hook = str(tables.groups["hook"].iloc[0])
    features = own_features(tables.features, hook)
    chosen, _ = chosen_latents(tables.probes)
    twin = own_features(tables.untrained_features, "")
    untrained = set(twin["group"].astype(str)) if len(twin) else set()
    return FigureTables(
        by_density(pd.concat([features, twin]), level),
        by_probe(features, chosen, level),
        tuple(sorted(untrained)),
    )


def language_page(
    origin: Mapping[str, Any],
    provenance: Mapping[str, Any],
    about: Mapping[str, Any],
    tables: LanguageTables,
    *,
    threshold: float,
    level: float,
) -> str:
    """Write what a study of a language model found.

    Parameters
    ----------
    origin, provenance
        The command, the commit and the versions.
    about
        ``model``, ``text`` and ``counts`` of its tokens.
    tables
        The study's tables.
    threshold
        Least similarity at which a feature counts as found in another seed.
    level
        Confidence level of the intervals, which are over seeds.
    """
    hook = str(tables.groups["hook"].iloc[0])
    features = own_features(tables.features, hook)
    _, k = chosen_latents(tables.probes)
    metrics = metrics_by_group(tables.metrics, level)
    shown = figure_tables(tables, level)
    groups = _group_rows(tables, features, hook, level)
    return render(
        "language_study.md.j2",
        origin=origin,
        made_by=made_by(provenance),
        about=about,
        hook=hook,
        threshold=threshold,
        level=level,
        statistics=records(tables.statistics),
        groups=groups,
        finding=finding(groups, set(shown.untrained)),
        by_density=records(shown.by_density),
        by_probe=records(shown.by_probe),
        probed=k,
        metrics=metrics,
        by_change=any("output_change_score" in row for row in metrics),
        probes=records(tables.probe_summary),
        n_tasks=int(tables.probes["task"].nunique()),
        examples=records(examples(features, tables.contexts)),
    )


@dataclass(frozen=True)
class Finding:
    """What the first paragraph of the page says.

    Attributes
    ----------
    most, least
        The groups of the trained model of whose features the largest and the smallest share is
        found in every other seed: rows of the page's first table.
    twin
        The untrained group of the same name as one of them, or else the first; None without any.
    n_groups, n_settled, n_unknown
        Groups of the trained model: all, those that passed the gate, and those of which it is not
        known.
    """

    most: dict[str, Any]
    least: dict[str, Any]
    twin: dict[str, Any] | None
    n_groups: int
    n_settled: int
    n_unknown: int


def finding(groups: list[dict[str, Any]], untrained: set[str]) -> Finding | None:
    """Say which groups come back most and least, and how many have settled.

    Parameters
    ----------
    groups
        Rows of the page's first table.
    untrained
        Names of the groups of the untrained model.

    Returns
    -------
    Finding or None
        None when no group of the trained model has two seeds.
    """
    own = [row for row in groups if row["group"] not in untrained and _known(row["everywhere"])]
    if not own:
        return None
    ordered = sorted(own, key=lambda row: float(row["everywhere"]))
    most, least = ordered[-1], ordered[0]
    twins = [row for row in groups if row["group"] in untrained]
    same = [row for row in twins if row["group"].startswith((most["group"], least["group"]))]
    flags = [row.get("converged") for row in own]
    return Finding(
        most=most,
        least=least,
        twin=next(iter(same or twins), None),
        n_groups=len(own),
        n_settled=sum(_known(flag) and bool(flag) for flag in flags),
        n_unknown=sum(not _known(flag) for flag in flags),
    )


def _known(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def own_features(features: pd.DataFrame, hook: str) -> pd.DataFrame:
    """Select the features of one hook's SAEs, and mark those that every other seed has.

    Only features in the space of all dimensions are selected. The table of the untrained model has
    no column for the hook: give an empty name for it.
    """
    if features.empty:
        return features
    own = features[features["space"] == "full"]
    own = own[own["hook"] == hook] if hook else own
    own = own[own["n_other_seeds"] > 0]
    return own.assign(everywhere=own["n_seeds_found"] == own["n_other_seeds"])


def chosen_latents(probes: pd.DataFrame) -> tuple[set[tuple[str, int]], int]:
    """Latents that a probe of some task chose, as (SAE, latent), and how many each probe chose."""
    sparse = probes[(probes["k"] > 0) & (probes["model"] == "trained")]
    k = int(min(sparse["k"], key=lambda value: abs(int(value) - PROBED)))
    own = sparse[sparse["k"] == k]
    return {
        (str(sae_id), latent)
        for sae_id, selected in zip(own["sae_id"], own["selected"], strict=True)
        for latent in json.loads(selected)
    }, k


def by_density(features: pd.DataFrame, level: float) -> pd.DataFrame:
    """Reproducibility of a group's features by how often they fire, with intervals over seeds."""
    edges = list(DENSITIES)
    labels = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    density = pd.cut(features["firing_rate"], edges, labels=labels)
    return _over_seeds(features.assign(density=density.astype(str)), "density", labels, level)


def by_probe(features: pd.DataFrame, chosen: set[tuple[str, int]], level: float) -> pd.DataFrame:
    """Reproducibility of the features that probes choose, and of the others.

    Probes choose features that fire often, and those come back more in any case: a third row
    weights the others of each SAE so that they fire as often as the chosen ones.
    """
    is_chosen = np.array(
        [
            (str(sae_id), int(latent)) in chosen
            for sae_id, latent in zip(features["id"], features["latent"], strict=True)
        ],
        dtype=bool,
    )
    kinds = np.where(is_chosen, CHOSEN, OTHERS)
    known = features.assign(kind=kinds, weight=1.0)
    steps = np.floor(np.log10(known["firing_rate"].clip(lower=1e-12)) * STEPS_A_DECADE)
    cells = [known["id"], steps]
    counts = known.assign(_chosen=is_chosen).groupby(cells)["_chosen"]
    weight = counts.transform("sum") / (counts.transform("size") - counts.transform("sum"))
    alike = known[~is_chosen].assign(kind=ALIKE, weight=weight[~is_chosen])
    together = pd.concat([known, alike[alike["weight"] > 0]])
    return _over_seeds(together, "kind", [CHOSEN, ALIKE, OTHERS], level)


def examples(features: pd.DataFrame, contexts: pd.DataFrame, n: int = EXAMPLES) -> pd.DataFrame:
    """Show features of one SAE that every other seed has, and some that none has.

    None is picked by hand: they are evenly spaced in the order of how often they fire.

    Parameters
    ----------
    features
        Of one hook, see :func:`own_features`.
    contexts
        The contexts that activate each latent most.
    n
        Features of either kind.

    Returns
    -------
    DataFrame
        ``group``, ``found`` (``in every other seed`` or ``in none``), ``firing_rate``, and the
        ``first`` and ``second`` context in Markdown. Of the first SAE in the table.
    """
    first = features[features["id"] == features["id"].iloc[0]] if len(features) else features
    shown = contexts[contexts["rank"] < 2] if len(contexts) else contexts
    rows = []
    for found in ("in every other seed", "in none"):
        if first.empty:
            break
        chosen = first["everywhere"] if found != "in none" else first["n_seeds_found"] == 0
        own = first[chosen & (first["firing_rate"] > 0)]
        own = own.sort_values("firing_rate", ascending=False)
        spaced = np.unique(np.linspace(0, max(0, len(own) - 1), n).round().astype(int))
        for row in records(own.iloc[spaced[: len(own)]]):
            texts: list[str] = []
            if len(shown):
                same = (shown["sae_id"] == row["id"]) & (shown["latent"] == row["latent"])
                texts = shown[same].sort_values("rank")["text"].map(_in_a_cell).tolist()
            first_text, second_text = [*texts, "", ""][:2]
            rows.append(
                {"group": row["group"], "found": found, "firing_rate": row["firing_rate"],
                 "first": first_text, "second": second_text}
            )  # fmt: skip
    return pd.DataFrame(rows)


def _in_a_cell(text: str) -> str:
    """Make a text safe in a cell of a Markdown table, with the marked token bold."""
    plain = re.sub(r"([\\`*_|<>\[\]#$~])", r"\\\1", text)
    return plain.replace("«", "**«").replace("»", "»**")


def _over_seeds(features: pd.DataFrame, kind: str, kinds: list[str], level: float) -> pd.DataFrame:
    """Mean over each SAE's features, by ``weight`` where they have one, and over the seeds."""
    found = []
    weighted = features if "weight" in features else features.assign(weight=1.0)
    for group, own in weighted.groupby("group", sort=False):
        for name in kinds:
            rows = own[own[kind] == name]
            part = rows.groupby("id")
            if not len(part):
                continue
            row: dict[str, Any] = {"group": group, kind: name, "features": part.size().mean()}
            for column in ("reproducibility", "everywhere"):
                sums = (rows[column] * rows["weight"]).groupby(rows["id"]).sum()
                means = sums / part["weight"].sum()
                interval = mean_interval(means, level=level, bounds=(0.0, 1.0))
                row |= {
                    column: interval.mean,
                    f"{column}_low": interval.low,
                    f"{column}_high": interval.high,
                }
            found.append(row)
    return pd.DataFrame(found)


def _group_rows(
    tables: LanguageTables, features: pd.DataFrame, hook: str, level: float
) -> list[dict[str, Any]]:
    """Make the rows of the trained groups with their nulls, then of the untrained without nulls."""
    groups = tables.groups
    own = groups[(groups["hook"] == hook) & ~groups["signed"].astype(bool)]
    own = own[own["space"] == "full"]
    scores = own[own["score"] == "pw_mcc"]
    found = own[own["score"] == "matched_fraction"].set_index("group")
    scores = scores.assign(
        matched=scores["group"].map(found["mean"]),
        matched_low=scores["group"].map(found["low"]),
        matched_high=scores["group"].map(found["high"]),
        matched_permuted=scores["group"].map(found["permuted_mean"]),
    )
    twin = own_features(tables.untrained_features, "")
    known = pd.concat([features, twin])
    shares = _over_seeds(known.assign(all="all"), "all", ["all"], level)
    if shares.empty:
        return []
    kept = [c for c in shares.columns if c.startswith(("group", "features", "every"))]
    fvu = 1 - tables.metrics.groupby("group")["explained_variance"].mean()
    untrained = tables.untrained_groups
    if len(untrained):
        untrained = untrained.assign(fvu=untrained["group"].map(fvu))
    together = pd.concat([scores, untrained], ignore_index=True)
    return records(together.merge(shares[kept], on="group", how="left"))


def metrics_by_group(metrics: pd.DataFrame, level: float) -> list[dict[str, Any]]:
    """Mean of every metric over a group's seeds, with its interval: ``name``, ``name_low``, ….

    A metric that was not measured is left out.
    """
    found = []
    known = metrics.drop(columns=["sae_id", "seed", "d_sae"]).select_dtypes("number").columns
    for (group, model), part in metrics.groupby(["group", "model"], sort=False):
        row: dict[str, Any] = {"group": group, "model": model}
        for name in known:
            values = part[name].dropna()
            if len(values):
                interval = mean_interval(values, level=level)
                row |= {name: interval.mean, f"{name}_low": interval.low}
                row |= {f"{name}_high": interval.high}
        found.append(row)
    return found
