"""The page of a study, written from the tables of the run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from husai.campaign.plan import records
from husai.consistency.config import ConsistencyConfig
from husai.consistency.scores.registry import SCORES
from husai.reporting.config import ReportingConfig
from husai.reporting.first_screen import FirstTables, first_screen, main_sentence
from husai.reporting.render import all_converged, made_by, reasons, render
from husai.reporting.shown import (
    coverage_rows,
    frequency_balance,
    group_order,
    kind_rows,
    ordered,
)
from husai.sae.config import BankTrainingConfig
from husai.transformer.evaluation import grokking_summary
from husai.transformer.shipped import shipped_transformers

COVARIATES = {
    "firing_rate": "how often it fires",
    "cosine_to_init": "cosine to its initial value",
    "cosine_to_encoder": "cosine to its encoder row",
    "purity": "purity in one true plane",
    "energy": "energy in the true planes",
}
TRUTH_MEASURES = {
    "mean_energy": "energy",
    "mean_purity": "purity",
    "recall": "planes recalled",
    "covered": "circles covered",
    "gt_mcc": "GT-MCC of axes",
}


@dataclass(frozen=True)
class StudyTables:
    """The tables of a run that its page is written from.

    Attributes
    ----------
    statistics, waves
        Results of :func:`husai.activations.activation_statistics`, a row per hook; and the share
        of variance of the key frequencies' waves.
    saes
        The plan with the metrics of the SAEs.
    groups, features, truth, coverage, kinds
        Tables of :func:`husai.consistency.consistency_report`; ``truth`` may be empty.
    matched, published, orderings, trajectories, correlates
        Tables of :mod:`husai.consistency.study.tables`.
    """

    statistics: pd.DataFrame
    waves: pd.DataFrame
    saes: pd.DataFrame
    groups: pd.DataFrame
    features: pd.DataFrame
    truth: pd.DataFrame
    coverage: pd.DataFrame
    kinds: pd.DataFrame
    matched: pd.DataFrame
    published: pd.DataFrame
    orderings: pd.DataFrame
    trajectories: pd.DataFrame
    correlates: pd.DataFrame


@dataclass(frozen=True)
class StudyRun:
    """Facts about the run that a page states beside its tables.

    Attributes
    ----------
    origin
        The ``command`` as typed, the ``environment``, and ``changed``, the parameters that differ
        from the defaults: ``name``, ``value`` and ``default`` of each.
    training, evaluation
        Summary of the transformer's training; fingerprint, loss and accuracy of the reloaded
        weights. Both are empty without a transformer.
    provenance
        Commit and versions.
    campaign
        Name of the campaign that trained the SAEs; ``study`` is the default one.
    totals
        Numbers of its SAEs ``planned``, ``done`` and ``failed``, their ``attempts`` and
        device-``seconds``, and ``elapsed``, the wall-clock seconds in which at least one of them
        was trained.
    """

    origin: Mapping[str, Any]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    provenance: Mapping[str, Any]
    campaign: str
    totals: Mapping[str, float]


class StudyPage(NamedTuple):
    """The page as Markdown, and its main sentence as plain text."""

    text: str
    sentence: str


def study_page(
    run: StudyRun,
    tables: StudyTables,
    consistency: ConsistencyConfig,
    gate: BankTrainingConfig,
    reporting: ReportingConfig,
) -> StudyPage:
    """Write the page of a study.

    Parameters
    ----------
    run, tables
        The run and its tables.
    consistency, gate, reporting
        The parameters that the text states: levels and thresholds of the comparison, the training
        parameters, and the thresholds of the page's sentences.
    """
    own_hook = str(tables.groups["hook"].iloc[0])
    first = first_screen(
        FirstTables(tables.groups, tables.features, tables.coverage, tables.kinds),
        consistency,
        reporting,
    )
    sentence = main_sentence(first)
    everything = pd.concat([t for t in (tables.groups, tables.kinds) if len(t)], ignore_index=True)
    order = group_order(everything, first.get("group"))
    groups = ordered(tables.groups, order)
    kinds, coverage, truth, saes, correlates, trajectories = (
        ordered(table, order)
        for table in (
            tables.kinds,
            tables.coverage,
            tables.truth,
            tables.saes,
            tables.correlates,
            tables.trajectories,
        )
    )
    own = groups[groups["hook"] == own_hook]
    found = ordered(_found(tables.features), order)
    measures = {
        name: title
        for name, title in TRUTH_MEASURES.items()
        if len(truth) and (truth.loc[truth["measure"] == name, "mean"].fillna(0.0) > 0).any()
    }
    text = render(
        "home_study.md.j2",
        run=run,
        consistency=consistency,
        gate=gate,
        made_by=made_by(run.provenance),
        grokking_accuracy=inspect.signature(grokking_summary).parameters["threshold"].default,
        own_hook=own_hook,
        main_sentence=sentence,
        first=first,
        n_groups=own["group"].nunique(),
        balance=frequency_balance(
            tables.waves, own_hook, run.training.get("transformer", {}), shipped_transformers()
        ),
        coverage=coverage_rows(coverage, first.get("lead_kind")),
        kinds=kind_rows(kinds, first.get("lead_kind")),
        chance=_above_chance(own),
        which=_which_features(found, correlates, own_hook),
        purity=_pure_or_mixed(truth),
        statistics=records(tables.statistics),
        waves=_waves(tables.waves),
        saes=_saes(saes, groups),
        own_full=_scores(own, "full"),
        own_data=_scores(own, "data"),
        others=_scores(groups[groups["hook"] != own_hook], "full"),
        found=records(found),
        correlates=_correlates(correlates),
        covariates=COVARIATES,
        truth=_truth(truth, measures),
        truth_measures=measures,
        trajectories=_trajectories(trajectories),
        matched=_matched(tables.matched),
        published=_published(tables.published),
        orderings=records(tables.orderings[tables.orderings["reason"] != "not both measured here"]),
    )
    return StudyPage(text, sentence)


def _where(table: pd.DataFrame, mask: Any) -> list[dict[str, Any]]:
    return records(table[mask.astype(bool)])


def _pw_mcc(groups: pd.DataFrame) -> pd.DataFrame:
    chosen = groups[(groups["score"] == "pw_mcc") & ~groups["signed"].astype(bool)]
    return chosen[(chosen["space"] == "full") & chosen["mean"].notna()]


def _above_chance(own: pd.DataFrame) -> dict[str, Any]:
    """Count the groups whose scores are above or below each null."""
    known = _pw_mcc(own)
    known = known[known["low"].notna()]
    if known.empty or "data_aware_mean" not in known:
        return {}
    # very large comparisons have no permuted null
    verdicts = known.get("against_permuted", pd.Series(None, index=known.index, dtype=object))
    return {
        "n": len(known),
        "isotropic": int((known["low"] > known["isotropic_mean"]).sum()),
        "data_aware": int((known["low"] > known["data_aware_mean"]).sum()),
        "n_permuted": int(verdicts.notna().sum()),
        "above": _where(known, verdicts == "above"),
        "below": _where(known, verdicts == "below"),
    }


def _found(features: pd.DataFrame) -> pd.DataFrame:
    """For each group, the shares of features found in every other seed, and in none."""
    full = features[(features["space"] == "full") & (features["n_other_seeds"] > 0)]
    if "n_seeds_found" not in full or full.empty:
        return pd.DataFrame()
    full = full.assign(
        everywhere=full["n_seeds_found"] == full["n_other_seeds"],
        nowhere=full["n_seeds_found"] == 0,
    )
    counts = full.groupby(["hook", "group"], sort=False).agg(
        features=("latent", "size"),
        everywhere=("everywhere", "mean"),
        nowhere=("nowhere", "mean"),
        reproducibility=("reproducibility", "median"),
        converged=("converged", all_converged),
    )
    return counts.reset_index()


def _which_features(found: pd.DataFrame, correlates: pd.DataFrame, hook: str) -> dict[str, Any]:
    """Shares of features found in other seeds, and the properties correlated with it."""
    if found.empty:
        return {}
    own = found[found["hook"] == hook]
    known = correlates[correlates["low"].notna()] if "low" in correlates else correlates.iloc[:0]
    if "hook" in known:
        known = known[known["hook"] == hook]
    covariates = []
    for covariate, part in known.groupby("covariate", sort=False):
        up, down = int((part["low"] > 0).sum()), int((part["high"] < 0).sum())
        if up or down:
            name = COVARIATES[str(covariate)]
            covariates.append({"name": name, "up": up, "down": down, "n": len(part)})
    return {
        "everywhere": own["everywhere"],
        "nowhere": own["nowhere"],
        "covariates": covariates,
    }


def _pure_or_mixed(truth: pd.DataFrame) -> dict[str, Any]:
    """Groups whose features are purer, or less pure, than the data-aware null."""
    if truth.empty:
        return {}
    truth = truth[~truth["hook"].str.endswith("@untrained")]
    known = truth[(truth["measure"] == "mean_purity") & truth["mean"].notna()]
    if known.empty or "data_aware_mean" not in known:
        return {}
    recall = truth[(truth["measure"] == "recall") & truth["mean"].notna()]
    return {
        "n": len(known),
        "pure": _where(known, known["low"] > known["data_aware_mean"]),
        "mixed": _where(known, known["high"] < known["data_aware_mean"]),
        "recall": recall["mean"],
    }


def _waves(waves: pd.DataFrame) -> dict[str, Any]:
    if waves.empty:
        return {"columns": [], "rows": []}
    total = waves.groupby(["hook", "model", "variable"], sort=False)["share"].sum(min_count=1)
    wide = total.unstack("variable").reset_index()
    return {
        "columns": [name for name in ("a", "b", "answer") if name in wide],
        "rows": records(wide),
    }


def _saes(saes: pd.DataFrame, groups: pd.DataFrame) -> list[dict[str, Any]]:
    gates = groups.drop_duplicates("group").set_index("group")["n_converged"]
    means = saes.groupby("group", sort=False).agg(
        seeds=("sae_id", "size"),
        l0=("l0", "mean"),
        fvu=("fvu", "mean"),
        dead=("dead_fraction", "mean"),
        init=("cosine_to_init", "mean"),
        seconds=("train_seconds", "mean"),
    )
    means["converged"] = gates.reindex(means.index)
    return records(means.reset_index())


def _scores(groups: pd.DataFrame, space: str) -> dict[str, Any]:
    """PW-MCC of every group in one space, with its MMCS."""
    part = groups[(groups["space"] == space) & ~groups["signed"].astype(bool)]
    mmcs = part[part["score"] == "mmcs"].set_index("group")["mean"]
    scores = part[part["score"] == "pw_mcc"]
    return {
        "dimensions": sorted(set(scores["dimensions"])),
        "rows": records(scores.assign(mmcs=scores["group"].map(mmcs))),
    }


def _correlates(correlates: pd.DataFrame) -> dict[str, Any]:
    if "mean" not in correlates:
        return {"columns": [], "rows": []}
    cells = {(row["group"], row["covariate"]): row for row in records(correlates)}
    names = list(dict.fromkeys(correlates["covariate"]))
    return {
        "columns": names,
        "rows": [
            {
                "group": row["group"],
                "converged": row["converged"],
                "cells": [cells.get((row["group"], name), {}) for name in names],
            }
            for row in records(correlates.drop_duplicates("group"))
        ],
    }


def _truth(truth: pd.DataFrame, measures: Iterable[str]) -> list[dict[str, Any]]:
    if truth.empty:
        return []
    rows = []
    for (hook, group), part in truth.groupby(["hook", "group"], sort=False):
        lines = {row["measure"]: row for row in records(part)}
        cells = [lines.get(name, {}) for name in measures]
        for cell in cells:
            cell["chance"] = cell.get("data_aware_mean", cell.get("isotropic_mean"))
        rows.append(
            {"hook": hook, "group": group, "converged": part["converged"].iloc[0], "cells": cells}
        )
    return rows


def _trajectories(trajectories: pd.DataFrame) -> dict[str, Any]:
    """The first, middle and last two saved steps of every group."""
    if "step" not in trajectories or trajectories["step"].isna().all():
        return {"rows": [], "reasons": reasons(trajectories)}
    known = trajectories[trajectories["step"].notna()]
    rows = []
    for group, part in known.groupby("group", sort=False):
        steps = records(part.sort_values("step"))
        at = sorted({0, len(steps) // 2, max(0, len(steps) - 2), len(steps) - 1})
        rows.append(
            {
                "group": group,
                "converged": steps[0]["converged"],
                "points": [steps[i] for i in at],
                "init": steps[-1].get("cosine_to_init"),
            }
        )
    return {"rows": rows, "reasons": []}


def _matched(matched: pd.DataFrame) -> dict[str, Any]:
    full = matched[(matched["space"] == "full") & (matched["score"] != "mmcs")]
    keys = ["d_sae", "score", "signed", "matched_on", "at"]
    return {
        "rows": [
            {**dict(zip(keys, values, strict=True)), "architectures": records(part)}
            for values, part in (full.groupby(keys, sort=True) if len(full) else ())
        ],
        "reasons": reasons(matched),
    }


def _published(published: pd.DataFrame) -> Mapping[str, Sequence[dict[str, Any]]]:
    """Numbers of this study and of papers by score, with the papers' sign conventions."""
    ours = published["source"] == "this study"
    signed = published["signed"].map(lambda v: v is not None and not pd.isna(v) and bool(v))
    own = published[~ours | (signed == (published["score"] == "shared_fraction"))]
    return {
        SCORES[score].term: [
            {**row, "note": _note(str(row.get("differs_in") or ""))}
            for row in records(own[own["score"] == score])
        ]
        for score in ("pw_mcc", "shared_fraction")
        if (own["score"] == score).any()
    }


def _note(differs_in: str) -> str:
    """The note on a paper's number: the text in brackets at the end of ``differs_in``."""
    note = differs_in.partition(" (")[2].removesuffix(")")
    return re.sub(r"\|(\w+)\|", r"the absolute value of \1", note)
