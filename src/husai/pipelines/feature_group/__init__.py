"""Gather the study's main group, from which the feature pages and the consensus are made."""

from husai.pipelines.feature_group.pipeline import create_pipeline

__all__ = ["create_pipeline"]
