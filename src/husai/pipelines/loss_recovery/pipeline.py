"""The pipeline that measures the transformer's loss with the SAEs' reconstructions."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.loss_recovery.nodes import recover


def create_pipeline() -> Pipeline:
    """SAEs, the transformer and its examples in; the loss recovered by each SAE out."""
    return Pipeline(
        [
            Node(
                recover,
                inputs=["sae_plan", "saes", "transformer", "examples"],
                outputs="loss_recovery",
                name="splice_reconstructions",
            ),
        ],
        namespace="loss_recovery",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="saes",
    )
