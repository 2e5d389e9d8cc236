"""Measure how far scores, gate and trainers can be trusted, on data with known features."""

from husai.pipelines.planted_truth.pipeline import create_pipeline

__all__ = ["create_pipeline"]
