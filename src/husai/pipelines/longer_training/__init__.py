"""Train a random part of the SAEs again for longer, and count how many moved."""

from husai.pipelines.longer_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
