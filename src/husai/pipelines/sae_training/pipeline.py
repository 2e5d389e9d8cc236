"""The pipeline that trains the SAEs."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from husai.pipelines.sae_training.nodes import plan, plot_learning_curves, tabulate, train


def create_pipeline() -> Pipeline:
    """Activations and parameters in; the plan, the SAEs (one file each) and their tables out."""
    return Pipeline(
        [
            Node(plan, inputs="params:campaign", outputs="sae_plan", name="plan_saes"),
            Node(
                train,
                inputs={
                    "sae_plan": "sae_plan",
                    "activations": "activations",
                    "training": "params:sae_training",
                    "campaign": "params:campaign",
                    "folder": "campaign_folder",
                    "stores": "activation_stores",
                },
                outputs="saes",
                name="train_saes",
            ),
            Node(
                tabulate,
                inputs=["sae_plan", "saes", "campaign_folder"],
                outputs=["sae_table", "campaign_ledger", "campaign_totals"],
                name="tabulate_saes",
            ),
            Node(
                plot_learning_curves,
                inputs=["sae_plan", "saes"],
                outputs="learning_curves",
                name="plot_learning_curves",
            ),
        ],
        namespace="sae_training",  # one box in Kedro-Viz until it is opened
        prefix_datasets_with_namespace=False,
        tags="saes",
    )
