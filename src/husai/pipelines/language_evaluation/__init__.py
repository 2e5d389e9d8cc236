"""Measure SAEs inside the language model that they read."""

from husai.pipelines.language_evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
