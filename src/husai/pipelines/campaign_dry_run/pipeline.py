"""The pipeline that estimates what training would take, without training."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.campaign_dry_run.nodes import estimate


def create_pipeline() -> Pipeline:
    """Activations and parameters in; the banks with time, memory and cost, and the seeds, out."""
    return Pipeline(
        [
            Node(
                estimate,
                inputs={
                    "activations": "activations",
                    "training": "params:sae_training",
                    "campaign": "params:campaign",
                    "folder": "campaign_folder",
                    "stores": "activation_stores",
                    "earlier_pairs": "earlier_pairs",
                    "consistency": "params:consistency",
                },
                outputs=["campaign_estimate", "campaign_estimate_text", "campaign_seeds_needed"],
                name="estimate_campaign",
            ),
        ],
        namespace="campaign_dry_run",
        prefix_datasets_with_namespace=False,
        tags="saes",
    )
