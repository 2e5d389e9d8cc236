"""Write the page of a language model's study."""

from husai.pipelines.language_reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
