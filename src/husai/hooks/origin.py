"""A Kedro hook that gives the pages the command and the parameters of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedro.config import OmegaConfigLoader
from kedro.framework.hooks import hook_impl

from husai.config import flatten
from husai.provenance import command_line, without_secrets

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

DATASET = "run_origin"


class RunOrigin:
    """Saves the dataset ``run_origin`` for the pipelines that read it.

    It is a mapping with the ``command`` as typed, the ``environment``, and ``changed``: the
    parameters that differ from those of conf/base, each with ``name``, ``value`` and ``default``.
    """

    def __init__(self) -> None:
        self._origin: dict[str, Any] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Compare the parameters with the defaults."""
        loader: Any = context.config_loader  # OmegaConfigLoader, as the settings say
        base = OmegaConfigLoader(loader.conf_source, base_env="base", default_run_env="base")
        self._origin = {
            "command": command_line(),
            "environment": context.env or loader.default_run_env or "base",
            "changed": changed_parameters(base["parameters"], loader["parameters"]),
        }

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Save it in the catalog if the pipeline reads it."""
        if DATASET in pipeline.inputs():
            catalog.save(DATASET, self._origin)


def changed_parameters(default: dict[str, Any], used: dict[str, Any]) -> list[dict[str, str]]:
    """List the parameters whose value is not the default.

    Parameters
    ----------
    default, used
        Groups of parameters, nested.

    Returns
    -------
    list of dict
        ``name`` (dotted), ``value`` and ``default`` as text; ``none`` for a missing value.
    """
    before, now = dict(flatten(default)), dict(flatten(used))
    rows = []
    for name in dict.fromkeys([*before, *now]):
        value, standard = _text(now.get(name)), _text(before.get(name))
        if value != standard:
            rows.append({"name": name, "value": value, "default": standard})
    return rows


def _text(value: Any) -> str:
    return "none" if value is None else without_secrets(str(value))
