"""The pipeline that measures consistency."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.consistency_analysis.nodes import (
    compare,
    plot_reproducibility,
    plot_scores,
    plot_seeds,
    plot_similarity,
)


def create_pipeline() -> Pipeline:
    """SAEs in; tables of scores with nulls and intervals, and their figures, out."""
    return Pipeline(
        [
            Node(
                compare,
                inputs=["sae_plan", "saes", "external_saes", "activations", "params:consistency"],
                outputs=[
                    "consistency_groups",
                    "consistency_pairs",
                    "consistency_features",
                    "consistency_tables",
                    "consistency_summary",
                ],
                name="compare_saes",
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
                inputs=["consistency_features", "params:consistency"],
                outputs="reproducibility_figure",
                name="plot_reproducibility",
            ),
            Node(
                plot_similarity,
                inputs=["consistency_groups", "sae_plan", "saes"],
                outputs="similarity_figure",
                name="plot_similarity",
            ),
        ],
        namespace="consistency_analysis",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="consistency",
    )
