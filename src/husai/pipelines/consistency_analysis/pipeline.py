"""The pipeline that measures consistency."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.consistency_analysis.nodes import compare


def create_pipeline() -> Pipeline:
    """SAEs in; tables of scores with nulls and intervals, and their figures, out."""
    return Pipeline(
        [
            Node(
                compare,
                inputs=["sae_plan", "saes", "activations", "params:consistency"],
                outputs=[
                    "consistency_saes",
                    "consistency_pairs",
                    "consistency_groups",
                    "consistency_features",
                    "consistency_summary",
                ],
                name="compare_saes",
            ),
        ],
        namespace="consistency_analysis",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="consistency",
    )
