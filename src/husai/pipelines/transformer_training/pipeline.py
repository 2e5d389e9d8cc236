"""The pipeline that trains the transformer."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.transformer_training.nodes import (
    evaluate,
    measure_progress,
    plot_training,
    train,
)


def create_pipeline() -> Pipeline:
    """Examples in; transformer, its curves, its progress measures and their figure out."""
    return Pipeline(
        [
            Node(
                train,
                inputs=[
                    "examples",
                    "vocabulary",
                    "params:task",
                    "params:transformer",
                    "params:transformer_training",
                    "transformer_checkpoints",
                ],
                outputs=["transformer", "training_curves", "training_summary"],
                name="train_transformer",
            ),
            Node(
                evaluate,
                inputs=["transformer", "examples"],
                outputs="transformer_evaluation",
                name="evaluate_transformer",
            ),
            Node(
                measure_progress,
                inputs=["transformer", "examples", "transformer_checkpoints"],
                outputs="progress_measures",
                name="measure_progress",
            ),
            Node(
                plot_training,
                inputs=["training_curves", "progress_measures"],
                outputs="training_figure",
                name="plot_training",
            ),
        ],
        namespace="transformer_training",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="transformer",
    )
