"""Checks of names and inputs of a run, and the commands that make missing inputs."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from husai.config import flatten
from husai.errors import InputError

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


def check_known(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name that is not among the known ones.

    Raises
    ------
    InputError
        With the nearest known name.
    """
    for name in given:
        if name not in known:
            # nodes have the name of their pipeline in front
            last = {entry.rsplit(".", 1)[-1]: entry for entry in known}
            near = get_close_matches(name, known, n=1) or [
                last[found] for found in get_close_matches(name, last, n=1)
            ]
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}"
            raise InputError(f"{what} '{name}' does not exist; {hint}")


def check_environment(env: str | None, conf_source: str, base: str) -> None:
    """Refuse an environment without a folder in the configuration.

    Raises
    ------
    InputError
        With the nearest environment.
    """
    folder = Path(conf_source)
    if env is not None and folder.is_dir():
        known = {path.name for path in folder.iterdir() if path.is_dir()} - {base}
        check_known("environment", [env], known | {base})


def unread_parameters(given: Iterable[str], pipeline: Pipeline) -> list[str]:
    """Return the parameter groups of the command line that no node of a pipeline reads."""
    read = {name.removeprefix("params:") for name in pipeline.inputs()}
    return sorted({name.split(".")[0] for name in given} - read)


def makers(dataset: str, pipelines: Mapping[str, Pipeline]) -> list[str]:
    """Return the pipelines that make a dataset; only those of the study if there are any."""
    found = [
        name
        for name, pipeline in pipelines.items()
        if name != "__default__" and dataset in pipeline.all_outputs()
    ]
    # own_activations and activation_extraction make the same dataset, each in its environment
    study = set(pipelines["__default__"].nodes) if "__default__" in pipelines else set()
    return [name for name in found if study.issuperset(pipelines[name].nodes)] or found


def check_inputs(
    pipeline: Pipeline,
    catalog: DataCatalog,
    pipelines: Mapping[str, Pipeline],
    options: str,
) -> None:
    """Refuse a run with missing inputs that another pipeline makes.

    Parameters
    ----------
    pipeline, catalog, pipelines
        The pipeline that runs, the catalog, and all pipelines by name.
    options
        Options of this run, for the command: see :func:`typed_options`.

    Raises
    ------
    InputError
        With the command that makes them.
    """
    absent = _absent(pipeline.inputs(), catalog, pipelines)
    if not absent:
        return
    needed: set[str] = set()
    waiting = set(absent)
    while waiting:
        found = makers(waiting.pop(), pipelines)
        # if there are several, the one that is part of the environment's study
        maker = next((name for name in found if _in_study(name, pipelines)), found[0])
        if maker not in needed:
            needed.add(maker)
            waiting |= _absent(pipelines[maker].inputs(), catalog, pipelines)
    shown = sorted(absent)[:3] + ([f"{len(absent) - 3} more"] if len(absent) > 3 else [])
    raise InputError(
        f"{', '.join(shown)}: not made yet; make "
        f"{'it' if len(absent) == 1 else 'them'} with: {command(needed, pipelines, options)}"
    )


def typed_options(run_params: Mapping[str, Any]) -> str:
    """Return a run's environment and parameters as they are typed after ``kedro run``."""
    env, given = run_params.get("env"), run_params.get("runtime_params") or {}
    params = ",".join(f"{name}={_typed(value)}" for name, value in flatten(given))
    return (f" --env={env}" if env else "") + (f" --params {shlex.quote(params)}" if params else "")


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def command(needed: Collection[str], pipelines: Mapping[str, Pipeline], options: str) -> str:
    """Return the command that runs some pipelines, each after those that make its inputs."""
    ordered: list[str] = []
    left = sorted(needed)
    while left:
        made_later = {name: pipelines[name].all_outputs() for name in left}
        ready = [
            name
            for name in left
            if not any(
                pipelines[name].inputs() & made_later[other] for other in left if other != name
            )
        ]
        ordered += ready or left
        left = [name for name in left if name not in ordered]
    return f"kedro run --pipelines={','.join(ordered)}{options}"


def _in_study(name: str, pipelines: Mapping[str, Pipeline]) -> bool:
    return "__default__" in pipelines and set(pipelines[name].nodes) <= set(
        pipelines["__default__"].nodes
    )


def _absent(
    names: Iterable[str], catalog: DataCatalog, pipelines: Mapping[str, Pipeline]
) -> set[str]:
    return {
        name
        for name in names
        if not name.startswith("params:")
        and name != "parameters"
        and makers(name, pipelines)
        and not _there(name, catalog)
    }


def _there(name: str, catalog: DataCatalog) -> bool:
    dataset: Any = catalog.get(name)
    return dataset is not None and dataset.exists()
