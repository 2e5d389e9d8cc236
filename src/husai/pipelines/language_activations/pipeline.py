"""The pipeline that reads a language model."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.activations import statistics_table
from husai.pipelines.language_activations.nodes import name_rows, read_model, tokenise_text


def create_pipeline() -> Pipeline:
    """A text and a model in; tokens, stores of activations and their statistics out."""
    return Pipeline(
        [
            Node(
                tokenise_text,
                inputs=["params:text", "params:language_model"],
                outputs=["text_tokens", "text_documents"],
                name="tokenise_text",
            ),
            Node(
                read_model,
                inputs=[
                    "text_tokens",
                    "params:language_model",
                    "params:reading",
                    "activation_stores",
                ],
                outputs="activations",
                name="read_language_model",
            ),
            Node(
                name_rows,
                inputs=["text_tokens", "params:language_model", "params:reading"],
                outputs="activation_contexts",
                name="name_rows",
            ),
            Node(
                statistics_table,
                inputs="activations",
                outputs="activation_statistics",
                name="describe_language_activations",
            ),
        ],
        namespace="language_activations",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="activations",
    )
