"""The pipeline that samples what features do in a language model, and writes it down."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.language_function.nodes import sample_function, write_function_page


def create_pipeline() -> Pipeline:
    """The main group, the model and its text in; what partners do out, as tables and a page."""
    return Pipeline(
        [
            Node(
                sample_function,
                inputs=[
                    "study_features",
                    "text_tokens",
                    "params:language_model",
                    "params:reading",
                    "params:features",
                ],
                outputs=["language_function", "language_partners"],
                name="sample_function",
            ),
            Node(
                write_function_page,
                inputs=[
                    "run_origin",
                    "consistency_summary",
                    "params:language_model",
                    "params:features",
                    "language_function",
                ],
                outputs="language_function_page",
                name="write_function_page",
                tags="reporting",
            ),
        ],
        namespace="language_function",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="language",
    )
