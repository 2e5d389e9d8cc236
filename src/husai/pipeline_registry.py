"""The project's pipelines."""

from __future__ import annotations

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

# the default study, in its order; other pipelines run by name
STUDY = (
    "data_generation",
    "transformer_training",
    "activation_extraction",
    "sae_training",
    "consistency_analysis",
)


def register_pipelines() -> dict[str, Pipeline]:
    """Find every pipeline; the default is the whole home study."""
    pipelines = find_pipelines(raise_errors=True)
    pipelines["__default__"] = sum((pipelines[name] for name in STUDY), Pipeline([]))
    return pipelines
