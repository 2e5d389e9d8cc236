"""Nodes that look for groups of features, and draw them."""

from __future__ import annotations

import pandas as pd

from husai.features.config import FeaturesConfig
from husai.pipelines.hints import Figure
from husai.storage import TensorFiles


def measure_groups(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    consistency_coverage: pd.DataFrame,
    consistency_kinds: pd.DataFrame,
    features: FeaturesConfig,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Compare the main group with the same SAEs of other widths, a few latents at a time."""
    from husai.campaign.feature_groups import measured_groups
    from husai.campaign.features import chosen_group

    group = chosen_group(sae_plan, consistency_coverage, consistency_kinds)
    found = measured_groups(sae_plan, saes, activations, group, features)
    return found.shares, found.combinations, found.planes, found.counts


def plot_widths(groups_shares: pd.DataFrame) -> Figure:
    """Draw what splits and merges between widths."""
    from husai.figures.features import widths_figure
    from husai.figures.style import drawn_or_reason

    return drawn_or_reason(lambda: widths_figure(groups_shares))
