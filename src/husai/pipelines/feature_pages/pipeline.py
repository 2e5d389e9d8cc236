"""The pipeline that shows single features."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.feature_pages.nodes import (
    measure_features,
    plot_reliability,
    write_page,
)


def create_pipeline() -> Pipeline:
    """The main group in; tables of features and one page out."""
    return Pipeline(
        [
            Node(
                measure_features,
                inputs=["study_features", "transformer", "params:features"],
                outputs=[
                    "cards",
                    "feature_cards",
                    "feature_partners",
                    "feature_function",
                    "feature_reliability",
                    "feature_combinations",
                    "feature_identifiability",
                ],
                name="measure_features",
            ),
            Node(
                write_page,
                inputs=["cards", "study_features", "params:features"],
                outputs="features_page",
                name="write_features_page",
            ),
            Node(
                plot_reliability,
                inputs="feature_reliability",
                outputs="reliability_figure",
                name="plot_reliability",
            ),
        ],
        namespace="feature_pages",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="features",
    )
