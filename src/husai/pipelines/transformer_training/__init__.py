"""Train the transformer and measure how it groks."""

from husai.pipelines.transformer_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
