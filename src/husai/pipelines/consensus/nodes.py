"""Nodes that make the consensus dictionary and draw what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.features.config import ConsensusConfig, FeaturesConfig
from husai.pipelines.hints import Figure, StudyFeatures
from husai.storage import TensorFile


def pool_features(
    study_features: StudyFeatures,
    transformer: TensorFile | Mapping[str, Any],
    consensus: ConsensusConfig,
    features: FeaturesConfig,
) -> tuple[TensorFile, pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Pool what comes back, fit an encoder to it, and measure what it keeps."""
    from husai.campaign.features import study_consensus, study_readout
    from husai.sae import to_tensors

    known = transformer if isinstance(transformer, TensorFile) else None
    readout = study_readout(study_features, known)
    found = study_consensus(study_features, readout, consensus, features)
    result = found.result
    beside = found.worth, found.recurrence, found.calibration
    return TensorFile(*to_tensors(result.sae)), result.consensus.tracks, result.table, *beside


def plot_consensus(consensus_worth: pd.DataFrame, consensus_recurrence: pd.DataFrame) -> Figure:
    """Draw what the consensus keeps and whether it recurs."""
    from husai.figures.consensus import consensus_figure
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: consensus_figure(consensus_worth, consensus_recurrence))


def plot_calibration(consensus_calibration: pd.DataFrame) -> Figure:
    """Draw how often new seeds had what was predicted from the known ones."""
    from husai.figures.consensus import calibration_figure
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: calibration_figure(consensus_calibration))
