"""Calibrate scores and trainers on planted truth."""

from husai.pipelines.planted_truth.pipeline import create_pipeline

__all__ = ["create_pipeline"]
