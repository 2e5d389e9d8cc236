"""The pipeline that gathers the study's main group; part of feature_pages and consensus."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.feature_group.nodes import gather_group


def create_pipeline() -> Pipeline:
    """SAEs and rows in; one group, matched, out."""
    return Pipeline(
        [
            Node(
                gather_group,
                inputs=[
                    "sae_plan",
                    "saes",
                    "activations",
                    "consistency_coverage",
                    "consistency_kinds",
                    "activation_labels",
                    "activation_contexts",
                ],
                outputs="study_features",
                name="gather_group",
            ),
        ],
        namespace="feature_group",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="features",
    )
