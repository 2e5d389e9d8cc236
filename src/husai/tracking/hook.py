"""MLflow tracking as a Kedro hook: nodes and library know nothing of it.

What a dataset means to MLflow stands beside it in the catalog, under ``metadata.mlflow``:

``kind: metrics``
    A flat or nested mapping: its numbers become metrics, its strings tags.
``kind: history``
    A table with a column named by ``step``: every numeric column becomes a metric's history.
``kind: table``, ``kind: figure``
    Logged as artifacts that the UI shows.
``kind: text``
    A page of Markdown, logged as an artifact too.
``kind: dataset``
    Logged as a dataset input with its version as digest.
``kind: model``
    A tensor file, logged without pickle as a model that the script named by ``code`` loads.
``kind: child_runs``
    Partitions of SAE files: each gets a run of its own below the session's run, with its
    configuration, metrics and history. ``runs`` names a file to which the runs' ids are written.

Training continues when the server is lost or refuses a record: see
:mod:`husai.tracking.recording`. The load of this machine is recorded during an outage too; that of
workers on other machines is not recorded at all. Beside its own metrics an SAE's run
has ``campaign.cost``, ``campaign.device_seconds`` and ``campaign.attempts``, and the session's run
has what the whole campaign took until then, earlier sessions and failures included.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kedro.framework.hooks import hook_impl
from pydantic import Field

from husai.config import Config
from husai.hooks.checks import StudyError
from husai.provenance import command_line, git_commit, without_secrets
from husai.storage import TensorFile
from husai.tracking.recording import (
    PROCESS_TAG,
    Recorder,
    end_abandoned,
    find_saes,
    flatten,
    is_away,
    this_process,
    use_credentials,
    what_it_said,
)
from husai.tracking.signals import exit_on_signals, restore_signals
from husai.tracking.sqlite import prepare_sqlite

if TYPE_CHECKING:
    import pandas as pd
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

logger = logging.getLogger(__name__)

TOTALS_SECONDS = 10.0
"""Least time between two records of the campaign's cost, since each reads the ledger."""

SAMPLING_SECONDS = 5.0
"""How often this machine's load is measured."""


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
    register_saes: Literal["none", "best", "all"] = Field(
        default="best",
        description="SAEs that become versions of a registered model, one model per group: none, "
        "the best of each group (lowest FVU), or all",
    )


class MlflowHook:
    """One MLflow run for every Kedro run, one child run for every SAE."""

    def __init__(self) -> None:
        self._tracking = TrackingConfig(enabled=False)
        self._project_path = Path()
        self._server: str | None = None
        self._recorder: Recorder | None = None
        self._catalog: DataCatalog | None = None
        self._run_id = ""
        self._experiment_id = ""
        self._load: _MachineLoad | None = None
        self._inputs_logged: set[str] = set()
        self._produced: set[str] = set()
        self._saes: dict[str, _KnownSAE] = {}
        self._ledgers: set[Path] = set()
        self._totals_logged: float | None = None

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
        if self._server:
            self._server = use_credentials(self._server)
            if variable is not None:
                os.environ[variable] = self._server
        self._project_path = Path(context.project_path)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Open the run and say what is being run."""
        if not self._tracking.enabled:
            return
        self._finish("KILLED")  # a run left open by an interrupted session in this process
        uri, artifacts = self._locations()
        spool = self._project_path / self._tracking.data_dir / "tracking_spool"
        recorder = Recorder(uri, spool.resolve())
        names = run_params.get("pipeline_names") or ["__default__"]
        name = "-".join(names).replace("__default__", "study")
        tags = {
            "kedro.run_id": str(run_params["run_id"]),
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
            self._experiment_id = self._experiment(recorder, artifacts)
            recorder.flush()  # what an earlier run could not send
            end_abandoned(recorder.client, self._experiment_id)
            run = recorder.client.create_run(self._experiment_id, tags=tags, run_name=name)
        except Exception as error:
            if not (self._server and is_away(error)):
                raise
            raise StudyError(
                f"the tracking server {recorder.address} {what_it_said(error)}; start it, give "
                "its credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN), or set enabled: false in "
                f"conf/{run_params['env'] or 'base'}/mlflow.yml"
            ) from error
        self._run_id = run.info.run_id
        self._recorder = recorder
        self._catalog = catalog
        self._produced = {name for node in pipeline.nodes for name in node.outputs}
        self._saes = {}
        self._ledgers = self._find_ledgers()
        self._totals_logged = None
        self._inputs_logged = set()
        groups = sorted(name for name in pipeline.inputs() if name.startswith("params:"))
        values = {name.removeprefix("params:"): catalog.load(name) for name in groups}
        recorder.do("params", self._run_id, values=_plain(dict(flatten(values))))
        self._log_environment()
        if self._tracking.system_metrics:
            self._load = _MachineLoad(recorder, self._run_id)
        logger.info("MLflow run %s in experiment %s", self._run_id, self._tracking.experiment)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Record which version of a dataset a run read."""
        if not self._open():
            return
        kind = self._kind(dataset_name).get("kind")
        if kind == "dataset":
            self._log_dataset(dataset_name, data, context="input")
        elif kind == "child_runs" and dataset_name in self._produced:
            self._complete_children(dataset_name, data)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log what a node gave, as the catalog's metadata says."""
        if not self._open():
            return
        options = self._kind(dataset_name)
        kind = options.get("kind")
        version = self._version(dataset_name)
        if version:
            self._do("tags", values={f"version.{dataset_name}": version})
        if kind == "metrics":
            self._log_values(data, options.get("prefix", dataset_name))
        elif kind == "history":
            self._log_history(data, options["step"], options.get("prefix", ""))
        elif kind == "table":
            content = data.to_json(orient="split", index=False, date_format="iso").encode()
            self._do("table", content, path=f"tables/{dataset_name}.json")
        elif kind == "figure":
            image = BytesIO()
            data.savefig(image, format="png")
            self._do("file", image.getvalue(), path=f"figures/{dataset_name}.png")
        elif kind == "text":
            self._do("file", data.encode(), path=f"{dataset_name}.md")
        elif kind == "dataset":
            self._log_dataset(dataset_name, data, context="output")
        elif kind == "model":
            self._do("model", data.to_bytes(), name=dataset_name, code=options["code"])
        elif kind == "child_runs":
            for partition, value in data.items():
                self._log_child(partition, value, options.get("runs"))
        elif kind is not None:
            raise ValueError(
                f"catalog entry '{dataset_name}': metadata.mlflow.kind: '{kind}' is not known"
            )

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Register the SAEs that were chosen, and close the run."""
        if self._open():
            self._register()
        self._finish("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the run as failed, with the traceback."""
        if self._open():
            text = without_secrets("".join(traceback.format_exception(error)))
            self._do("tags", values={"error": f"{type(error).__name__}: {error}"})
            self._do("file", text.encode(), path="traceback.txt")
        self._finish("FAILED")

    def _open(self) -> bool:
        return bool(self._run_id)

    def _do(self, operation: str, payload: bytes | None = None, /, **fields: Any) -> None:
        """Have something recorded of this session's run."""
        recorder = self._recorder
        if recorder is None:
            raise RuntimeError("no MLflow run is open")
        recorder.do(operation, self._run_id, payload, **fields)

    def _locations(self) -> tuple[str, str | None]:
        """Give the tracking URI and where a new experiment's artifacts go."""
        if self._server:
            return self._server, self._tracking.artifact_location
        # MLflow wants an absolute path; the catalog's paths are relative to the project
        folder = (self._project_path / self._tracking.data_dir).resolve()
        artifacts = self._tracking.artifact_location or (folder / "mlartifacts").as_uri()
        prepare_sqlite(folder / "mlflow.db", artifacts)
        return f"sqlite:///{folder / 'mlflow.db'}", artifacts

    def _experiment(self, recorder: Recorder, artifacts: str | None) -> str:
        experiment = recorder.client.get_experiment_by_name(self._tracking.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(recorder.client.create_experiment(self._tracking.experiment, artifacts))

    def _log_values(self, data: Any, prefix: str) -> None:
        points, tags = [], {}
        for name, value in flatten(data, prefix):
            if isinstance(value, int | float):
                points.append((name, float(value), 0))
            elif isinstance(value, str):
                tags[name] = value
        self._do("metrics", points=points, at=_now())
        if tags:
            self._do("tags", values=tags)

    def _log_history(self, table: pd.DataFrame, step: str, prefix: str) -> None:
        columns = table.drop(columns=step).select_dtypes("number").columns
        steps = table[step].astype(int).tolist()
        head = f"{prefix}." if prefix else ""
        points = [
            (f"{head}{column}", float(value), at)
            for column in columns
            for at, value in zip(steps, table[column].tolist(), strict=True)
        ]
        self._do("metrics", points=points, at=_now())

    def _log_dataset(self, name: str, data: Any, context: str) -> None:
        if name in self._inputs_logged:
            return
        import mlflow

        # advice on integer columns of a model's input, which a data set is not
        warnings.filterwarnings("ignore", message="Hint: Inferred schema")
        self._inputs_logged.add(name)
        if isinstance(data, TensorFile):
            entity = mlflow.data.from_numpy(
                next(iter(data.tensors.values())).numpy(), name=name, digest=self._digest(name)
            )
        else:
            entity = mlflow.data.from_pandas(data, name=name, digest=self._digest(name))
        self._do("dataset", dataset=dict(entity._to_mlflow_entity()), context=context)

    def _log_child(self, name: str, data: TensorFile, runs: str | None) -> None:
        """Give an SAE its own run below the session's."""
        self._do(
            "sae",
            data.to_bytes(),
            sae_id=name,
            experiment=self._experiment_id,
            runs=None if runs is None else str((self._project_path / runs).resolve()),
        )
        self._saes[name] = _KnownSAE(data.header)
        told = self._totals_logged
        if told is None or time.monotonic() - told > TOTALS_SECONDS:
            self._log_totals()

    def _find_ledgers(self) -> set[Path]:
        """Name the folders of the campaigns that this run carries out."""
        found = set()
        for name in self._produced:
            options = self._kind(name)
            if options.get("kind") == "child_runs" and options.get("runs"):
                found.add((self._project_path / options["runs"]).resolve().parent)
        return found

    def _log_totals(self) -> None:
        """Say what the campaign has taken: all its sessions, and what failed without a file."""
        from husai.campaign import read_ledger

        statuses: dict[str, str] = {}
        took: dict[str, tuple[float, float]] = {}
        for folder in self._ledgers:
            table = read_ledger(folder)
            ids = table["sae_id"].tolist()
            statuses |= zip(ids, table["status"].tolist(), strict=True)
            costs = zip(table["cost"].tolist(), table["seconds"].tolist(), strict=True)
            took |= zip(ids, costs, strict=True)
        # the ledger gets an SAE once it is saved and recorded: its file may know more
        for name, sae in self._saes.items():
            statuses[name] = "failed" if sae.failed else "done"
            known = took.get(name, (0.0, 0.0))
            took[name] = (max(known[0], sae.took[0]), max(known[1], sae.took[1]))
        if not statuses:
            return
        self._totals_logged = time.monotonic()
        n_done, n_failed = (list(statuses.values()).count(kind) for kind in ("done", "failed"))
        totals = {
            "cost": sum(cost for cost, _ in took.values()),
            "device_seconds": sum(seconds for _, seconds in took.values()),
            "saes": n_done,
            "failed": n_failed,
        }
        points = [(f"campaign.{k}", float(total), n_done + n_failed) for k, total in totals.items()]
        self._do("metrics", points=points, at=_now())

    def _complete_children(self, dataset_name: str, partitions: Mapping[str, Any]) -> None:
        """Log the planned SAEs that have no run: trained without tracking, or not recorded.

        A driver that is killed between saving an SAE and logging it leaves such ones. Those of
        interrupted sessions come below this one.
        """
        assert self._catalog is not None
        assert self._recorder is not None
        planned = getattr(self._catalog.get(dataset_name), "planned", lambda: list(partitions))()
        unknown = [name for name in planned if name in partitions and name not in self._saes]
        if not unknown:
            return
        runs = self._kind(dataset_name).get("runs")
        try:
            known = find_saes(self._recorder.client, self._experiment_id)
        except Exception as error:
            # each is looked for again when it is logged
            logger.warning("the SAEs' runs could not be looked for: %s", error)
            known = {}
        from husai.campaign.store import identity

        for name in unknown:
            data = partitions[name]()
            run = known.get((name, identity(data.header)))
            if run is None or run.info.status not in ("FINISHED", "FAILED"):
                self._log_child(name, data, runs)
                continue
            self._saes[name] = _KnownSAE(data.header)
            self._do("adopt", child=run.info.run_id)

    def _register(self) -> None:
        """Make versions of registered models of the SAEs that this session knows."""
        if self._tracking.register_saes == "none" or not self._saes:
            return
        best: dict[str, str] = {}
        for name, sae in self._saes.items():
            held = best.get(sae.group)
            if held is None or sae.fvu < self._saes[held].fvu:
                best[sae.group] = name
        chosen = list(self._saes) if self._tracking.register_saes == "all" else best.values()
        for name in chosen:
            sae = self._saes[name]
            if sae.fvu == float("inf"):
                continue
            self._do(
                "register",
                sae_id=name,
                identity=sae.identity,
                experiment=self._experiment_id,
                model=f"husai {sae.group}".replace(" ", "-"),
            )

    def _log_environment(self) -> None:
        packages = sorted(
            {f"{item.name}=={item.version}" for item in metadata.distributions() if item.name},
            key=str.lower,
        )
        text = f"python=={platform.python_version()}\n" + "\n".join(packages) + "\n"
        self._do("file", text.encode(), path="environment.txt")

    def _finish(self, status: str) -> None:
        if self._load is not None:
            self._load.stop()
            self._load = None
        if self._open() and self._recorder is not None:
            try:
                self._log_totals()
            except Exception as error:  # the ledger is not ours: any error in it
                logger.warning("what the campaign took could not be read: %s", error)
            self._recorder.do("end", self._run_id, status=status, at=_now())
            self._recorder.close()
        self._run_id = ""
        self._recorder = None
        self._catalog = None
        atexit.unregister(self._finish)
        restore_signals()

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


class _KnownSAE:
    """Facts of an SAE that the session needs after its file has left memory."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        from husai.campaign.store import identity

        about: Mapping[str, Any] = header["provenance"].get("campaign") or {}
        self.took = float(about.get("cost") or 0.0), float(about.get("device_seconds") or 0.0)
        self.failed = bool(header.get("failure"))
        self.identity = identity(header)
        config = header["config"]
        self.group = str(about.get("group", f"{config['architecture']} d{config['d_sae']}"))
        fvu = header["metrics"].get("fvu")
        self.fvu = float("inf") if fvu is None or self.failed else float(fvu)


class _MachineLoad:
    """Measures this machine's load in a thread, as MLflow names it, until it is stopped.

    MLflow's own thread ends for good when the server does not answer; here what was measured
    then waits with everything else.

    Parameters
    ----------
    recorder, run_id
        Where it is recorded.
    """

    def __init__(self, recorder: Recorder, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # never started: it knows what there is to measure, and what a user wants of it
        self._sensors = SystemMetricsMonitor(
            run_id, sampling_interval=SAMPLING_SECONDS, tracking_uri=recorder.uri
        )
        self._recorder = recorder
        self._run_id = run_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True, name="husai load")
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _measure(self) -> None:
        step = 0
        while not self._ended.is_set():
            try:
                self._sensors.collect_metrics()
                self._ended.wait(self._sensors.sampling_interval)
                measured = self._sensors.aggregate_metrics()
                for sensor in self._sensors.monitors:
                    sensor.clear_metrics()
            except Exception as error:
                logger.warning("the load of this machine is not measured: %s", error)
                return
            points = [(f"system/{name}", float(value), step) for name, value in measured.items()]
            if not self._recorder.do("metrics", self._run_id, points=points, at=_now()):
                return  # its run is not there any more
            step += 1


def _now() -> int:
    return int(time.time() * 1000)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give values as JSON has them, so that they can wait on disk."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain
