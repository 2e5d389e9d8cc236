"""Compare what partners do in the language model that their SAEs read."""

from husai.pipelines.language_function.pipeline import create_pipeline

__all__ = ["create_pipeline"]
