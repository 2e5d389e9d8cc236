"""The pipeline that measures SAEs inside a language model."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.language_evaluation.nodes import compare_untrained, describe, evaluate, probe

PLANNED = ["sae_plan", "saes", "activations"]
MODEL = ["params:language_model", "params:reading"]


def create_pipeline() -> Pipeline:
    """SAEs, the model and its text in; metrics, probes and contexts out."""
    return Pipeline(
        [
            Node(
                evaluate,
                inputs=[*PLANNED, "text_tokens", *MODEL, "params:evaluation"],
                outputs=["language_metrics", "language_densities", "saebench_results"],
                name="evaluate_in_model",
            ),
            Node(
                probe,
                inputs=[
                    *PLANNED,
                    "params:probe_text",
                    *MODEL,
                    "params:probes",
                    "params:consistency",
                ],
                outputs=["probe_results", "probe_summary", "probe_stability"],
                name="probe_texts",
            ),
            Node(
                describe,
                inputs=[*PLANNED, "text_tokens", "text_documents", *MODEL, "params:contexts"],
                outputs=["feature_contexts", "feature_logits"],
                name="find_contexts",
            ),
            Node(
                compare_untrained,
                inputs=[*PLANNED, "params:consistency"],
                outputs=["untrained_groups", "untrained_features"],
                name="compare_untrained",
            ),
        ],
        namespace="language_evaluation",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="language",
    )
