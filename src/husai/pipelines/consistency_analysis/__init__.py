"""Measure which features come back."""

from husai.pipelines.consistency_analysis.pipeline import create_pipeline

__all__ = ["create_pipeline"]
