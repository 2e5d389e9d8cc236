"""Nodes that measure which features come back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.activations.rows import Activations, activation_key, load_activations
from husai.campaign.plan import UNTRAINED, plan_keys
from husai.consistency.config import ConsistencyConfig
from husai.errors import InputError
from husai.provenance import git_commit, versions
from husai.storage import TensorFiles

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from husai.consistency import SAERecord
    from husai.sae import TrainedSAE
else:
    # Kedro resolves the hints of every node; these are slow to import
    Figure = SAERecord = TrainedSAE = object


def compare(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    external_saes: Mapping[str, Sequence[SAERecord]],
    activations: TensorFiles,
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, pd.DataFrame], dict[str, Any]]:
    """Compare the SAEs of every group across their seeds, beside every null, hook by hook."""
    from husai.consistency import activation_covariance, consistency_report, join_reports
    from husai.consistency.study.summary import checked_summary, plain_rows

    reports, fingerprints = {}, {}
    untrained_truth = []
    for number, key in enumerate(study_keys(sae_plan)):
        rows = load_activations(activations, key)
        values = rows.values.numpy()
        records = hook_records(sae_plan, saes, rows)
        if number == 0:  # those from elsewhere read what the grid's SAEs read
            records += external_records(external_saes, values)
        if not records:
            logger.warning("every SAE at %s failed; there is nothing to compare", key)
            continue
        reports[key] = consistency_report(
            records,
            consistency,
            covariance=activation_covariance(values),
            planes=None if rows.planes is None else rows.planes.numpy(),
            untrained=untrained_records(sae_plan, saes, activations, key),
        )
        fingerprints[key] = rows.fingerprint
        untrained_truth.append(hold_untrained(sae_plan, saes, activations, key, consistency))
    report = join_reports(reports)
    # what the same settings find of the waves that the data alone hold
    truth = pd.concat([report.truth, *untrained_truth], ignore_index=True)
    summary = checked_summary(
        {
            **report.summary,
            "truth": plain_rows(truth),
            "metrics": group_metrics(report.groups),
            "provenance": {
                "plan": sae_plan["sae_id"].tolist(),
                "seeds": sorted({int(seed) for seed in sae_plan["seed"]}),
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
    from husai.consistency import beside_published
    from husai.consistency.study.tables import matched_l0_table, orderings_table, settings_table

    key = study_keys(sae_plan)[0]
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
    """Tabulate what goes with a feature's coming back in other seeds."""
    from husai.consistency.study.tables import correlates_table

    return correlates_table(features, level=consistency.level)


def plain_settings(sae_plan: pd.DataFrame) -> pd.Series[bool]:
    """Say which rows of a plan differ from the grid in architecture, width and sparsity alone."""
    grid = sae_plan[sae_plan["variant"] == ""]
    if grid.empty:
        return pd.Series(True, sae_plan.index)
    own = {"sae_id", "group", "group_digest", "seed", "variant", "architecture", "d_sae", "k"}
    own |= {"l1_coefficient", "l0_coefficient", "init_seed", "data_seed"}
    same = [column for column in sae_plan if column not in own]
    known = {tuple(map(str, row)) for row in grid[same].to_numpy()}
    return pd.Series(
        [tuple(map(str, row)) in known for row in sae_plan[same].to_numpy()], sae_plan.index
    )


def follow_training(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    consistency_groups: pd.DataFrame,
    consistency: ConsistencyConfig,
) -> pd.DataFrame:
    """Follow the agreement between seeds over training, from the decoders kept on the way."""
    from husai.consistency.study.record import group_members
    from husai.consistency.study.tables import trajectory_table

    trained = sae_plan[sae_plan["model"] == "trained"]
    loaded = _load(saes, trained)
    found = group_members(sae_records(trained, loaded, None))
    # the plan's order: the study's own hook first
    members = {name: found[name] for name in dict.fromkeys(trained["group"]) if name in found}
    chosen = consistency_groups.query("score == 'pw_mcc' and not signed and space == 'full'")
    nulls = {
        str(row["group"]): {
            kind: float(row[f"{kind}_mean"])
            for kind in ("isotropic", "data_aware")
            if pd.notna(row.get(f"{kind}_mean"))
        }
        for row in chosen.to_dict("records")
    }

    def decoders(record: SAERecord) -> dict[int, NDArray[Any]]:
        sae = loaded[record.id]
        kept = {step: W.numpy() for step, W in sae.snapshots.items()}
        last = int(sae.history["step"].iloc[-1]) if len(sae.history) else 0
        return {0: sae.W_dec_init.numpy(), **kept, last: sae.W_dec.numpy()} if kept else {}

    table = trajectory_table(members, decoders, nulls, consistency)
    hooks = dict(zip(sae_plan["group"], plan_keys(sae_plan), strict=True))
    return table.assign(hook=table["group"].map(hooks))


def measure_geometry(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    consistency: ConsistencyConfig,
) -> pd.DataFrame:
    """Measure how each group's directions lie and fire, beside random ones."""
    from husai.consistency import activation_covariance
    from husai.consistency.study.geometry import geometry_table
    from husai.consistency.study.record import group_members

    tables = []
    for key in study_keys(sae_plan):
        rows = load_activations(activations, key)
        members = group_members(hook_records(sae_plan, saes, rows))
        covariance = activation_covariance(rows.values.numpy())
        tables.append(geometry_table(members, consistency, covariance).assign(hook=key))
    return pd.concat(tables, ignore_index=True)


def find_symmetries(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    consistency: ConsistencyConfig,
) -> pd.DataFrame:
    """Ask which of the task's symmetries map dictionaries to themselves or to other seeds'."""
    from husai.consistency.study.geometry import symmetry_table
    from husai.consistency.study.record import group_members

    key = study_keys(sae_plan)[0]
    rows = load_activations(activations, key)
    members = group_members(hook_records(sae_plan, saes, rows))
    modulus = addition_modulus(rows)
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

    return _or_reason(lambda: scores_figure(of_study(groups)))


def plot_seeds(pairs: pd.DataFrame) -> Figure:
    """Draw PW-MCC of every pair of seeds as heat maps."""
    from husai.figures.scores import seed_matrix_figure

    return _or_reason(lambda: seed_matrix_figure(of_study(pairs)))


def plot_reproducibility(features: pd.DataFrame, consistency: ConsistencyConfig) -> Figure:
    """Draw how well each feature comes back against how often it fires."""
    from husai.figures.features import reproducibility_figure

    return _or_reason(
        lambda: reproducibility_figure(of_study(features), threshold=consistency.shared_threshold)
    )


def plot_settings(settings: pd.DataFrame) -> Figure:
    """Draw PW-MCC against width over effective rank, k and L0."""
    from husai.figures.scores import settings_figure

    return _or_reason(lambda: settings_figure(settings))


def plot_trajectories(trajectories: pd.DataFrame) -> Figure:
    """Draw the agreement between seeds over training."""
    from husai.figures.trajectories import training_figure

    return _or_reason(lambda: training_figure(of_study(trajectories)))


def plot_symmetries(symmetries: pd.DataFrame) -> Figure:
    """Draw how far each symmetry maps dictionaries to themselves and to other seeds'."""
    from husai.figures.geometry import symmetry_figure

    return symmetry_figure(symmetries)


def plot_similarity(groups: pd.DataFrame, sae_plan: pd.DataFrame, saes: TensorFiles) -> Figure:
    """Draw two seeds' matched similarities, for the group that is furthest above chance."""
    from husai.consistency import match_features
    from husai.figures.features import similarity_figure
    from husai.figures.style import not_available

    group, loaded = best_group(groups, sae_plan, saes)
    if len(loaded) < 2:
        return not_available(f"{group}: one SAE, no pair to compare")
    (name_a, one), (name_b, two) = list(loaded.items())[:2]
    A, B = one.W_dec.numpy(), two.W_dec.numpy()
    return similarity_figure(
        A,
        B,
        match_features(A, B),
        names=(name_a, name_b),
        unconverged=not (one.metrics["converged"] and two.metrics["converged"]),
    )


def plot_geometry(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
) -> tuple[Figure, Figure, Figure]:
    """Draw how a SAE of each architecture lies in space, fires, and tiles the true circles."""
    from husai.consistency import plane_recovery, sparsity_pattern
    from husai.figures.geometry import activation_figure, circle_figure, geometry_figure
    from husai.figures.style import not_available

    rows = load_activations(activations, study_keys(sae_plan)[0])
    chosen = example_saes(sae_plan, saes)
    open_ones = [name for name, sae in chosen.items() if not sae.metrics["converged"]]
    geometry = geometry_figure(
        {name: (sae.W_dec.numpy(), sae.W_enc.numpy()) for name, sae in chosen.items()},
        unconverged=open_ones,
    )
    firing = activation_figure(
        {
            name: sparsity_pattern(partial(_code_blocks, sae, rows.values))
            for name, sae in chosen.items()
        },
        unconverged=open_ones,
    )
    if rows.planes is None:
        return geometry, firing, not_available("no ground truth is known at this hook")
    planes = rows.planes.numpy()
    circles = circle_figure(
        {name: plane_recovery(sae.W_dec.numpy(), planes) for name, sae in chosen.items()},
        plane_names=rows.plane_names,
        unconverged=open_ones,
    )
    return geometry, firing, circles


def plot_correlation(
    groups: pd.DataFrame,
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
) -> Figure:
    """Draw which latents of one SAE go together: of the group that is furthest above chance."""
    import numpy as np

    from husai.consistency import cluster_features, coactivation
    from husai.figures.geometry import correlation_figure
    from husai.figures.style import not_available

    name, sae = next(iter(best_group(groups, sae_plan, saes)[1].items()))
    rows = load_activations(activations, study_keys(sae_plan)[0])
    codes = np.concatenate(list(_code_blocks(sae, rows.values)))
    alive = np.flatnonzero(codes.std(axis=0) > 0)
    if len(alive) < 2:
        return not_available(f"{name}: fewer than two of its latents vary; nothing is correlated")
    decoder = sae.W_dec.numpy()[alive]
    return correlation_figure(
        np.corrcoef(codes[:, alive], rowvar=False),
        order=cluster_features(decoder).order,
        coactivation=coactivation(codes),
        name=name + ("" if sae.metrics["converged"] else " †"),
    )


def of_study(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the study's own hook, the table's first; others are no like for like."""
    return table[table["hook"] == table["hook"].iloc[0]] if len(table) else table


def _or_reason(draw: Callable[[], Figure]) -> Figure:
    """Draw, or say in the figure why there is nothing to: one seed, no latent that fires."""
    from husai.figures.style import not_available

    try:
        return draw()
    except InputError as error:
        logger.warning("nothing to draw: %s", error)
        return not_available(str(error))


def best_group(
    groups: pd.DataFrame, sae_plan: pd.DataFrame, saes: TensorFiles
) -> tuple[str, dict[str, TrainedSAE]]:
    """Give the group of the study's hook furthest above chance, with its SAEs that did not fail."""
    chosen = of_study(groups).query("score == 'pw_mcc' and not signed and space == 'full'")
    chosen = chosen[chosen["group"].isin(sae_plan["group"])]
    if "isotropic_corrected" in chosen:
        chosen = chosen.sort_values("isotropic_corrected", na_position="first", kind="stable")
    best = str(chosen["group"].iloc[-1])
    loaded = _load(saes, sae_plan[sae_plan["group"] == best])
    return best, {name: sae for name, sae in loaded.items() if sae.failure is None}


def example_saes(sae_plan: pd.DataFrame, saes: TensorFiles) -> dict[str, TrainedSAE]:
    """Give one SAE of each architecture's narrowest and widest group, by the group's name."""
    key = study_keys(sae_plan)[0]
    own = sae_plan[[k == key for k in plan_keys(sae_plan)]]
    own = own[own["variant"] == ""] if (own["variant"] == "").any() else own
    picked: dict[str, TrainedSAE] = {}
    for _, part in own.groupby("architecture", sort=False):
        for width in sorted({part["d_sae"].min(), part["d_sae"].max()}):
            for group, members in part[part["d_sae"] == width].groupby("group", sort=False):
                loaded = _load(saes, members).values()
                if str(group) not in picked and (
                    found := [sae for sae in loaded if sae.failure is None]
                ):
                    picked[str(group)] = found[0]
                    break
    if not picked:
        raise InputError("campaign.plan: every SAE of the study failed; nothing to draw")
    return picked


def _load(saes: TensorFiles, sae_plan: pd.DataFrame) -> dict[str, TrainedSAE]:
    from husai.sae import load_trained

    return load_trained(saes, sae_plan["sae_id"].tolist())


def study_keys(sae_plan: pd.DataFrame) -> list[str]:
    """Name the activations of the trained model that the plan reads, the grid's first."""
    trained = sae_plan[sae_plan["model"] == "trained"]
    return list(dict.fromkeys(plan_keys(trained.sort_values("variant", kind="stable"))))


def hook_records(sae_plan: pd.DataFrame, saes: TensorFiles, rows: Activations) -> list[SAERecord]:
    """Give the comparison the plan's SAEs that read these rows."""
    own = sae_plan[[key == rows.key for key in plan_keys(sae_plan)]]
    return sae_records(own, _load(saes, own), rows.values)


def untrained_records(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    key: str,
) -> list[SAERecord]:
    """Give the untrained model's SAEs at a hook, under the names of the groups they are null of."""
    key = f"{key}@untrained"
    own = sae_plan[[k == key for k in plan_keys(sae_plan)]]
    if own.empty:
        return []
    rows = load_activations(activations, key)
    named = own.assign(group=own["group"].str.removesuffix(UNTRAINED))
    return sae_records(named, _load(saes, own), rows.values)


def hold_untrained(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    key: str,
    consistency: ConsistencyConfig,
) -> pd.DataFrame:
    """Hold the untrained model's SAEs against the same frequencies' planes in its activations."""
    from husai.consistency import activation_covariance, plane_truth

    records = untrained_records(sae_plan, saes, activations, key)
    rows = load_activations(activations, f"{key}@untrained") if records else None
    if rows is None or rows.planes is None:
        return pd.DataFrame()
    named = [replace(record, group=record.group + UNTRAINED) for record in records]
    _, truth = plane_truth(
        named,
        rows.planes.numpy(),
        consistency,
        covariance=activation_covariance(rows.values.numpy()),
    )
    return truth.assign(hook=f"{key}@untrained")


def sae_records(
    sae_plan: pd.DataFrame, loaded: Mapping[str, TrainedSAE], rows: torch.Tensor | None
) -> list[SAERecord]:
    """Give the comparison what it needs to know of every planned SAE that did not fail.

    Parameters
    ----------
    sae_plan
        Their rows of the plan.
    loaded
        The SAEs by id.
    rows
        ``[n_rows, d_in]`` to encode; None where codes are not needed.
    """
    from husai.consistency import SAERecord

    groups = dict(zip(sae_plan["sae_id"], sae_plan["group"], strict=True))
    seeds = dict(zip(sae_plan["sae_id"], sae_plan["seed"], strict=True))
    records = []
    for sae_id, sae in loaded.items():
        if sae.failure is not None:
            continue
        records.append(
            SAERecord(
                id=sae_id,
                group=groups[sae_id],
                architecture=sae.config.architecture,
                seed=int(seeds[sae_id]),
                k=sae.config.k,
                l1_coefficient=sae.config.l1_coefficient,
                W_dec=sae.W_dec.numpy(),
                W_enc=sae.W_enc.numpy(),
                W_dec_init=sae.W_dec_init.numpy(),
                firing_rate=sae.density.numpy(),
                codes=None if rows is None else partial(_code_blocks, sae, rows),
                converged=bool(sae.metrics["converged"]),
                cosine_to_init=sae.metrics["cosine_to_init"],
                l0=sae.metrics["l0"],
                fvu=sae.metrics["fvu"],
            )
        )
    return records


def external_records(
    external_saes: Mapping[str, Sequence[SAERecord]], rows: NDArray[np.float32]
) -> list[SAERecord]:
    """Give the comparison what is known of SAEs trained elsewhere; convergence is not."""
    from husai.consistency import with_codes

    return [
        with_codes(
            replace(sae, id=f"{group}: {sae.id}", group=group, architecture="external", seed=seed),
            rows,
        )
        for group, members in external_saes.items()
        for seed, sae in enumerate(members)
    ]


def _code_blocks(sae: TrainedSAE, rows: torch.Tensor) -> Iterator[NDArray[np.float32]]:
    """Encode the rows block by block: all codes of all SAEs would not fit in memory."""
    import torch

    for block in torch.split(rows, 4096):
        yield sae.encode(block).numpy()
