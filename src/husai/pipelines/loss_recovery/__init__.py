"""Measure the transformer's loss with the SAEs' reconstructions in place of activations."""

from husai.pipelines.loss_recovery.pipeline import create_pipeline

__all__ = ["create_pipeline"]
