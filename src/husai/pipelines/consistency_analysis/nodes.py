"""Nodes that measure which features come back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.activations.rows import Activations, activation_key
from husai.campaign.plan import UNTRAINED, plan_keys
from husai.consistency.config import ConsistencyConfig
from husai.errors import InputError
from husai.provenance import git_commit, versions
from husai.storage import TensorFiles

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from husai.campaign.records import StudyRecords
    from husai.consistency import SAERecord
else:
    # Kedro resolves the hints of every node; these are slow to import
    Figure = SAERecord = StudyRecords = object


def gather(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    external_saes: Mapping[str, Sequence[SAERecord]],
    activations: TensorFiles,
) -> StudyRecords:
    """Read the plan's SAEs and rows, and encode the rows: once for all that follows."""
    from husai.campaign.records import gather_records

    return gather_records(sae_plan, saes, external_saes, activations)


def compare(
    study: StudyRecords, consistency: ConsistencyConfig
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, pd.DataFrame], dict[str, Any]]:
    """Compare the SAEs of every group across their seeds, beside every null, hook by hook."""
    from husai.consistency import consistency_report, join_reports
    from husai.consistency.study.summary import checked_summary, plain_rows

    reports, fingerprints = {}, {}
    untrained_truth = []
    for hook, own in study.trained.items():
        # those from elsewhere read what the grid's SAEs read
        records = [*own.records, *(study.external if own is study.first else ())]
        if not records:
            logger.warning("every SAE at %s failed; there is nothing to compare", hook)
            continue
        planes = own.rows.planes
        reports[hook] = consistency_report(
            records,
            consistency,
            covariance=own.covariance,
            planes=None if planes is None else planes.numpy(),
            untrained=study.untrained[hook].records if hook in study.untrained else (),
        )
        fingerprints[hook] = own.rows.fingerprint
        untrained_truth.append(score_untrained(study, hook, consistency))
    report = join_reports(reports)
    # what the same settings find of the waves that the data alone hold
    truth = pd.concat([report.truth, *untrained_truth], ignore_index=True)
    summary = checked_summary(
        {
            **report.summary,
            "truth": plain_rows(truth),
            "metrics": group_metrics(report.groups),
            "provenance": {
                "plan": study.plan["sae_id"].tolist(),
                "seeds": sorted({int(seed) for seed in study.plan["seed"]}),
                "activations": [
                    {"hook": key, "fingerprint": value} for key, value in fingerprints.items()
                ],
                "versions": versions(),
                **git_commit(Path(__file__).parent),
            },
        }
    )
    tables = report.tables()
    if len(truth):
        tables["truth"] = truth
    for name in ("groups", "pairs", "features"):
        tables.pop(name, None)
    return report.groups, report.pairs, report.features, tables, summary


def tabulate_settings(
    sae_plan: pd.DataFrame,
    consistency_groups: pd.DataFrame,
    activation_statistics: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Put scores against width, k and L0, at matched L0, and beside the published ones."""
    from husai.campaign.records import plain_settings, study_hooks
    from husai.consistency import beside_published
    from husai.consistency.study.tables import matched_l0_table, orderings_table, settings_table

    key = study_hooks(sae_plan)[0]
    statistics = activation_statistics.assign(
        key=[
            activation_key(row["hook_name"], row["position"], row["model"])
            for row in activation_statistics.to_dict("records")
        ]
    ).set_index("key")
    groups = consistency_groups[consistency_groups["hook"] == key]
    settings = settings_table(groups, float(statistics["entropy_rank"][key]))
    # groups beside the grid may differ in more than their sparsity
    beside = set(sae_plan.loc[~plain_settings(sae_plan), "group"])
    comparable = groups[~groups["group"].isin(beside)]
    matched = matched_l0_table(comparable)
    return (
        settings,
        matched,
        beside_published(groups, model=f"this study's transformer, {key}"),
        orderings_table(comparable, matched),
    )


def correlate_features(features: pd.DataFrame, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Correlate reproducibility with other properties of features."""
    from husai.consistency.study.tables import correlates_table

    return correlates_table(features, level=consistency.level)


def follow_training(
    study: StudyRecords, consistency_groups: pd.DataFrame, consistency: ConsistencyConfig
) -> pd.DataFrame:
    """Follow the agreement between seeds over training, from the decoders kept on the way."""
    from husai.campaign.records import decoders_by_step
    from husai.consistency.study.record import group_members
    from husai.consistency.study.tables import trajectory_table

    found = group_members([one for hook in study.trained.values() for one in hook.records])
    # the plan's order: the study's own hook first
    members = {name: found[name] for name in dict.fromkeys(study.plan["group"]) if name in found}
    chosen = consistency_groups.query("score == 'pw_mcc' and not signed and space == 'full'")
    nulls = {
        str(row["group"]): {
            kind: float(row[f"{kind}_mean"])
            for kind in ("isotropic", "data_aware")
            if pd.notna(row.get(f"{kind}_mean"))
        }
        for row in chosen.to_dict("records")
    }
    table = trajectory_table(
        members, lambda record: decoders_by_step(study.saes[record.id]), nulls, consistency
    )
    hooks = dict(zip(study.plan["group"], plan_keys(study.plan), strict=True))
    return table.assign(hook=table["group"].map(hooks))


def measure_geometry(study: StudyRecords, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Measure how each group's directions lie and fire, beside random ones."""
    from husai.consistency.study.geometry import geometry_table
    from husai.consistency.study.record import group_members

    tables = [
        geometry_table(group_members(own.records), consistency, own.covariance).assign(hook=hook)
        for hook, own in study.trained.items()
    ]
    return pd.concat(tables, ignore_index=True)


def find_symmetries(study: StudyRecords, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Measure which of the task's symmetries map dictionaries to themselves or to other seeds'."""
    from husai.consistency.study.geometry import symmetry_table
    from husai.consistency.study.record import group_members

    members = group_members(study.first.records)
    modulus = addition_modulus(study.first.rows)
    if modulus is None:
        reason = "the rows are not all pairs (a, b) of a modular addition"
        return pd.DataFrame(
            [{"group": name, "converged": None, "reason": reason} for name in members]
        )
    return symmetry_table(members, modulus, consistency)


def addition_modulus(rows: Activations) -> int | None:
    """Give p where the rows are all pairs (a, b) of addition modulo p, in order; else None."""
    vocabulary = rows.model.get("vocabulary", {})
    modulus = vocabulary.get("modulus")
    complete = modulus is not None and len(rows.values) == modulus**2
    return int(modulus) if complete and vocabulary.get("operation") == "addition" else None


def group_metrics(groups: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Give each group's scores and their excess over chance, by name, for tracking."""
    metrics: dict[str, dict[str, float]] = {}
    wanted = groups[groups["score"].isin(["pw_mcc", "mmcs", "shared_fraction"])]
    for row in wanted.to_dict("records"):
        name = f"{row['score']}{'_signed' if row['signed'] else ''}_{row['space']}"
        found = metrics.setdefault(row["group"], {})
        for label, column in (
            (name, "mean"),
            (f"{name}_above_isotropic", "isotropic_corrected"),
            (f"{name}_above_data_aware", "data_aware_corrected"),
        ):
            if pd.notna(row.get(column)):
                found[label] = float(row[column])
    return metrics


def plot_scores(groups: pd.DataFrame) -> Figure:
    """Draw every group's PW-MCC with its interval and nulls."""
    from husai.figures.scores import scores_figure

    return _draw_or_explain(lambda: scores_figure(of_study(groups)))


def plot_seeds(pairs: pd.DataFrame) -> Figure:
    """Draw PW-MCC of every pair of seeds as heat maps."""
    from husai.figures.scores import seed_matrix_figure

    return _draw_or_explain(lambda: seed_matrix_figure(of_study(pairs)))


def plot_reproducibility(features: pd.DataFrame, consistency: ConsistencyConfig) -> Figure:
    """Draw how well each feature comes back against how often it fires."""
    from husai.figures.features import reproducibility_figure

    return _draw_or_explain(
        lambda: reproducibility_figure(of_study(features), threshold=consistency.shared_threshold)
    )


def plot_settings(settings: pd.DataFrame) -> Figure:
    """Draw PW-MCC against width over effective rank, k and L0."""
    from husai.figures.scores import settings_figure

    return _draw_or_explain(lambda: settings_figure(settings))


def plot_trajectories(trajectories: pd.DataFrame) -> Figure:
    """Draw the agreement between seeds over training."""
    from husai.figures.trajectories import training_figure

    return _draw_or_explain(lambda: training_figure(of_study(trajectories)))


def plot_symmetries(symmetries: pd.DataFrame) -> Figure:
    """Draw how far each symmetry maps dictionaries to themselves and to other seeds'."""
    from husai.figures.geometry import symmetry_figure

    return symmetry_figure(symmetries)


def plot_similarity(groups: pd.DataFrame, study: StudyRecords) -> Figure:
    """Draw two seeds' matched similarities, for the group that is furthest above chance."""
    from husai.consistency import match_features
    from husai.figures.features import similarity_figure
    from husai.figures.style import not_available

    group, found = best_group(groups, study)
    if len(found) < 2:
        return not_available(f"{group}: one SAE, no pair to compare")
    one, two = found[:2]
    return similarity_figure(
        one.W_dec,
        two.W_dec,
        match_features(one.W_dec, two.W_dec),
        names=(one.id, two.id),
        unconverged=not (one.converged and two.converged),
    )


def plot_geometry(study: StudyRecords) -> tuple[Figure, Figure, Figure]:
    """Draw how an SAE of each architecture lies in space, fires, and tiles the true circles."""
    from husai.campaign.records import example_saes
    from husai.consistency import plane_recovery, sparsity_pattern
    from husai.figures.geometry import activation_figure, circle_figure, geometry_figure
    from husai.figures.style import not_available

    chosen = {name: study.record(sae_id) for name, sae_id in example_saes(study).items()}
    open_ones = [name for name, sae in chosen.items() if not sae.converged]
    weights = {name: (sae.W_dec, sae.W_enc) for name, sae in chosen.items()}
    geometry = geometry_figure(weights, unconverged=open_ones)
    patterns = {
        name: sparsity_pattern(sae.codes) for name, sae in chosen.items() if sae.codes is not None
    }
    firing = activation_figure(patterns, unconverged=open_ones)
    rows = study.first.rows
    if rows.planes is None:
        return geometry, firing, not_available("no ground truth is known at this hook")
    planes = rows.planes.numpy()
    circles = circle_figure(
        {name: plane_recovery(sae.W_dec, planes) for name, sae in chosen.items()},
        plane_names=rows.plane_names,
        unconverged=open_ones,
    )
    return geometry, firing, circles


def plot_correlation(groups: pd.DataFrame, study: StudyRecords) -> Figure:
    """Draw which latents of one SAE go together: of the group that is furthest above chance."""
    import numpy as np

    from husai.consistency import cluster_features, coactivation
    from husai.consistency.scores.codes import whole_codes
    from husai.figures.geometry import correlation_figure
    from husai.figures.style import not_available

    sae = best_group(groups, study)[1][0]
    assert sae.codes is not None  # those of the plan are encoded
    codes = whole_codes(sae.codes).toarray()
    alive = np.flatnonzero(codes.std(axis=0) > 0)
    if len(alive) < 2:
        return not_available(f"{sae.id}: fewer than two of its latents vary; nothing is correlated")
    return correlation_figure(
        np.corrcoef(codes[:, alive], rowvar=False),
        order=cluster_features(sae.W_dec[alive]).order,
        coactivation=coactivation(codes),
        name=sae.id + ("" if sae.converged else " †"),
    )


def of_study(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the study's own hook, the table's first; others are not comparable."""
    return table[table["hook"] == table["hook"].iloc[0]] if len(table) else table


def _draw_or_explain(draw: Callable[[], Figure]) -> Figure:
    """Draw, or say in the figure why it is empty: one seed, no latent that fires."""
    from husai.figures.style import not_available

    try:
        return draw()
    except InputError as error:
        logger.warning("nothing to draw: %s", error)
        return not_available(str(error))


def best_group(groups: pd.DataFrame, study: StudyRecords) -> tuple[str, list[SAERecord]]:
    """Give the group of the study's hook furthest above chance, with its SAEs that did not fail."""
    chosen = of_study(groups).query("score == 'pw_mcc' and not signed and space == 'full'")
    chosen = chosen[chosen["group"].isin(study.plan["group"])]
    if "isotropic_corrected" in chosen:
        chosen = chosen.sort_values("isotropic_corrected", na_position="first", kind="stable")
    best = str(chosen["group"].iloc[-1])
    return best, [record for record in study.first.records if record.group == best]


def score_untrained(study: StudyRecords, hook: str, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Compare the untrained model's SAEs with its own planes of the key frequencies."""
    from husai.consistency import plane_truth

    own = study.untrained.get(hook)
    if own is None or own.rows.planes is None or not own.records:
        return pd.DataFrame()
    named = [replace(record, group=record.group + UNTRAINED) for record in own.records]
    planes = own.rows.planes.numpy()
    _, truth = plane_truth(named, planes, consistency, covariance=own.covariance)
    return truth.assign(hook=f"{hook}@untrained")
