"""Write the study's page."""

from husai.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
