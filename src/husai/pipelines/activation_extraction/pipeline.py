"""The pipeline that reads activations."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.activations import statistics_table
from husai.pipelines.activation_extraction.nodes import extract, tabulate_waves


def create_pipeline() -> Pipeline:
    """Transformer and examples in; activations by hook and their statistics out."""
    return Pipeline(
        [
            Node(
                extract,
                inputs=["transformer", "examples", "params:activations"],
                outputs="activations",
                name="extract_activations",
            ),
            Node(
                statistics_table,
                inputs="activations",
                outputs="activation_statistics",
                name="describe_activations",
            ),
            Node(
                tabulate_waves,
                inputs=["transformer", "activations"],
                outputs="fourier_waves",
                name="tabulate_waves",
            ),
        ],
        namespace="activation_extraction",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="activations",
    )
