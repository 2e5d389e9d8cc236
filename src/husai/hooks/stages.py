"""A Kedro hook that chooses the pipelines that ``kedro run`` runs in an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedro.config import MissingConfigException
from kedro.framework.hooks import hook_impl

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext


STUDY = (
    "data_generation",
    "transformer_training",
    "activation_extraction",
    "sae_training",
    "loss_recovery",
    "consistency_analysis",
    "feature_pages",
    "reporting",
)
"""The home study in its order; other pipelines run by name."""


class StudyStages:
    """Makes the default pipeline from ``stages`` in the environment's conf/<env>/study.yml."""

    @hook_impl(tryfirst=True)  # before the checks look at the pipelines
    def after_context_created(self, context: KedroContext) -> None:
        """Join the stages of the environment; without the file, those of the home study."""
        from kedro.framework.project import pipelines
        from kedro.pipeline import Pipeline

        try:
            stages = context.config_loader["study"]["stages"]
        except MissingConfigException:
            stages = STUDY
        # always set, since another session in this process may have had another environment
        pipelines["__default__"] = sum((pipelines[name] for name in stages), Pipeline([]))
