"""Nodes that make the consensus dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.features.config import ConsensusConfig
from husai.pipelines.hints import StudyFeatures
from husai.storage import TensorFile, TensorFiles


def gather_group(
    sae_plan: pd.DataFrame,
    saes: TensorFiles,
    activations: TensorFiles,
    consistency_coverage: pd.DataFrame,
    consistency_kinds: pd.DataFrame,
    activation_labels: pd.DataFrame | Mapping[str, Any],
) -> StudyFeatures:
    """Read the main group's SAEs and rows, and match their features."""
    from husai.campaign.features import chosen_group, study_features

    group = chosen_group(sae_plan, consistency_coverage, consistency_kinds)
    return study_features(sae_plan, saes, activations, group, labels=activation_labels)


def pool_features(
    consensus_group: StudyFeatures,
    transformer: TensorFile | Mapping[str, Any],
    consensus: ConsensusConfig,
) -> tuple[TensorFile, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Pool what comes back, fit an encoder to it, and measure what it keeps."""
    from husai.campaign.features import study_consensus, study_readout
    from husai.sae import to_tensors

    known = transformer if isinstance(transformer, TensorFile) else None
    readout = study_readout(consensus_group, known)
    result, recurrence = study_consensus(consensus_group, readout, consensus)
    return TensorFile(*to_tensors(result.sae)), result.table, result.consensus.tracks, recurrence
