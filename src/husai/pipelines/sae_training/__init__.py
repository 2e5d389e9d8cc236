"""Plan and train the SAEs."""

from husai.pipelines.sae_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
