"""The node that makes the consensus dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from husai.features.config import ConsensusConfig
from husai.pipelines.hints import StudyFeatures
from husai.storage import TensorFile


def pool_features(
    study_features: StudyFeatures,
    transformer: TensorFile | Mapping[str, Any],
    consensus: ConsensusConfig,
) -> tuple[TensorFile, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Make the consensus of the shared features, fit an encoder, and measure the result."""
    from husai.campaign.features import study_consensus, study_readout
    from husai.sae import to_tensors

    known = transformer if isinstance(transformer, TensorFile) else None
    readout = study_readout(study_features, known)
    result, recurrence = study_consensus(study_features, readout, consensus)
    return TensorFile(*to_tensors(result.sae)), result.table, result.consensus.tracks, recurrence
