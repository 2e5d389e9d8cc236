"""Read the user's own activation rows, in place of a transformer's activations."""

from husai.pipelines.own_activations.pipeline import create_pipeline

__all__ = ["create_pipeline"]
