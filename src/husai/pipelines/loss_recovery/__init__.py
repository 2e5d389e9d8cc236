"""Splice the SAEs' reconstructions into the transformer."""

from husai.pipelines.loss_recovery.pipeline import create_pipeline

__all__ = ["create_pipeline"]
