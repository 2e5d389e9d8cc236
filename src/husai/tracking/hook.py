"""MLflow tracking as a Kedro hook; nodes and library do not use MLflow.

The catalog says for each dataset how it is logged, under ``metadata.mlflow``:

``kind: metrics``
    A flat or nested mapping: its numbers become metrics, its strings tags; with ``names`` only
    those of these names.
``kind: history``
    A table: every numeric column becomes the history of a metric, by the column named ``step``.
``kind: table``, ``kind: figure``
    Logged as artifacts that the UI shows.
``kind: groups``
    The table of groups: an artifact; its means over groups are metrics.
``kind: text``, ``kind: html``
    A page of Markdown or HTML, logged as an artifact too; MLflow opens HTML.
``kind: description``
    A sentence that becomes the run's description.
``kind: dataset``
    Logged as a dataset input with its version as digest.
``kind: model``
    A tensor file, logged without pickle as a model that the script named by ``code`` loads.
``kind: child_runs``
    Partitions of SAE files: each SAE gets a child run of the session's run, with its settings as
    parameters, its metrics and its history. ``files``, ``runs`` and ``activations`` are the paths
    of the files, of the list of their runs, and of the activations.
``kind: sae_results``
    The table of features: the results about each SAE are added to its run. ``saes`` is the name
    of the dataset of the SAEs.

Training continues when the server is away or refuses a record: see
:mod:`husai.tracking.recorder`. The load of this machine is recorded during an outage too; that of
workers on other machines is not recorded. An SAE's run also has the metrics ``campaign.cost``,
``campaign.device_seconds`` and ``campaign.attempts``, and the session's run has the totals of the
whole campaign until then, earlier sessions and failures included.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import traceback
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from husai.config import flatten
from husai.hooks.checks import StudyError
from husai.processes import this_process
from husai.progress import heartbeat
from husai.provenance import command_line, git_commit, without_secrets
from husai.storage import TensorFile
from husai.tracking.config import TrackingConfig
from husai.tracking.load import MachineLoad
from husai.tracking.processes import PROCESS_TAG, end_abandoned
from husai.tracking.recorder import Recorder, now
from husai.tracking.servers import is_away, use_credentials, what_it_said
from husai.tracking.session import TrackedRun
from husai.tracking.signals import exit_on_signals, restore_signals
from husai.tracking.sqlite import prepare_sqlite
from husai.tracking.studies import STUDY_TAG
from husai.tracking.study_saes import SAEFolders, StudySAEs, permuted_scores, study_metrics

if TYPE_CHECKING:
    import pandas as pd
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

logger = logging.getLogger(__name__)


class MlflowHook:
    """One MLflow run for every Kedro run, one child run for every SAE."""

    def __init__(self) -> None:
        self._tracking = TrackingConfig(enabled=False)
        self._project_path = Path()
        self._study = ""
        self._server: str | None = None
        self._catalog: DataCatalog | None = None
        self._run: TrackedRun | None = None
        self._saes: StudySAEs | None = None
        self._chance: dict[str, float] = {}  # null by group; groups are saved before features
        self._load: MachineLoad | None = None
        self._inputs_logged: set[str] = set()
        self._produced: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the tracking configuration of the environment."""
        self._tracking = TrackingConfig.model_validate(context.config_loader["mlflow"])
        self._server = self._tracking.tracking_uri
        variable = self._tracking.tracking_uri_variable
        if self._tracking.enabled and variable is not None:
            self._server = os.environ.get(variable)
            if not self._server:
                raise StudyError(
                    f"environment variable {variable} is not set; set it to the address of the "
                    "tracking server of this environment, for example http://127.0.0.1:5000"
                )
        if self._server:
            self._server = use_credentials(self._server)
            if variable is not None:
                os.environ[variable] = self._server
        self._project_path = Path(context.project_path)
        self._study = str(context.config_loader["parameters"]["campaign"]["name"])

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the run, and record its parameters and environment."""
        if not self._tracking.enabled:
            return
        self._finish("KILLED")  # a run left open by an interrupted session in this process
        with heartbeat("opening the record of runs"):  # a new database takes MLflow seconds
            uri, artifacts = self._locations()
        spool = self._project_path / self._tracking.data_dir / "tracking_spool"
        recorder = Recorder(uri, spool.resolve())
        names = run_params.get("pipeline_names") or ["__default__"]
        name = "-".join(names).replace("__default__", "study")
        tags = {
            "kedro.run_id": str(run_params["run_id"]),
            STUDY_TAG: self._study,
            "kedro.env": str(run_params["env"] or "base"),
            "kedro.pipeline": ",".join(names),
            "kedro.version": str(run_params["kedro_version"]),
            "husai.version": metadata.version("husai"),
            PROCESS_TAG: this_process(),
            "mlflow.user": os.environ.get("USER", "unknown"),
            "mlflow.source.name": command_line(),
            "mlflow.source.type": "PROJECT",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        }
        git = git_commit(self._project_path)
        exit_on_signals()
        atexit.register(self._finish, "KILLED")
        if git:
            tags |= {
                "mlflow.source.git.commit": str(git["commit"]),
                "git.dirty": str(git["dirty"]).lower(),
            }
        try:
            experiment = self._experiment(recorder, artifacts)
            recorder.flush()  # what an earlier run could not send
            end_abandoned(recorder.client, experiment)
            run = recorder.client.create_run(experiment, tags=tags, run_name=name)
        except Exception as error:
            if not (self._server and is_away(error)):
                raise
            raise StudyError(
                f"the tracking server {recorder.address} {what_it_said(error)}; start it, give "
                "its credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN), or set enabled: false in "
                f"conf/{run_params['env'] or 'base'}/mlflow.yml"
            ) from error
        self._run = TrackedRun(recorder, run.info.run_id, experiment)
        self._catalog = catalog
        self._produced = {name for node in pipeline.nodes for name in node.outputs}
        self._saes = StudySAEs(self._run)
        for dataset in sorted(self._produced):
            options = self._options(dataset)
            if options.get("kind") == "child_runs":
                self._saes.follow(self._folders(options))
        self._inputs_logged = set()
        groups = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
        values = {name.removeprefix("params:"): catalog.load(name) for name in groups}
        self._run.do("params", values=_plain(dict(flatten(values))))
        self._log_environment(self._run)
        if self._tracking.system_metrics:
            self._load = MachineLoad(self._run)
        logger.info("MLflow run %s in experiment %s", self._run.id, self._tracking.experiment)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Record the version of a dataset that the run read, and complete the SAEs' runs."""
        if self._run is None or self._saes is None:
            return
        options = self._options(dataset_name)
        if options.get("kind") == "dataset":
            self._log_dataset(self._run, dataset_name, data, context="input")
        elif options.get("kind") == "child_runs" and dataset_name in self._produced:
            assert self._catalog is not None
            dataset = self._catalog.get(dataset_name)
            planned = getattr(dataset, "planned", lambda: list(data))()
            self._saes.complete(planned, data, self._folders(options))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log the output of a node as the catalog's metadata says."""
        run, saes = self._run, self._saes
        if run is None or saes is None:
            return
        options = self._options(dataset_name)
        version = self._version(dataset_name)
        if version:
            run.do("tags", values={f"version.{dataset_name}": version})
        match options.get("kind"):
            case None:
                pass
            case "metrics":
                _log_values(run, data, options)
            case "history":
                _log_history(run, data, options["step"], options.get("prefix", ""))
            case "table":
                _log_table(run, dataset_name, data)
            case "groups":
                _log_table(run, dataset_name, data)
                _log_values(run, study_metrics(data), options)
                self._chance = permuted_scores(data)
            case "figure":
                run.do("file", self._image(dataset_name), path=f"figures/{dataset_name}.png")
            case "text":
                run.do("file", data.encode(), path=f"{dataset_name}.md")
            case "description":
                run.do("tags", values={"mlflow.note.content": data})
            case "html":
                run.do("file", data.encode(), path=f"{dataset_name}.html")
            case "dataset":
                self._log_dataset(run, dataset_name, data, context="output")
            case "model":
                run.do("model", data.to_bytes(), name=dataset_name, code=options["code"])
            case "child_runs":
                for sae_id, file in data.items():
                    saes.log(sae_id, file.header, self._folders(options))
            case "sae_results":
                assert self._catalog is not None
                label_f1 = self._catalog.load("params:consistency").label_f1
                folders = self._folders(self._options(options["saes"]))
                saes.log_found(data, folders, label_f1, self._chance)
            case kind:
                raise ValueError(
                    f"catalog entry '{dataset_name}': metadata.mlflow.kind: '{kind}' is not known"
                )

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Register the chosen SAEs as models, and close the run."""
        if self._saes is not None:
            self._saes.register(self._tracking.register_saes)
        self._finish("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the run as failed, with the traceback."""
        if self._run is not None:
            text = without_secrets("".join(traceback.format_exception(error)))
            self._run.do("tags", values={"error": f"{type(error).__name__}: {error}"})
            self._run.do("file", text.encode(), path="traceback.txt")
        self._finish("FAILED")

    def _locations(self) -> tuple[str, str | None]:
        """Return the tracking URI, and the location of a new experiment's artifacts."""
        if self._server:
            return self._server, self._tracking.artifact_location
        # MLflow wants an absolute path; the catalog's paths are relative to the project
        folder = (self._project_path / self._tracking.data_dir).resolve()
        artifacts = self._tracking.artifact_location or (folder / "mlartifacts").as_uri()
        prepare_sqlite(folder / "mlflow.db", artifacts)
        return f"sqlite:///{folder / 'mlflow.db'}", artifacts

    def _experiment(self, recorder: Recorder, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        name = self._tracking.experiment
        experiment = recorder.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(recorder.client.create_experiment(name, artifacts))
            except MlflowException:
                # another user's first run may have made it in the meantime
                experiment = recorder.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _image(self, dataset_name: str) -> bytes:
        """Read the file of a figure that the catalog has just written."""
        assert self._catalog is not None
        dataset: Any = self._catalog.get(dataset_name)
        with dataset._fs.open(str(dataset._get_load_path()), "rb") as file:
            return bytes(file.read())

    def _log_dataset(self, run: TrackedRun, name: str, data: Any, context: str) -> None:
        if name in self._inputs_logged:
            return
        import mlflow

        # the hint is about integer columns in the input of a model, which this is not
        warnings.filterwarnings("ignore", message="Hint: Inferred schema")
        self._inputs_logged.add(name)
        if isinstance(data, TensorFile):
            entity = mlflow.data.from_numpy(
                next(iter(data.tensors.values())).numpy(), name=name, digest=self._digest(name)
            )
        else:
            entity = mlflow.data.from_pandas(data, name=name, digest=self._digest(name))
        run.do("dataset", dataset=dict(entity._to_mlflow_entity()), context=context)

    def _log_environment(self, run: TrackedRun) -> None:
        packages = sorted(
            {f"{item.name}=={item.version}" for item in metadata.distributions() if item.name},
            key=str.lower,
        )
        text = f"python=={platform.python_version()}\n" + "\n".join(packages) + "\n"
        run.do("file", text.encode(), path="environment.txt")

    def _finish(self, status: str) -> None:
        if self._load is not None:
            self._load.stop()
            self._load = None
        if self._run is not None and self._saes is not None:
            try:
                self._saes.log_totals()
            except Exception as error:  # the ledger's file may have any error
                logger.warning("the totals of the campaign could not be read: %s", error)
            self._run.do("end", status=status, at=now())
            self._run.recorder.close()
        self._run = None
        self._saes = None
        self._catalog = None
        atexit.unregister(self._finish)
        restore_signals()

    def _options(self, dataset_name: str) -> dict[str, Any]:
        """Return a dataset's ``metadata.mlflow`` in the catalog; empty without one."""
        if self._catalog is None or dataset_name.startswith("params:"):
            return {}
        dataset = self._catalog.get(dataset_name)
        options: dict[str, Any] = (getattr(dataset, "metadata", None) or {}).get("mlflow", {})
        return options

    def _folders(self, options: Mapping[str, Any]) -> SAEFolders:
        return SAEFolders.of(self._project_path, options)

    def _version(self, dataset_name: str) -> str:
        dataset = self._catalog.get(dataset_name) if self._catalog is not None else None
        resolve = getattr(dataset, "resolve_load_version", None)
        if resolve is None or getattr(dataset, "_version", None) is None:
            return ""
        return str(resolve() or "")

    def _digest(self, dataset_name: str) -> str | None:
        # MLflow allows 36 characters; Kedro's versions are timestamps
        version = self._version(dataset_name)
        return "".join(ch for ch in version if ch.isalnum())[:36] or None


def _log_values(run: TrackedRun, data: Any, options: Mapping[str, Any]) -> None:
    """Log a mapping's numbers as metrics and its strings as tags, all or those of ``names``."""
    prefix, names = options.get("prefix", ""), options.get("names")
    points, tags = [], {}
    for name, value in flatten(data):
        if names is not None and name not in names:
            continue
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(value, int | float):
            points.append((full, float(value), 0))
        elif isinstance(value, str):
            tags[full] = value
    run.do("metrics", points=points, at=now())
    if tags:
        run.do("tags", values=tags)


def _log_history(run: TrackedRun, table: pd.DataFrame, step: str, prefix: str) -> None:
    columns = table.drop(columns=step).select_dtypes("number").columns
    steps = table[step].astype(int).tolist()
    head = f"{prefix}." if prefix else ""
    points = [
        (f"{head}{column}", float(value), at)
        for column in columns
        for at, value in zip(steps, table[column].tolist(), strict=True)
    ]
    run.do("metrics", points=points, at=now())


def _log_table(run: TrackedRun, name: str, table: pd.DataFrame) -> None:
    content = table.to_json(orient="split", index=False, date_format="iso").encode()
    run.do("table", content, path=f"tables/{name}.json")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as plain JSON, so that they can be kept on disk."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
