"""Make one SAE of what comes back in the study's main group."""

from husai.pipelines.consensus.pipeline import create_pipeline

__all__ = ["create_pipeline"]
