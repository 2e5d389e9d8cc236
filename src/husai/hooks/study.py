"""Names of studies: a configuration loader that knows the study's folder, and a hook that keeps
``study.json`` and warns about changed parameters.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.framework.hooks import hook_impl
from kedro.io import MemoryDataset
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError
from yaml import YAMLError

from husai.config import HOME_STUDY, Name, problems, short_text
from husai.errors import InputError
from husai.hooks.catalog import NamedCatalog
from husai.hooks.checks import StudyError
from husai.processes import this_process
from husai.provenance import command_line, without_secrets
from husai.studies import (
    FOLDER,
    PARAMETER,
    Study,
    changed_groups,
    find_studies,
    now,
    read_study,
)

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

DRY_RUN = "campaign_dry_run"

LONG = 40
"""Most characters of a value in a message."""

SHOWN = 6
"""Most changed parameters that a message lists."""


class StudyConfigLoader(OmegaConfigLoader):
    """Kedro's configuration loader, with the folder of the study of ``--params study=NAME``.

    In globals, ``${study_folder:FOLDER}`` is FOLDER, or ``FOLDER/studies/NAME`` for a study with a
    name. ``campaign.name`` is that name; without one, the name in the environment's parameters, or
    the name of the environment if it has a data folder of its own.
    """

    def __init__(
        self,
        conf_source: str | Path,
        env: str | None = None,
        runtime_params: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if "://" not in str(conf_source) and not Path(conf_source).exists():
            raise StudyError(f"{conf_source}: this folder does not exist; check --conf-source")
        given = dict(runtime_params or {})
        self.study_name = _name_of(given.pop(PARAMETER, None), given)
        super().__init__(conf_source, env, given, **options)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Read a kind of configuration.

        Raises
        ------
        StudyError
            In one line, when a file of it cannot be read.
        """
        # resolvers belong to the whole process, and another loader may have replaced them
        self._register_globals_resolver()
        OmegaConf.register_new_resolver("study_folder", self._folder, replace=True)
        environments = (self.base_env, self.env or self.default_run_env)
        NamedCatalog.folders = [Path(self.conf_source) / name for name in environments]
        try:
            found = super().__getitem__(key)
        except (MissingConfigException, KeyError):
            raise
        except (YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
            raise StudyError(f"configuration ({key}): {' '.join(str(error).split())}") from error
        campaign = found.get("campaign") if key == "parameters" else None
        if not isinstance(campaign, dict):
            return found
        name = self.study_name or campaign.get("name") or self._home()
        return {**found, "campaign": {**campaign, "name": name}}

    def _home(self) -> str:
        """Return the study's name in this environment; the environment's if it has its own data."""
        env = self.env or self.base_env
        own = env != self.base_env and (Path(self.conf_source) / env / "globals.yml").is_file()
        return env if own else HOME_STUDY

    def _folder(self, home: str) -> str:
        return os.path.join(home, FOLDER, self.study_name) if self.study_name else home  # noqa: PTH118


def _name_of(study: Any, params: Mapping[str, Any]) -> str | None:
    """Return the study's name from the command line: ``study``, or ``campaign.name``, or None."""
    campaign = params.get("campaign")
    in_campaign = campaign.get("name") if isinstance(campaign, Mapping) else None
    name = study if study is not None else in_campaign
    if name is None:
        return None
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise StudyError(problems(error, PARAMETER)[0]) from error


class NamedStudy:
    """Keeps ``study.json`` in the study's folder, and warns about changed parameters."""

    def __init__(self) -> None:
        self._folder = Path()
        self._root = Path()
        self._name = ""
        self._study: Study | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Find the study's folder and the data folder, and check that they can be written."""
        places = context.config_loader["globals"]
        self._folder = _absolute(context.project_path / places["study_dir"])
        self._root = _absolute(context.project_path / places["data_root"])
        self._name = str(context.config_loader["parameters"]["campaign"]["name"])
        self._study = None
        for folder in (self._folder, self._root):
            _check_writable(folder)

    @hook_impl(trylast=True)  # after the hooks that may refuse the run
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Compare the parameters with those of the study's last run, and record this run."""
        from kedro.framework.project import pipelines

        parts = self._parts(pipeline, catalog)
        if not parts or _stages(pipeline.nodes) == [DRY_RUN]:  # it writes no file of the study
            return
        groups = _plain(
            {
                name.removeprefix("params:"): catalog.load(name)
                for name in sorted(pipeline.inputs())
                if name.startswith("params:")
            }
        )
        environment = str(run_params.get("env") or "base")
        try:
            before = read_study(self._folder)
            self._check(environment, before)
        except InputError as error:
            raise StudyError(str(error)) from error
        if before is not None:
            self._warn_of_changes(before, groups, pipeline, pipelines["__default__"], catalog)
        known = {
            "parts": tuple(sorted({*parts, *(before.parts if before else ())})),
            "parameters": {**(before.parameters if before else {}), **groups},
        }
        me = this_process()
        if before is not None and before.how_it_stands == "running" and before.process != me:
            # a second run at the same time; the first one records its own end
            before.model_copy(update=known).write(self._folder)
            return
        self._study = Study(
            name=self._name,
            environment=environment,
            root=os.path.relpath(self._root, self._folder),
            command=command_line(),
            started=now(),
            process=me,
            **known,
        )
        self._study.write(self._folder)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Record that the run finished."""
        self._end("finished")

    @hook_impl(tryfirst=True)  # others raise
    def on_pipeline_error(self) -> None:
        """Record that the run failed."""
        self._end("failed")

    def _check(self, environment: str, before: Study | None) -> None:
        """Refuse a name that belongs to another study."""
        if before is not None and before.name != self._name:
            raise InputError(
                f"{self._folder} has study '{before.name}' of environment {before.environment}, "
                f"not '{self._name}' of {environment}; give this study another name "
                f"(--params {PARAMETER}=NAME), or delete the other: husai studies delete "
                f"{before.name}"
            )
        if self._root.is_dir():
            for folder, study in find_studies(self._root):
                if study.name == self._name and _absolute(folder) != self._folder:
                    raise InputError(
                        f"study '{self._name}': the study in {folder} has this name; give another "
                        f"one: --params {PARAMETER}=NAME"
                    )

    def _parts(self, pipeline: Pipeline, catalog: DataCatalog) -> list[str]:
        """Return the files and folders directly in the study's folder that a run writes."""
        found = set()
        for name in pipeline.all_outputs():
            dataset: Any = catalog.get(name)
            place = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
            path = _absolute(str(place)) if place is not None else self._folder
            if path != self._folder and path.is_relative_to(self._folder):
                found.add(path.relative_to(self._folder).parts[0])
        return sorted(found)

    def _warn_of_changes(
        self,
        before: Study,
        groups: Mapping[str, Any],
        pipeline: Pipeline,
        whole: Pipeline,
        catalog: DataCatalog,
    ) -> None:
        """Warn of changed parameters: what this run makes again, and what it does not."""
        changed = changed_groups(before.parameters, groups)
        fields = [field for group in changed.values() for field in group]
        if not fields:
            return
        shown = [f"{name} {_short(old)} -> {_short(new)}" for name, old, new in fields[:SHOWN]]
        if len(fields) > SHOWN:
            shown.append(f"and {len(fields) - SHOWN} more")
        affected = _after(whole, changed)
        here = {node.name for node in pipeline.nodes}
        again = _stages(
            node
            for node in _after(pipeline, changed).nodes
            if any(_is_kept(catalog, name) for name in node.outputs)
        )
        left = _stages(
            node
            for node in affected.nodes
            if node.name not in here and any(_is_there(catalog, name) for name in node.outputs)
        )
        text = (
            f"study '{self._name}': changed since its run of {before.started}: {', '.join(shown)}. "
            f"This run makes again: {', '.join(again) or 'nothing'} (SAEs with unchanged settings "
            "and rows are kept)."
        )
        if left:
            text += f" Still made with the old parameters: {', '.join(left)}."
        logger.warning("%s To keep both, give this study a name: --params study=NAME", text)

    def _end(self, state: str) -> None:
        if self._study is not None:
            ended = self._study.model_copy(update={"state": state, "ended": now()})
            ended.write(self._folder)
            self._study = None


def _after(pipeline: Pipeline, groups: Iterable[str]) -> Pipeline:
    """Return the part of a pipeline that depends on groups of parameters."""
    named = [f"params:{group}" for group in groups]
    return pipeline.from_inputs(*[name for name in named if name in pipeline.inputs()])


def _stages(nodes: Iterable[Node]) -> list[str]:
    """Return the pipelines that nodes belong to, in order."""
    return list(dict.fromkeys(str(node.namespace or node.name).split(".")[0] for node in nodes))


def _is_kept(catalog: DataCatalog, name: str) -> bool:
    """Whether a dataset is written to disk."""
    dataset = catalog.get(name)
    return dataset is not None and not isinstance(dataset, MemoryDataset)


def _is_there(catalog: DataCatalog, name: str) -> bool:
    dataset: Any = catalog.get(name)
    return _is_kept(catalog, name) and dataset.exists()


def _absolute(path: str | Path) -> Path:
    """Return an absolute path, without resolving links."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _check_writable(folder: Path) -> None:
    """Refuse a data folder that cannot be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise StudyError(
            f"{folder}: cannot be written ({there} is {'read-only' if there.is_dir() else 'a file'}"
            "); set HUSAI_DATA_DIR to another folder"
        )


def _plain(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return groups of parameters as plain JSON, without secrets."""
    values = {
        name: group.model_dump(mode="json") if isinstance(group, BaseModel) else group
        for name, group in groups.items()
    }
    plain: dict[str, Any] = json.loads(without_secrets(json.dumps(values, default=str)))
    return plain


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > LONG:  # paths differ at their ends
        value = f"…{value[-LONG:]}"
    return "none" if value is None else short_text(value, 2 * LONG)
