"""The pipeline that makes the dataset."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.data_generation.nodes import count_labels, generate_examples


def create_pipeline() -> Pipeline:
    """Task parameters in; examples, vocabulary and label counts out."""
    return Pipeline(
        [
            Node(
                generate_examples,
                inputs="params:task",
                outputs=["examples", "vocabulary"],
                name="generate_examples",
            ),
            Node(
                count_labels,
                inputs="examples",
                outputs="label_distribution",
                name="count_labels",
            ),
        ],
        namespace="data_generation",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="data",
    )
