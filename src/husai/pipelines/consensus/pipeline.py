"""The pipeline that makes the consensus dictionary."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.consensus.nodes import gather_group, pool_features


def create_pipeline() -> Pipeline:
    """SAEs and rows in; the consensus SAE and what it is worth out."""
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
                ],
                outputs="consensus_group",
                name="gather_group",
            ),
            Node(
                pool_features,
                inputs=["consensus_group", "transformer", "params:consensus"],
                outputs=[
                    "consensus_sae",
                    "consensus_worth",
                    "consensus_tracks",
                    "consensus_recurrence",
                ],
                name="pool_features",
            ),
        ],
        namespace="consensus",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="features",
    )
