"""The pipeline that measures consistency."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.consistency_analysis.nodes import (
    compare,
    correlate_features,
    follow_training,
    gather,
    plot_kinds,
    plot_reproducibility,
    plot_scores,
    plot_seeds,
    plot_settings,
    plot_similarity,
    plot_trajectories,
    tabulate_settings,
)


def create_pipeline() -> Pipeline:
    """SAEs in; tables of scores with nulls and intervals, and their figures, out."""
    return Pipeline(
        [
            Node(
                gather,
                inputs=["sae_plan", "saes", "external_saes", "activations", "params:consistency"],
                outputs="study_records",
                name="gather_records",
            ),
            Node(
                compare,
                inputs=["study_records", "params:consistency", "activation_labels"],
                outputs=[
                    "consistency_groups",
                    "consistency_pairs",
                    "consistency_features",
                    "consistency_coverage",
                    "consistency_kinds",
                    "consistency_tables",
                    "consistency_summary",
                ],
                name="compare_saes",
            ),
            Node(
                tabulate_settings,
                inputs=[
                    "sae_plan",
                    "consistency_groups",
                    "consistency_pairs",
                    "consistency_tables",
                    "activation_statistics",
                    "params:consistency",
                ],
                outputs=[
                    "consistency_settings",
                    "consistency_matched",
                    "consistency_contrasts",
                    "consistency_seeds_needed",
                    "consistency_published",
                    "consistency_orderings",
                ],
                name="tabulate_settings",
            ),
            Node(
                correlate_features,
                inputs=["consistency_features", "params:consistency"],
                outputs="consistency_correlates",
                name="correlate_features",
            ),
            Node(
                follow_training,
                inputs=["study_records", "consistency_groups", "params:consistency"],
                outputs="consistency_trajectories",
                name="follow_training",
            ),
            Node(
                plot_kinds,
                inputs=["consistency_features", "consistency_kinds"],
                outputs="kinds_figure",
                name="plot_kinds",
            ),
            Node(
                plot_settings,
                inputs="consistency_settings",
                outputs="settings_figure",
                name="plot_settings",
            ),
            Node(
                plot_trajectories,
                inputs="consistency_trajectories",
                outputs="trajectories_figure",
                name="plot_trajectories",
            ),
            Node(
                plot_scores,
                inputs="consistency_groups",
                outputs="scores_figure",
                name="plot_scores",
            ),
            Node(plot_seeds, inputs="consistency_pairs", outputs="seeds_figure", name="plot_seeds"),
            Node(
                plot_reproducibility,
                inputs=["consistency_features", "consistency_kinds", "params:consistency"],
                outputs="reproducibility_figure",
                name="plot_reproducibility",
            ),
            Node(
                plot_similarity,
                inputs=["consistency_coverage", "consistency_kinds", "study_records"],
                outputs="similarity_figure",
                name="plot_similarity",
            ),
        ],
        namespace="consistency_analysis",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="consistency",
    )
