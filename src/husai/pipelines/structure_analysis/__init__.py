"""Measure how dictionaries lie and fire, and which symmetries they have."""

from husai.pipelines.structure_analysis.pipeline import create_pipeline

__all__ = ["create_pipeline"]
