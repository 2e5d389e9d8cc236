"""The node that gathers the study's main group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.pipelines.hints import StudyFeatures
from husai.storage import TensorFiles


def gather_group(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    consistency_coverage: pd.DataFrame,
    consistency_kinds: pd.DataFrame,
    activation_labels: pd.DataFrame | Mapping[str, Any],
    activation_contexts: pd.DataFrame | Mapping[str, Any],
) -> StudyFeatures:
    """Read the main group's SAEs and rows, and match their features."""
    from husai.campaign.features import chosen_group, study_features

    group = chosen_group(sae_plan, consistency_coverage, consistency_kinds)
    return study_features(
        sae_plan, saes, activations, group, labels=activation_labels, contexts=activation_contexts
    )
