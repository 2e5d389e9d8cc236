"""The pipelines that ``kedro run`` runs in an environment, as a Kedro hook."""

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
    """Make the default pipeline that of the environment: ``stages`` in conf/<env>/study.yml."""

    @hook_impl(tryfirst=True)  # before the checks look at the pipelines
    def after_context_created(self, context: KedroContext) -> None:
        """Put the environment's stages together; without the file it is the home study."""
        from kedro.framework.project import pipelines
        from kedro.pipeline import Pipeline

        try:
            stages = context.config_loader["study"]["stages"]
        except MissingConfigException:
            stages = STUDY
        # always set: another session of this process may have had another environment
        pipelines["__default__"] = sum((pipelines[name] for name in stages), Pipeline([]))
