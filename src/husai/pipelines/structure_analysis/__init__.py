"""Measure the geometry, firing and symmetries of single dictionaries."""

from husai.pipelines.structure_analysis.pipeline import create_pipeline

__all__ = ["create_pipeline"]
