"""The pipeline that makes the consensus dictionary."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.consensus.nodes import pool_features


def create_pipeline() -> Pipeline:
    """The main group in; the consensus SAE and its measurements out."""
    return Pipeline(
        [
            Node(
                pool_features,
                inputs=["study_features", "transformer", "params:consensus"],
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
