"""The pipeline of the planted-truth study."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.planted_truth.nodes import (
    calibrate,
    plan,
    plot_calibration,
    score,
    train,
    write_page,
)


def create_pipeline() -> Pipeline:
    """Planted worlds in; SAEs, scores beside true recovery, and the reliability of scores out."""
    return Pipeline(
        [
            Node(plan, inputs="params:planted_truth", outputs="planted_plan", name="plan_worlds"),
            Node(
                train,
                inputs=["planted_plan", "params:planted_truth", "planted_campaign_folder"],
                outputs="planted_saes",
                name="train_on_worlds",
            ),
            Node(
                score,
                inputs=["planted_plan", "planted_saes", "params:planted_truth"],
                outputs=[
                    "planted_settings",
                    "planted_runs",
                    "planted_features",
                    "planted_planes",
                ],
                name="score_beside_truth",
            ),
            Node(
                calibrate,
                inputs=[
                    "planted_settings",
                    "planted_runs",
                    "planted_features",
                    "planted_planes",
                    "params:planted_truth",
                ],
                outputs=[
                    "planted_calibration",
                    "planted_detectors",
                    "planted_gate",
                    "planted_summary",
                ],
                name="calibrate_scores",
            ),
            Node(
                plot_calibration,
                inputs=[
                    "planted_settings",
                    "planted_calibration",
                    "planted_detectors",
                    "planted_gate",
                    "planted_planes",
                ],
                outputs="planted_figure",
                name="plot_calibration",
            ),
            Node(
                write_page,
                inputs=[
                    "planted_settings",
                    "planted_calibration",
                    "planted_detectors",
                    "planted_gate",
                    "planted_planes",
                    "planted_summary",
                ],
                outputs="planted_page",
                name="write_planted_page",
            ),
        ],
        namespace="planted_truth",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="planted_truth",
    )
