"""Make the dataset of the modular task."""

from husai.pipelines.data_generation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
