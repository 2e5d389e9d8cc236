"""The pipeline that trains some SAEs again for longer."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.longer_training.nodes import choose, judge, train


def create_pipeline() -> Pipeline:
    """The plan and its SAEs in; the SAEs that moved with longer training out."""
    return Pipeline(
        [
            Node(
                choose,
                inputs=["sae_plan", "params:sae_training", "params:longer_training"],
                outputs="longer_plan",
                name="choose_saes",
            ),
            Node(
                train,
                inputs=[
                    "longer_plan",
                    "activations",
                    "params:sae_training",
                    "params:campaign",
                    "longer_folder",
                    "activation_stores",
                ],
                outputs="longer_saes",
                name="train_for_longer",
            ),
            Node(
                judge,
                inputs=["sae_plan", "longer_plan", "saes", "longer_saes", "params:consistency"],
                outputs="longer_moved",
                name="say_what_moved",
            ),
        ],
        namespace="longer_training",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="saes",
    )
