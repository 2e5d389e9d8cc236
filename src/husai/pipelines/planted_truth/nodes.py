"""Nodes of the calibration study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from husai.pipelines.planted_truth.config import PlantedTruthConfig
from husai.pipelines.sae_training.nodes import load_saes
from husai.provenance import git_commit, versions
from husai.storage import TensorFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = object  # Kedro resolves the hints of every node; matplotlib is slow to import


def plan(planted_truth: PlantedTruthConfig) -> pd.DataFrame:
    """Lay out worlds x architectures x sparsity x seeds as a table."""
    from husai.pipelines.planted_truth.study import plan_study

    return plan_study(planted_truth)


def train(
    planted_plan: pd.DataFrame, planted_truth: PlantedTruthConfig
) -> Iterator[dict[str, TensorFile]]:
    """Train every planned SAE on its world; each bank is saved as soon as it has finished."""
    from husai.pipelines.planted_truth.study import train_study
    from husai.sae import to_tensors

    for sae_id, sae in train_study(planted_plan, planted_truth):
        yield {sae_id: TensorFile(*to_tensors(sae))}


def score(
    planted_plan: pd.DataFrame,
    planted_saes: Mapping[str, Callable[[], TensorFile]],
    planted_truth: PlantedTruthConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Score every group, at every step, beside what it truly recovered."""
    from husai.pipelines.planted_truth.study import score_study

    return score_study(planted_plan, load_saes(planted_plan, planted_saes), planted_truth)


def calibrate(
    planted_settings: pd.DataFrame,
    planted_features: pd.DataFrame,
    planted_planes: pd.DataFrame,
    planted_checkpoints: pd.DataFrame,
    planted_truth: PlantedTruthConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Say what each score, the gate and reproducibility are worth."""
    from husai.pipelines.planted_truth.study import calibrate_study

    calibration, detectors, gate, summary = calibrate_study(
        planted_settings, planted_features, planted_planes, planted_checkpoints, planted_truth
    )
    provenance = {
        "config": planted_truth.model_dump(mode="json"),
        "versions": versions(),
        **git_commit(Path(__file__).parent),
    }
    return calibration, detectors, gate, {**summary, "provenance": provenance}


def plot_calibration(
    planted_settings: pd.DataFrame,
    planted_calibration: pd.DataFrame,
    planted_detectors: pd.DataFrame,
    planted_gate: pd.DataFrame,
    planted_planes: pd.DataFrame,
) -> Figure:
    """Draw what the scores are worth on one page."""
    from husai.figures.planted import calibration_figure

    return calibration_figure(
        planted_settings, planted_calibration, planted_detectors, planted_gate, planted_planes
    )
