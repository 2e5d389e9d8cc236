"""A Kedro hook that checks parameters and inputs, so that bad input stops a run at its start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.hooks import hook_impl
from pydantic import ValidationError

from husai.config import problems, short_text, too_large
from husai.errors import InputError
from husai.hooks.order import (
    check_environment,
    check_inputs,
    check_known,
    typed_options,
    unread_parameters,
)
from husai.memory import check_memory
from husai.progress import heartbeat
from husai.studies import PARAMETER

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


logger = logging.getLogger(__name__)


class StudyError(click.ClickException):
    """Bad input: the command line prints the message without a traceback and exits with 2."""

    exit_code = 2


class StudyChecks:
    """Checks everything that can be checked before any node runs."""

    @hook_impl(tryfirst=True)  # before anything else reads the configuration
    def after_context_created(self, context: KedroContext) -> None:
        """Validate every parameter group, and refuse groups that no node reads."""
        from kedro.framework.project import pipelines
        from kedro.validation.type_extractor import TypeExtractor

        loader: Any = context.config_loader  # OmegaConfigLoader, as the settings say
        try:
            # an unknown pipeline makes Kedro fail before a hook gets the names from it
            asked = getattr(pipelines, "_requested_pipelines", None) or ()
            check_known("pipeline", asked, list(pipelines))
            check_environment(context.env, str(loader.conf_source), str(loader.base_env))
        except InputError as error:
            raise StudyError(str(error)) from error
        types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
        found = parameter_problems(context.config_loader["parameters"], types)
        if found:
            raise StudyError("\n".join(found))

    @hook_impl(tryfirst=True)  # before MLflow's hook opens a run
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check parameter groups against one another, and that the inputs of this run exist."""
        from kedro.framework.project import pipelines

        given = set(run_params.get("runtime_params") or ()) - {PARAMETER}
        unread = unread_parameters(given, pipeline)
        if unread:
            logger.warning("--params: this run does not read %s", ", ".join(unread))
        groups = {
            name.removeprefix("params:"): catalog.load(name)
            for name in sorted(pipeline.inputs())
            if name.startswith("params:")
        }
        try:
            with heartbeat("checking the parameters and inputs"):  # which imports the libraries
                check_study(groups)
                check_inputs(pipeline, catalog, pipelines, typed_options(run_params))
        except InputError as error:
            raise StudyError(str(error)) from error


def check_study(groups: dict[str, Any]) -> None:
    """Check parameter groups against one another.

    Parameters
    ----------
    groups
        Validated parameters by name of their group. Groups that a run does not read are absent,
        and checks that need them are skipped.

    Raises
    ------
    InputError
        With the field and the value.
    """
    rows = None
    if "task" in groups:
        from husai.tasks import modular_dataset

        dataset = modular_dataset(groups["task"])
        rows = len(dataset.examples)
        if "transformer" in groups:
            _check_transformer(groups, dataset.vocabulary.d_vocab, dataset.vocabulary.n_ctx)
    if "campaign" in groups:
        _check_campaign(groups, rows)
    if "planted_truth" in groups:
        _check_worlds(groups["planted_truth"])
    if "language_model" in groups and "evaluation" in groups:
        _check_evaluation(groups["language_model"], groups["evaluation"])


def _check_evaluation(model: Any, evaluation: Any) -> None:
    """Say before anything is read that a model has no cross-entropy."""
    if evaluation.measure == "cross_entropy":
        from husai.language.evaluation import check_measure
        from husai.language.model import model_kind

        check_measure(model_kind(model), model.name, evaluation)


def _check_worlds(study: Any) -> None:
    for name, entry in study.worlds.items():
        world = entry.world
        # the dictionary in float64 and the rows in float32
        values = 2 * world.n_features + study.n_rows + study.n_eval_rows
        check_memory(
            4 * world.d_in * values,
            f"planted_truth.worlds.{name}: d_in = {world.d_in}, n_features = {world.n_features}, "
            f"n_rows = {study.n_rows}",
            "lower one of them",
        )


def _check_transformer(groups: dict[str, Any], d_vocab: int, n_ctx: int) -> None:
    """Check sizes and hook names by building the model with new weights."""
    from husai.transformer import build_transformer
    from husai.transformer.shipped import check_shipped

    if groups["transformer"].start == "shipped":
        check_shipped(groups["transformer"], groups.get("transformer_training"), groups["task"])
    config = groups["transformer"]
    width = config.d_model * (4 * config.d_model + 2 * config.d_mlp)
    parameters = config.n_layers * width + 2 * d_vocab * config.d_model
    # weights, their gradient and Adam's two moments, in float32
    check_memory(
        4 * 4 * parameters,
        f"transformer: d_model = {config.d_model}, d_mlp = {config.d_mlp}, "
        f"n_layers = {config.n_layers}",
        "make it smaller",
    )
    model = build_transformer(groups["transformer"], d_vocab, n_ctx)
    if "activations" in groups:
        from husai.activations.extraction import check_extraction

        check_extraction(model, n_ctx, groups["activations"])


def _check_campaign(groups: dict[str, Any], rows: int | None) -> None:
    from husai.campaign import plan_saes, row_config
    from husai.campaign.banks import sae_bytes
    from husai.campaign.executors import check_backend
    from husai.campaign.plan import records

    plan = groups["campaign"].plan
    check_backend(groups["campaign"].compute)
    table = plan_saes(plan)
    if "sae_training" in groups:
        # without a transformer the width of the activations is not known yet; it is at least 1
        d_in = groups["transformer"].d_model if "transformer" in groups else 1
        batch_size = groups["sae_training"].batch_size
        for row in records(table.drop_duplicates("d_sae")):
            check_memory(
                sae_bytes(row_config(row), d_in, batch_size),
                f"campaign.plan: {row['sae_id']}, d_sae = {row['d_sae']}, with "
                f"sae_training.batch_size = {batch_size}",
                "lower one of them",
            )
    if "reading" in groups:
        _check_places(table, groups["reading"].places(), "reading")
        if plan.untrained != "none" and not groups["reading"].untrained:
            raise InputError(
                f"campaign.plan.untrained: '{plan.untrained}', but reading.untrained is false; set "
                "reading.untrained to true, or campaign.plan.untrained to none"
            )
    if "activations" in groups:
        extraction = groups["activations"]
        hook_positions = extraction.hook_positions()
        _check_places(table, hook_positions, "activations")
        if plan.untrained != "none" and not extraction.untrained:
            raise InputError(
                f"campaign.plan.untrained: '{plan.untrained}', but activations.untrained is false; "
                "set activations.untrained to true, or campaign.plan.untrained to none"
            )
    if rows is not None and "sae_training" in groups:
        training = groups["sae_training"]
        train_rows = rows - round(rows * training.eval_fraction)
        if training.batch_size > train_rows:
            raise InputError(
                f"sae_training.batch_size: {training.batch_size} is more than the {train_rows} "
                f"rows that {len(table)} SAEs would be trained on; lower it"
            )


def _check_places(table: Any, extracted: Any, group: str) -> None:
    """Refuse SAEs at hooks or positions that are not extracted."""
    for hook_name, position in dict.fromkeys(
        zip(table["hook_name"], table["position"], strict=True)
    ):
        names = list(dict.fromkeys(name for name, _ in extracted))
        if hook_name not in names:
            raise InputError(
                f"campaign.plan.hook_name: '{hook_name}' is not extracted; choose from "
                f"{', '.join(names)}, or add it to {group}.hook_names"
            )
        if (hook_name, position) not in extracted:
            raise InputError(
                f"campaign.plan.position: {position} of '{hook_name}' is not extracted; "
                f"choose from {', '.join(f'{name}@{at}' for name, at in extracted)}"
            )


def parameter_problems(parameters: dict[str, Any], types: dict[str, Any]) -> list[str]:
    """Say what is wrong with the parameters, one line per problem.

    Parameters
    ----------
    parameters
        All parameters, nested, from the configuration and the command line.
    types
        The Pydantic model of every group that some node reads, by name of the group.

    Returns
    -------
    list of str
        ``group.field = value: what is wrong``; empty if nothing is wrong.
    """
    found = [
        f"{name} = {short_text(parameters[name])}: no such parameter; "
        f"choose from {', '.join(sorted(types))}"
        for name in sorted(set(parameters) - set(types))
    ]
    for name in sorted(set(types) & set(parameters)):
        large = list(too_large(parameters[name], name))
        if large:
            found += [f"{place}: the number is too large" for place in large]
            continue
        try:
            types[name].model_validate(parameters[name])
        except ValidationError as error:
            found += problems(error, name)
    return found
