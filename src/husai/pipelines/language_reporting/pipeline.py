"""The pipeline that writes the page of a language model's study."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.language_reporting.nodes import write_language_page


def create_pipeline() -> Pipeline:
    """Comparison, metrics and probes in; a page of Markdown and its picture out."""
    return Pipeline(
        [
            Node(
                write_language_page,
                inputs={
                    "origin": "run_origin",
                    "text_tokens": "text_tokens",
                    "language_model": "params:language_model",
                    "consistency": "params:consistency",
                    "consistency_summary": "consistency_summary",
                    "statistics": "activation_statistics",
                    "groups": "consistency_groups",
                    "features": "consistency_features",
                    "untrained_groups": "untrained_groups",
                    "untrained_features": "untrained_features",
                    "metrics": "language_metrics",
                    "probes": "probe_results",
                    "probe_summary": "probe_summary",
                    "contexts": "feature_contexts",
                },
                outputs=["language_page", "language_figure"],
                name="write_language_page",
            ),
        ],
        namespace="language_reporting",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="reporting",
    )
