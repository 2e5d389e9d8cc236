"""Make one SAE of the features that the SAEs of the study's main group share."""

from husai.pipelines.consensus.pipeline import create_pipeline

__all__ = ["create_pipeline"]
