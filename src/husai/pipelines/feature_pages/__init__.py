"""Write a card for every feature of the study's main group."""

from husai.pipelines.feature_pages.pipeline import create_pipeline

__all__ = ["create_pipeline"]
