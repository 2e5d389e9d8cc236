"""Measure which features return with other seeds: scores, nulls, labels and figures."""

from husai.pipelines.consistency_analysis.pipeline import create_pipeline

__all__ = ["create_pipeline"]
