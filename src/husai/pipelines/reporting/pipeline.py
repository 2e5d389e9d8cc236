"""The pipeline that writes the study's page."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.reporting.nodes import write_report

# fields of the page's tables, with the datasets that they are read from
TABLES = {
    "statistics": "activation_statistics",
    "waves": "fourier_waves",
    "saes": "sae_table",
    "groups": "consistency_groups",
    "features": "consistency_features",
    "coverage": "consistency_coverage",
    "kinds": "consistency_kinds",
    "matched": "consistency_matched",
    "published": "consistency_published",
    "orderings": "consistency_orderings",
    "trajectories": "consistency_trajectories",
    "correlates": "consistency_correlates",
}


def create_pipeline() -> Pipeline:
    """Tables in; one page, and its main sentence, out."""
    return Pipeline(
        [
            Node(
                write_report,
                inputs={
                    "origin": "run_origin",
                    "training_summary": "training_summary",
                    "transformer_evaluation": "transformer_evaluation",
                    "consistency_summary": "consistency_summary",
                    "campaign": "params:campaign",
                    "campaign_totals": "campaign_totals",
                    "consistency": "params:consistency",
                    "sae_training": "params:sae_training",
                    "reporting": "params:reporting",
                    **TABLES,
                },
                outputs=["study_report", "study_sentence"],
                name="write_report",
            ),
        ],
        namespace="reporting",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="reporting",
    )
