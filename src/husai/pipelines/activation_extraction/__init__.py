"""Read the transformer's activations."""

from husai.pipelines.activation_extraction.pipeline import create_pipeline

__all__ = ["create_pipeline"]
