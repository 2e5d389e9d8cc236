"""Nodes that measure single features and write their page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.features.config import FeaturesConfig
from husai.pipelines.hints import FeatureCards, Figure, StudyFeatures
from husai.storage import TensorFile


def measure_features(
    study_features: StudyFeatures,
    transformer: TensorFile | Mapping[str, Any],
    features: FeaturesConfig,
) -> tuple[
    FeatureCards,
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
    pd.DataFrame,
]:
    """Measure for every feature its reproducibility, meaning, function and partners."""
    from husai.campaign.features import measured_features, study_readout

    known = transformer if isinstance(transformer, TensorFile) else None
    found = measured_features(study_features, study_readout(study_features, known), features)
    beside = found.function, found.reliability, found.combinations, found.identifiability
    return found.cards, found.cards.features, found.cards.partners, *beside


def write_page(cards: FeatureCards, study_features: StudyFeatures, features: FeaturesConfig) -> str:
    """Write the page: one HTML file that works offline."""
    from husai.features import features_page

    group, rows = study_features.group, study_features.rows
    return features_page(
        cards,
        study_features.facts,
        features,
        title=f"Features of {group.name}",
        note=f"{len(group.live)} SAEs that differ in their seed, on {len(rows.values)} rows of "
        f"{rows.key}.",
    )


def plot_reliability(feature_reliability: pd.DataFrame) -> Figure:
    """Draw how often a feature was found in a seed that was left out, by predicted probability."""
    from husai.figures.features import reliability_figure
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: reliability_figure(feature_reliability))
