"""The pipeline that reports."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.reporting.nodes import write_report


def create_pipeline() -> Pipeline:
    """Tables in; one page out."""
    return Pipeline(
        [
            Node(
                write_report,
                inputs=[
                    "training_summary",
                    "transformer_evaluation",
                    "consistency_summary",
                    "activation_statistics",
                    "fourier_waves",
                    "sae_table",
                    "consistency_groups",
                    "consistency_features",
                    "consistency_matched_l0",
                    "consistency_published",
                    "consistency_orderings",
                    "consistency_trajectories",
                    "consistency_geometry",
                    "consistency_symmetries",
                    "consistency_correlates",
                    "params:campaign",
                    "campaign_totals",
                    "params:reporting",
                ],
                outputs="study_report",
                name="write_report",
            ),
        ],
        namespace="reporting",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="reporting",
    )
