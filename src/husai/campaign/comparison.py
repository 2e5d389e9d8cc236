"""The comparison of a study's SAEs, hook by hook: its report and the tables beside it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from husai.activations.rows import Activations, activation_key
from husai.campaign.plan import UNTRAINED, plan_keys
from husai.campaign.records import StudyRecords, decoders_by_step, plain_settings, study_hooks
from husai.consistency import (
    beside_published,
    consistency_report,
    join_reports,
    plane_truth,
)
from husai.consistency.config import ConsistencyConfig
from husai.consistency.study.beside import BESIDE
from husai.consistency.study.geometry import geometry_table, symmetry_table
from husai.consistency.study.labels import candidate_labels, label_tables
from husai.consistency.study.matched import matched_tables
from husai.consistency.study.planning import own_components, seeds_needed
from husai.consistency.study.record import group_members, live_group, with_firing_rates
from husai.consistency.study.report import ConsistencyReport
from husai.consistency.study.summary import checked_summary, plain_rows, tracked_metrics
from husai.consistency.study.tables import (
    orderings_table,
    settings_table,
    trajectory_table,
)
from husai.errors import InputError
from husai.provenance import git_commit, versions

logger = logging.getLogger(__name__)


def compare_study(
    study: StudyRecords, config: ConsistencyConfig, *, labels: pd.DataFrame | None = None
) -> tuple[ConsistencyReport, dict[str, Any]]:
    """Compare the SAEs of every group over their seeds, hook by hook.

    Parameters
    ----------
    study, config
        The SAEs, and how to compare them.
    labels
        Labels of the user's own rows, a column each; those of a modular task are known.

    Returns
    -------
    report
        Its tables ``truth``, ``coverage`` and ``kinds`` also have the SAEs of the untrained model,
        if there are any: they show which features were there before training.
    summary
        The content of ``summary.json``, checked.

    Raises
    ------
    InputError
        When every SAE of the study failed.
    """
    reports, fingerprints = {}, {}
    before: list[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]] = []
    for hook, own in study.trained.items():
        # external SAEs read the same activations as the SAEs of the grid
        records = [*own.records, *(study.external if own is study.first else ())]
        if not records:
            logger.warning("every SAE at %s failed; there is nothing to compare", hook)
            continue
        planes = own.rows.planes
        reports[hook] = consistency_report(
            records,
            config,
            covariance=own.covariance,
            planes=None if planes is None else planes.numpy(),
            labelled=candidate_labels(own.rows, labels),
        )
        fingerprints[hook] = own.rows.fingerprint
        before.append(
            (_untrained_truth(study, hook, config), *_untrained_kinds(study, hook, config))
        )
    report = join_reports(reports)
    truth, coverage, kinds = (
        pd.concat([getattr(report, name), *tables], ignore_index=True)
        for name, tables in zip(
            ("truth", "coverage", "kinds"), zip(*before, strict=True), strict=True
        )
    )
    summary = checked_summary(
        {
            **report.summary,
            "truth": plain_rows(truth),
            "coverage": plain_rows(coverage),
            "kinds": plain_rows(kinds),
            "metrics": tracked_metrics(report.groups),
            "provenance": {
                "plan": study.plan["sae_id"].tolist(),
                "seeds": sorted({int(seed) for seed in study.plan["seed"]}),
                "activations": [
                    {"hook": key, "fingerprint": value} for key, value in fingerprints.items()
                ],
                "transformer": study.first.rows.model.get("transformer"),
                "versions": versions(),
                **git_commit(Path(__file__).parent),
            },
        }
    )
    return replace(report, truth=truth, coverage=coverage, kinds=kinds), summary


def _untrained_kinds(
    study: StudyRecords, hook: str, config: ConsistencyConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coverage and kinds of the untrained model's SAEs: the features before training."""
    own = study.untrained.get(hook)
    labelled = None if own is None else candidate_labels(own.rows)
    if own is None or labelled is None or not own.records:
        return pd.DataFrame(), pd.DataFrame()
    named = [replace(record, group=record.group + UNTRAINED) for record in own.records]
    members = group_members(with_firing_rates(named))
    live = {name: live_group(group, config) for name, group in members.items()}
    found = label_tables(live, labelled, config)
    at = f"{hook}@untrained"
    coverage, kinds = (
        table.assign(hook=at) if len(table) else table for table in (found.coverage, found.kinds)
    )
    return coverage, kinds


def _untrained_truth(study: StudyRecords, hook: str, config: ConsistencyConfig) -> pd.DataFrame:
    """Compare the untrained model's SAEs with its own planes of the key frequencies."""
    own = study.untrained.get(hook)
    if own is None or own.rows.planes is None or not own.records:
        return pd.DataFrame()
    named = [replace(record, group=record.group + UNTRAINED) for record in own.records]
    planes = own.rows.planes.numpy()
    _, truth = plane_truth(named, planes, config, covariance=own.covariance)
    return truth.assign(hook=f"{hook}@untrained")


class ScoreTables(NamedTuple):
    """The tables of a report that have scores: of groups, of pairs and of SAEs."""

    groups: pd.DataFrame
    pairs: pd.DataFrame
    saes: pd.DataFrame


class SettingsTables(NamedTuple):
    """The tables that compare scores at the study's main hook with settings and literature."""

    settings: pd.DataFrame
    matched: pd.DataFrame
    contrasts: pd.DataFrame
    seeds_needed: pd.DataFrame
    published: pd.DataFrame
    orderings: pd.DataFrame


def settings_tables(
    plan: pd.DataFrame, scores: ScoreTables, statistics: pd.DataFrame, config: ConsistencyConfig
) -> SettingsTables:
    """Compare the scores at the study's main hook with the settings and the literature.

    Parameters
    ----------
    plan
        The plan.
    scores
        Tables of a report.
    statistics
        :func:`husai.activations.statistics_table` of the rows.
    config
        Level of the intervals.

    Returns
    -------
    SettingsTables
        Scores by width, k and L0; matched architectures, and their differences; the seeds that
        settings need; published scores; and the orders of the architectures.

    Raises
    ------
    InputError
        When the statistics were made by another version.
    """
    key = study_hooks(plan)[0]
    absent = {"hook_name", "position", "model", "entropy_rank"} - set(statistics.columns)
    if absent:
        raise InputError(
            f"activation statistics: columns {', '.join(sorted(absent))} are missing, so another "
            "version of husai made them; extract the activations again"
        )
    known = statistics.assign(
        key=[
            activation_key(row["hook_name"], row["position"], row["model"])
            for row in statistics.to_dict("records")
        ]
    ).set_index("key")
    groups, pairs, saes = (table[table["hook"] == key] for table in scores)
    settings = settings_table(groups, float(known["entropy_rank"][key]))
    # groups outside the grid may differ in more than their sparsity
    beside = set(plan.loc[~plain_settings(plan), "group"])
    comparable = groups[~groups["group"].isin(beside)]
    matched, contrasts = matched_tables(comparable, pairs, saes, level=config.level)
    components, reasons = own_components(pairs)
    needed = seeds_needed(components, groups, level=config.level, reasons=reasons)
    return SettingsTables(
        BESIDE["settings"].check(settings),
        BESIDE["matched"].check(matched),
        BESIDE["contrasts"].check(contrasts),
        BESIDE["seeds_needed"].check(needed),
        BESIDE["published"].check(
            beside_published(groups, model=f"this study's transformer, {key}")
        ),
        BESIDE["orderings"].check(orderings_table(comparable, contrasts)),
    )


def study_trajectories(
    study: StudyRecords, groups: pd.DataFrame, config: ConsistencyConfig
) -> pd.DataFrame:
    """Follow the agreement between seeds over training, from decoders saved during training.

    Returns
    -------
    pandas.DataFrame
        :func:`husai.consistency.study.tables.trajectory_table` of every hook's groups.
    """
    found = group_members([one for hook in study.trained.values() for one in hook.records])
    # in the order of the plan: the study's main hook first
    members = {name: found[name] for name in dict.fromkeys(study.plan["group"]) if name in found}
    chosen = groups.query("score == 'pw_mcc' and not signed and space == 'full'")
    nulls = {
        str(row["group"]): {
            kind: float(row[f"{kind}_mean"])
            for kind in ("permuted", "isotropic", "data_aware")
            if pd.notna(row.get(f"{kind}_mean"))
        }
        for row in chosen.to_dict("records")
    }
    table = trajectory_table(
        members, lambda record: decoders_by_step(study.saes[record.id]), nulls, config
    )
    hooks = dict(zip(study.plan["group"], plan_keys(study.plan), strict=True))
    return BESIDE["trajectories"].check(table.assign(hook=table["group"].map(hooks)))


def study_geometry(study: StudyRecords, config: ConsistencyConfig) -> pd.DataFrame:
    """Make the table of geometry for all hooks: measures of each group, beside their nulls."""
    tables = [
        geometry_table(group_members(own.records), config, own.covariance).assign(hook=hook)
        for hook, own in study.trained.items()
    ]
    return BESIDE["geometry"].check(pd.concat(tables, ignore_index=True))


def study_symmetries(study: StudyRecords, config: ConsistencyConfig) -> pd.DataFrame:
    """Make the table of symmetries: which map a dictionary to itself or to another seed's."""
    members = group_members(study.first.records)
    modulus = addition_modulus(study.first.rows)
    if modulus is None:
        reason = "the rows are not all pairs (a, b) of a modular addition"
        return pd.DataFrame(
            [{"group": name, "converged": None, "reason": reason} for name in members]
        )
    return BESIDE["symmetries"].check(symmetry_table(members, modulus, config))


def addition_modulus(rows: Activations) -> int | None:
    """Return p if the rows are all pairs (a, b) of addition modulo p, in order; else None."""
    vocabulary = rows.model.get("vocabulary", {})
    modulus = vocabulary.get("modulus")
    complete = modulus is not None and len(rows.values) == modulus**2
    return int(modulus) if complete and vocabulary.get("operation") == "addition" else None
