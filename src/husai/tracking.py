"""MLflow tracking as a Kedro hook: nodes and library know nothing of it.

What a dataset means to MLflow stands beside it in the catalog, under ``metadata.mlflow``:

``kind: metrics``
    A flat or nested mapping: its numbers become metrics, its strings tags.
``kind: history``
    A table with a column named by ``step``: every numeric column becomes a metric's history.
``kind: table``, ``kind: figure``
    Logged as artifacts that the UI shows.
``kind: text``
    A page of Markdown, likewise.
``kind: dataset``
    Logged as a dataset input with its version as digest.
``kind: model``
    A tensor file, logged without pickle as a model that the script named by ``code`` loads.
``kind: child_runs``
    Partitions of SAE files: each gets a run of its own below the session's run, with its
    configuration, metrics and history.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import platform
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from pydantic import Field

from husai.checks import StudyError
from husai.config import Config
from husai.provenance import git_commit
from husai.storage import TensorFile

if TYPE_CHECKING:
    import pandas as pd
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# MLflow's own limits for one log_batch call and for a parameter's value
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
PARENT_TAG = "mlflow.parentRunId"


class TrackingConfig(Config):
    """Where and how runs are tracked (``conf/<env>/mlflow.yml``)."""

    enabled: bool = Field(default=True, description="off: nothing is tracked")
    tracking_uri: str | None = Field(
        default=None, description="a server's URI; None: a SQLite file in data_dir"
    )
    tracking_uri_variable: str | None = Field(
        default=None, description="environment variable that holds the server's URI"
    )
    artifact_location: str | None = Field(
        default=None, description="where artifacts go; None: beside the SQLite file"
    )
    data_dir: str = Field(default="data", description="folder of the SQLite file and artifacts")
    experiment: str = Field(default="husai", min_length=1, description="experiment of all runs")
    system_metrics: bool = Field(default=True, description="log CPU, memory and GPU load")


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and models with dotted names."""
    if hasattr(values, "model_dump"):
        values = values.model_dump(mode="json")
    if isinstance(values, Mapping):
        if not values and prefix:
            yield prefix, "{}"
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


class MlflowHook:
    """One MLflow run for every Kedro run, one child run for every SAE."""

    def __init__(self) -> None:
        self._tracking = TrackingConfig(enabled=False)
        self._project_path = Path()
        self._server: str | None = None
        self._client: MlflowClient | None = None
        self._catalog: DataCatalog | None = None
        self._run_id = ""
        self._experiment_id = ""
        self._monitor: Any = None
        self._inputs_logged: set[str] = set()

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
                    f"environment variable {variable} is not set: runs of this environment are "
                    "tracked on a server, give its address, for example http://127.0.0.1:5000"
                )
        self._project_path = Path(context.project_path)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the run and say what is being run."""
        if not self._tracking.enabled:
            return
        from mlflow import MlflowClient

        self._finish("KILLED")  # a run left open by an interrupted session in this process
        uri, artifacts = self._locations()
        self._client = MlflowClient(tracking_uri=uri)
        self._catalog = catalog
        self._experiment_id = self._experiment(artifacts)
        names = run_params.get("pipeline_names") or ["__default__"]
        name = "-".join(names).replace("__default__", "study")
        tags = {
            "kedro.run_id": str(run_params["run_id"]),
            "kedro.env": str(run_params["env"] or "base"),
            "kedro.pipeline": ",".join(names),
            "kedro.version": str(run_params["kedro_version"]),
            "husai.version": metadata.version("husai"),
            "mlflow.user": os.environ.get("USER", "unknown"),
            "mlflow.source.name": f"kedro run --pipeline={names[0]}",
            "mlflow.source.type": "PROJECT",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        }
        git = git_commit(self._project_path)
        if git:
            tags |= {
                "mlflow.source.git.commit": str(git["commit"]),
                "git.dirty": str(git["dirty"]).lower(),
            }
        run = self._client.create_run(self._experiment_id, tags=tags, run_name=name)
        self._run_id = run.info.run_id
        self._inputs_logged = set()
        atexit.register(self._finish, "KILLED")
        groups = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
        values = {name.removeprefix("params:"): catalog.load(name) for name in groups}
        self._log_params(self._run_id, dict(flatten(values)))
        self._log_environment()
        if self._tracking.system_metrics:
            self._start_system_metrics(uri)
        logger.info("MLflow run %s in experiment %s", self._run_id, self._tracking.experiment)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Record which version of a dataset a run read."""
        if self._open() and self._kind(dataset_name).get("kind") == "dataset":
            self._log_dataset(dataset_name, data, context="input")

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log what a node gave, as the catalog's metadata says."""
        if not self._open():
            return
        options = self._kind(dataset_name)
        kind = options.get("kind")
        version = self._version(dataset_name)
        if version:
            self._client_().set_tag(self._run_id, f"version.{dataset_name}", version)
        if kind == "metrics":
            self._log_values(self._run_id, data, options.get("prefix", dataset_name))
        elif kind == "history":
            self._log_history(self._run_id, data, options["step"], options.get("prefix", ""))
        elif kind == "table":
            self._client_().log_table(self._run_id, data, f"tables/{dataset_name}.json")
        elif kind == "figure":
            self._client_().log_figure(self._run_id, data, f"figures/{dataset_name}.png")
        elif kind == "text":
            self._client_().log_text(self._run_id, data, f"{dataset_name}.md")
        elif kind == "dataset":
            self._log_dataset(dataset_name, data, context="output")
        elif kind == "model":
            self._log_model(dataset_name, data, options["code"])
        elif kind == "child_runs":
            for partition, value in data.items():
                self._log_child(partition, value)
        elif kind is not None:
            raise ValueError(f"catalog entry '{dataset_name}': metadata.mlflow.kind '{kind}'?")

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Close the run."""
        self._finish("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the run as failed, with the traceback."""
        if self._open():
            text = "".join(traceback.format_exception(error))
            self._client_().set_tag(self._run_id, "error", f"{type(error).__name__}: {error}"[:500])
            self._client_().log_text(self._run_id, text, "traceback.txt")
        self._finish("FAILED")

    def _open(self) -> bool:
        return bool(self._run_id)

    def _client_(self) -> MlflowClient:
        if self._client is None:
            raise RuntimeError("no MLflow run is open")
        return self._client

    def _locations(self) -> tuple[str, str | None]:
        """Give the tracking URI and where a new experiment's artifacts go."""
        if self._server:
            return self._server, self._tracking.artifact_location
        # MLflow wants an absolute path; the catalog's paths are relative to the project
        folder = (self._project_path / self._tracking.data_dir).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = self._tracking.artifact_location or (folder / "mlartifacts").as_uri()
        return f"sqlite:///{folder / 'mlflow.db'}", artifacts

    def _experiment(self, artifacts: str | None) -> str:
        client = self._client_()
        experiment = client.get_experiment_by_name(self._tracking.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(client.create_experiment(self._tracking.experiment, artifacts))

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = []
        for name, value in values.items():
            text = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
            params.append(Param(name, text[:MAX_PARAM_LENGTH]))
        for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
            batch = params[start : start + MAX_PARAMS_PER_BATCH]
            self._client_().log_batch(run_id, params=batch)

    def _log_metrics(self, run_id: str, rows: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # MLflow stores NaN but cannot draw it
        metrics = [
            Metric(key, value, now, step) for key, value, step in rows if math.isfinite(value)
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            batch = metrics[start : start + MAX_METRICS_PER_BATCH]
            self._client_().log_batch(run_id, metrics=batch)

    def _log_values(self, run_id: str, data: Any, prefix: str) -> None:
        rows = []
        for name, value in flatten(data, prefix):
            if isinstance(value, int | float):
                rows.append((name, float(value), 0))
            elif isinstance(value, str):
                self._client_().set_tag(run_id, name, value[:500])
        self._log_metrics(run_id, rows)

    def _log_history(self, run_id: str, table: pd.DataFrame, step: str, prefix: str) -> None:
        columns = table.drop(columns=step).select_dtypes("number").columns
        steps = table[step].astype(int).tolist()
        head = f"{prefix}." if prefix else ""
        self._log_metrics(
            run_id,
            [
                (f"{head}{column}", float(value), at)
                for column in columns
                for at, value in zip(steps, table[column].tolist(), strict=True)
            ],
        )

    def _log_dataset(self, name: str, data: Any, context: str) -> None:
        if name in self._inputs_logged:
            return
        import mlflow
        from mlflow.entities import DatasetInput, InputTag

        # advice on integer columns of a model's input, which a data set is not
        warnings.filterwarnings("ignore", message="Hint: Inferred schema")
        self._inputs_logged.add(name)
        if isinstance(data, TensorFile):
            entity = mlflow.data.from_numpy(
                next(iter(data.tensors.values())).numpy(), name=name, digest=self._digest(name)
            )
        else:
            entity = mlflow.data.from_pandas(data, name=name, digest=self._digest(name))
        self._client_().log_inputs(
            self._run_id,
            [DatasetInput(entity._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])],
        )

    def _log_model(self, name: str, data: TensorFile, code: str) -> None:
        import mlflow
        from mlflow.models import Model

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            weights = Path(folder) / f"{name}.safetensors"
            weights.write_bytes(data.to_bytes())
            uri = mlflow.get_tracking_uri()
            mlflow.set_tracking_uri(self._locations()[0])
            try:
                # its advice is on type hints and examples; a signature is given
                warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")
                model = self._client_().create_logged_model(
                    self._experiment_id, name=name, source_run_id=self._run_id
                )
                Model.log(
                    artifact_path=None,
                    model_id=model.model_id,
                    name=name,
                    flavor=mlflow.pyfunc,
                    run_id=self._run_id,
                    python_model=str(Path(__file__).parent / code),
                    artifacts={"weights": str(weights)},
                    signature=_tokens_signature(),
                    pip_requirements=[f"husai=={metadata.version('husai')}"],
                )
            finally:
                mlflow.set_tracking_uri(uri)

    def _log_child(self, name: str, data: TensorFile) -> None:
        """Give a SAE its own run below the session's."""
        from husai.sae import from_tensors

        client = self._client_()
        header = data.header
        sae = from_tensors(data.tensors, header, name)
        tags = {PARENT_TAG: self._run_id, "husai.sae_id": name, "mlflow.user": "husai"}
        for key in ("architecture", "d_sae", "init_seed", "data_seed", "k"):
            if header["config"].get(key) is not None:
                tags[f"sae.{key}"] = str(header["config"][key])
        # the time it was trained, so that the UI's duration column says something
        end = int(time.time() * 1000)
        seconds = sae.metrics.get("train_seconds", 0.0)
        run = client.create_run(
            self._experiment_id, start_time=end - int(1000 * seconds), tags=tags, run_name=name
        )
        child = run.info.run_id
        self._log_params(child, dict(flatten(header["config"])))
        self._log_values(child, sae.metrics, "")
        if len(sae.history):
            self._log_history(child, sae.history, "step", "training")
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / f"{name}.safetensors"
            weights.write_bytes(data.to_bytes())
            client.log_artifact(child, str(weights), "weights")
        if sae.failure:
            client.set_tag(child, "error", sae.failure[:500])
        client.set_terminated(child, "FAILED" if sae.failure else "FINISHED", end_time=end)

    def _log_environment(self) -> None:
        packages = sorted(
            {f"{item.name}=={item.version}" for item in metadata.distributions() if item.name},
            key=str.lower,
        )
        text = f"python=={platform.python_version()}\n" + "\n".join(packages) + "\n"
        self._client_().log_text(self._run_id, text, "environment.txt")

    def _start_system_metrics(self, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self._run_id, sampling_interval=5, tracking_uri=uri)
        self._monitor.start()

    def _finish(self, status: str) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if self._open():
            self._client_().set_terminated(self._run_id, status)
        self._run_id = ""
        self._client = None
        self._catalog = None
        atexit.unregister(self._finish)

    def _kind(self, dataset_name: str) -> dict[str, Any]:
        if self._catalog is None or dataset_name.startswith("params:"):
            return {}
        dataset = self._catalog.get(dataset_name)
        options: dict[str, Any] = (getattr(dataset, "metadata", None) or {}).get("mlflow", {})
        return options

    def _version(self, dataset_name: str) -> str:
        dataset = self._catalog.get(dataset_name) if self._catalog is not None else None
        resolve = getattr(dataset, "resolve_load_version", None)
        if resolve is None or getattr(dataset, "_version", None) is None:
            return ""
        return str(resolve() or "")

    def _digest(self, dataset_name: str) -> str | None:
        # MLflow's column for it is narrow; Kedro's versions are timestamps
        version = self._version(dataset_name)
        return "".join(ch for ch in version if ch.isalnum())[:36] or None


def _tokens_signature() -> Any:
    """Integer tokens in, one row an input; logits out."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.int64), (-1, -1))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
    )
