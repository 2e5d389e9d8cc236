"""The pipeline that makes the consensus dictionary."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.consensus.nodes import plot_calibration, plot_consensus, pool_features


def create_pipeline() -> Pipeline:
    """The main group in; the consensus SAE and its measurements out."""
    return Pipeline(
        [
            Node(
                pool_features,
                inputs=["study_features", "transformer", "params:consensus", "params:features"],
                outputs=[
                    "consensus_sae",
                    "consensus_tracks",
                    "consensus_dictionaries",
                    "consensus_worth",
                    "consensus_recurrence",
                    "consensus_calibration",
                ],
                name="pool_features",
            ),
            Node(
                plot_consensus,
                inputs=["consensus_worth", "consensus_recurrence"],
                outputs="worth_figure",
                name="plot_consensus",
            ),
            Node(
                plot_calibration,
                inputs="consensus_calibration",
                outputs="calibration_figure",
                name="plot_calibration",
            ),
        ],
        namespace="consensus",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="features",
    )
