"""Find what no single latent matches: splits and merges across widths, spans and planes."""

from husai.pipelines.feature_groups.pipeline import create_pipeline

__all__ = ["create_pipeline"]
