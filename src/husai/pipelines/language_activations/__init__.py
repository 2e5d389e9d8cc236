"""Read a language model's activations on a text."""

from husai.pipelines.language_activations.pipeline import create_pipeline

__all__ = ["create_pipeline"]
