"""Estimate what the campaign would train, how long it would take and what it would cost."""

from husai.pipelines.campaign_dry_run.pipeline import create_pipeline

__all__ = ["create_pipeline"]
