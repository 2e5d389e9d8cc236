"""The pipeline that reads the user's own activation rows."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.activations import statistics_table
from husai.pipelines.own_activations.nodes import read_own_rows


def create_pipeline() -> Pipeline:
    """A file of rows in; activations, their statistics and the labels beside them out."""
    return Pipeline(
        [
            Node(
                read_own_rows,
                inputs="params:activations",
                outputs=["activations", "activation_labels"],
                name="read_own_rows",
            ),
            Node(
                statistics_table,
                inputs="activations",
                outputs="activation_statistics",
                name="describe_own_rows",
            ),
        ],
        namespace="own_activations",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="activations",
    )
