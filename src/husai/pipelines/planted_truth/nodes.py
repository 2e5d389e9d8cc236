"""Nodes of the planted-truth study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from husai.calibration.config import PlantedTruthConfig
from husai.campaign import CampaignFolders
from husai.pipelines.hints import Figure
from husai.provenance import git_commit, versions
from husai.storage import TensorFile, TensorFiles


def plan(planted_truth: PlantedTruthConfig) -> pd.DataFrame:
    """Make the plan: a table of worlds x draws x architectures x sparsity x lengths x seeds."""
    from husai.calibration.study import plan_study

    return plan_study(planted_truth)


def train(
    planted_plan: pd.DataFrame, planted_truth: PlantedTruthConfig, folder: Path
) -> Iterator[dict[str, TensorFile]]:
    """Train every planned SAE that is missing; each is saved when its bank has ended."""
    from husai.calibration.study import train_study
    from husai.sae import to_tensors

    for sae_id, sae in train_study(planted_plan, planted_truth, CampaignFolders.below(folder)):
        yield {sae_id: TensorFile(*to_tensors(sae))}


def score(
    planted_plan: pd.DataFrame, planted_saes: TensorFiles, planted_truth: PlantedTruthConfig
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Score every group, and measure its true recovery."""
    from husai.calibration.scores import score_study
    from husai.sae import load_trained

    loaded = load_trained(planted_saes, planted_plan["sae_id"].tolist())
    tables = score_study(planted_plan, loaded, planted_truth)
    return tables.settings, tables.runs, tables.features, tables.planes


def calibrate(
    planted_settings: pd.DataFrame,
    planted_runs: pd.DataFrame,
    planted_features: pd.DataFrame,
    planted_planes: pd.DataFrame,
    planted_truth: PlantedTruthConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Measure how far each score, the gate and reproducibility can be trusted."""
    from husai.calibration.scores import StudyTables
    from husai.calibration.verdicts import calibrate_study

    tables = StudyTables(planted_settings, planted_runs, planted_features, planted_planes)
    verdicts = calibrate_study(tables, planted_truth)
    provenance = {
        "config": planted_truth.model_dump(mode="json"),
        "versions": versions(),
        **git_commit(Path(__file__).parent),
    }
    summary = {**verdicts.summary, "provenance": provenance}
    return verdicts.calibration, verdicts.detectors, verdicts.gate, summary


def plot_calibration(
    planted_settings: pd.DataFrame,
    planted_calibration: pd.DataFrame,
    planted_detectors: pd.DataFrame,
    planted_gate: pd.DataFrame,
    planted_planes: pd.DataFrame,
) -> Figure:
    """Draw how far the scores can be trusted, in one figure."""
    from husai.figures.planted import calibration_figure

    return calibration_figure(
        planted_settings, planted_calibration, planted_detectors, planted_gate, planted_planes
    )


def write_page(
    planted_settings: pd.DataFrame,
    planted_calibration: pd.DataFrame,
    planted_detectors: pd.DataFrame,
    planted_gate: pd.DataFrame,
    planted_planes: pd.DataFrame,
    planted_summary: dict[str, Any],
) -> str:
    """Write the study's page in Markdown."""
    from husai.reporting.calibration_page import calibration_page

    return calibration_page(
        planted_settings,
        planted_calibration,
        planted_detectors,
        planted_gate,
        planted_planes,
        planted_summary,
    )
