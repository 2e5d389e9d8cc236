"""The pipeline that looks for groups of features."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.feature_groups.nodes import measure_groups, plot_widths


def create_pipeline() -> Pipeline:
    """SAEs of several widths and their rows in; tables and a figure out."""
    return Pipeline(
        [
            Node(
                measure_groups,
                inputs=[
                    "sae_plan",
                    "saes",
                    "activations",
                    "consistency_coverage",
                    "consistency_kinds",
                    "params:features",
                ],
                outputs=[
                    "groups_shares",
                    "groups_combinations",
                    "groups_planes",
                    "groups_counts",
                ],
                name="measure_groups",
            ),
            Node(plot_widths, inputs="groups_shares", outputs="widths_figure", name="plot_widths"),
        ],
        namespace="feature_groups",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="features",
    )
