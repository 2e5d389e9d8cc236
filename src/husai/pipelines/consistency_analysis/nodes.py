"""Nodes that compare the SAEs of a study, and draw the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from husai.consistency.config import ConsistencyConfig
from husai.pipelines.hints import Figure, SAERecord, StudyRecords
from husai.storage import TensorFiles


def gather(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    external_saes: Mapping[str, Sequence[SAERecord]],
    activations: TensorFiles,
    consistency: ConsistencyConfig,
) -> StudyRecords:
    """Read the plan's SAEs and rows, encode the rows, and apply the gate, once for all nodes."""
    from husai.campaign.records import gather_records

    return gather_records(sae_plan, saes, external_saes, activations, consistency)


def compare(
    study: StudyRecords,
    consistency: ConsistencyConfig,
    activation_labels: pd.DataFrame | Mapping[str, Any],
) -> tuple[
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
    dict[str, pd.DataFrame],
    dict[str, Any],
]:
    """Compare the SAEs of every group across their seeds, beside every null, hook by hook."""
    from husai.campaign.comparison import compare_study
    from husai.consistency.study.schema import TABLES

    report, summary = compare_study(study, consistency, labels=pd.DataFrame(activation_labels))
    tables = report.tables()
    own = tuple(
        tables.pop(name, TABLES[name].empty())
        for name in ("groups", "pairs", "features", "coverage", "kinds")
    )
    return *own, tables, summary  # type: ignore[return-value]


def tabulate_settings(
    sae_plan: pd.DataFrame,
    consistency_groups: pd.DataFrame,
    consistency_pairs: pd.DataFrame,
    consistency_tables: Mapping[str, Callable[[], pd.DataFrame]],
    activation_statistics: pd.DataFrame,
    consistency: ConsistencyConfig,
) -> tuple[pd.DataFrame, ...]:
    """Make the tables of scores by width, k and L0, of matched architectures, and of papers."""
    from husai.campaign.comparison import ScoreTables, settings_tables

    scores = ScoreTables(consistency_groups, consistency_pairs, consistency_tables["saes"]())
    return settings_tables(sae_plan, scores, activation_statistics, consistency)


def correlate_features(features: pd.DataFrame, consistency: ConsistencyConfig) -> pd.DataFrame:
    """Correlate reproducibility with other properties of features."""
    from husai.consistency.study.tables import correlates_table

    return correlates_table(features, level=consistency.level)


def follow_training(
    study: StudyRecords, consistency_groups: pd.DataFrame, consistency: ConsistencyConfig
) -> pd.DataFrame:
    """Follow the agreement between seeds over training, from decoders saved during training."""
    from husai.campaign.comparison import study_trajectories

    return study_trajectories(study, consistency_groups, consistency)


def plot_scores(groups: pd.DataFrame) -> Figure:
    """Draw every group's PW-MCC with its interval and nulls."""
    from husai.figures.scores import scores_figure
    from husai.figures.study import own_hook
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: scores_figure(own_hook(groups)))


def plot_seeds(pairs: pd.DataFrame) -> Figure:
    """Draw PW-MCC of every pair of seeds as heat maps."""
    from husai.figures.scores import seed_matrix_figure
    from husai.figures.study import own_hook
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: seed_matrix_figure(own_hook(pairs)))


def plot_reproducibility(
    features: pd.DataFrame, kinds: pd.DataFrame, consistency: ConsistencyConfig
) -> Figure:
    """Draw the reproducibility of each feature by how often it fires."""
    from husai.consistency.study.labels import leading_kind
    from husai.figures.features import reproducibility_figure
    from husai.figures.study import own_hook
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(
        lambda: reproducibility_figure(
            own_hook(features),
            threshold=consistency.shared_threshold,
            lead=leading_kind(own_hook(kinds)),
        )
    )


def plot_kinds(features: pd.DataFrame, kinds: pd.DataFrame) -> Figure:
    """Draw the reproducibility of every feature by its kind: the study's main figure."""
    from husai.figures.kinds import kinds_figure
    from husai.figures.study import own_hook
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: kinds_figure(own_hook(features), own_hook(kinds)))


def plot_settings(settings: pd.DataFrame) -> Figure:
    """Draw PW-MCC by width, k and L0."""
    from husai.figures.scores import settings_figure
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: settings_figure(settings))


def plot_trajectories(trajectories: pd.DataFrame) -> Figure:
    """Draw the agreement between seeds over training."""
    from husai.figures.study import own_hook
    from husai.figures.style import drawn_or_reason
    from husai.figures.trajectories import training_figure

    return drawn_or_reason(lambda: training_figure(own_hook(trajectories)))


def plot_similarity(coverage: pd.DataFrame, kinds: pd.DataFrame, study: StudyRecords) -> Figure:
    """Draw how well the features of two seeds match, for the study's main group."""
    from husai.campaign.features import chosen_group
    from husai.figures.study import main_pair_figure

    return main_pair_figure(chosen_group(study.plan, coverage, kinds), study)
