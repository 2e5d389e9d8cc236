"""Records for MLflow, as operations that can wait on disk while its server is away.

Every operation is plain data and may be carried out again: parameters are the same, metrics
carry the time at which they were measured, an SAE's run is found again by its tags. So what a lost
server did not take is written to a folder and carried out, in order, when it is back; in this
session or in the next one. What a server answers that it will never take is put aside beside it,
in ``rejected.jsonl``: neither stops what is being recorded.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import platform
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from husai.provenance import without_secrets
from husai.storage import TensorFile, append_line, atomic_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# MLflow's own limits for one log_batch call and for a parameter's value
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 500

RETRY_SECONDS = 10.0
"""Time after which a server that did not answer is tried again."""

# these pass: the server is starting, is overloaded, or lacks our credentials
PASSING_STATUSES = frozenset({401, 403, 408, 429})
PASSING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE})

SAME_PROCESS_SECONDS = 60.0
"""Processes with one id whose starts differ by more are different; clocks may be corrected."""

# by default MLflow waits minutes for a server that does not answer, and training with it; and it
# draws a bar for every file
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

PARENT_TAG = "mlflow.parentRunId"
ID_TAG, IDENTITY_TAG = "husai.sae_id", "husai.identity"
PROCESS_TAG = "husai.process"
COSTS = ("cost", "device_seconds", "attempts", "peak_bytes")
"""Costs stated in an SAE's file; each becomes a metric ``campaign.NAME`` of its run."""
PACKAGE = Path(__file__).parent


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


def hide_secrets(values: Any) -> Any:
    """Apply :func:`husai.provenance.without_secrets` to every string in nested data."""
    if isinstance(values, str):
        return without_secrets(values)
    if isinstance(values, Mapping):
        return {name: hide_secrets(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [hide_secrets(value) for value in values]
    return values


def use_credentials(uri: str) -> str:
    """Move user and password from the address of an HTTP server to MLflow's variables for them.

    So the address, which messages and files repeat, does not hold them any more.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        if value:
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def http_status(error: BaseException) -> int | None:
    """Give the HTTP status that an error of MLflow's client stands for, None for no answer."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return None if error.response is None else int(error.response.status_code)
    if not isinstance(error, MlflowException):
        return None
    if isinstance(error, RestException):
        # some servers give the status where MLflow's own name of it belongs
        code = str(error.json.get("error_code", ""))
        return int(code) if code.isdigit() else int(error.get_http_status_code())
    status_text = re.match(r"API request to endpoint .* failed with error code (\d+)", str(error))
    if status_text:
        return int(status_text[1])
    # raised by the client without a reason: not an answer of the store
    return None if error.error_code == "INTERNAL_ERROR" else int(error.get_http_status_code())


def is_away(error: BaseException | None) -> bool:
    """Whether an error says that the store is away, and not that it was asked the wrong thing."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    while error is not None:
        status = http_status(error)
        if status is not None:
            return status in PASSING_STATUSES or status >= 500
        if isinstance(error, RequestException | ConnectionError | TimeoutError | OperationalError):
            return True
        if isinstance(error, OSError) and error.errno in PASSING_ERRORS:
            return True
        # MLflow's words for having got no answer, or none that it understands
        if isinstance(error, MlflowException) and str(error).startswith("API request to"):
            return True
        error = error.__cause__ or error.__context__
    return False


def what_it_said(error: BaseException | None) -> str:
    """Say in a few words what a store that is away did: ``answers 401`` or ``does not answer``."""
    while error is not None:
        status = http_status(error)
        if status is not None:
            return f"answers {status}"
        error = error.__cause__ or error.__context__
    return "does not answer"


class Recorder:
    """Carries operations out, or keeps them until they can be. Several threads may use it.

    Parameters
    ----------
    uri
        Of the tracking store.
    spool
        Folder of what could not be carried out: ``operations.jsonl`` waits for a store that is
        away, ``rejected.jsonl`` is what a store would not take.
    """

    def __init__(self, uri: str, spool: Path) -> None:
        from mlflow import MlflowClient

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.uri = uri
        self.address = without_secrets(uri)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._spool = spool
        self._journal = spool / "operations.jsonl"
        self._rejected = spool / "rejected.jsonl"
        self._away_since: float | None = None
        self._warned = ""
        self._one_at_a_time = threading.RLock()

    def do(self, name: str, run_id: str, payload: bytes | None = None, /, **fields: Any) -> bool:
        """Carry an operation of :data:`OPERATIONS` out, now or when the server is back.

        An error of the store is never raised: no record is worth losing a training.

        Returns
        -------
        bool
            False when the operation was lost, or put aside because no store would ever accept it.
        """
        if name != "metrics":  # numbers
            fields = hide_secrets(fields)
        operation = {"uri": self.address, "name": name, "run_id": run_id, "fields": fields}
        with self._one_at_a_time:
            try:
                if self._may_try() and self.flush():
                    try:
                        OPERATIONS[name](self, run_id, payload, **fields)
                        return True
                    except Exception as error:
                        if not is_away(error):
                            self._reject(operation, payload, error)
                            return False
                        self._mark_away(error)
                self._keep(operation, payload)
            except Exception as error:  # a full disk: there is no place left to put it
                logger.error("%s is not recorded: %s: %s", name, self._spool, _first_line(error))
                return False
        return True

    def flush(self) -> bool:
        """Carry out what was kept; False when the server is still away."""
        with self._one_at_a_time:
            if self._journal.is_file():
                with self._locked():
                    if self._journal.is_file() and not self._send():
                        return False
            self._away_since = None
        return True

    def close(self) -> None:
        """Try once more, and say when something stays behind."""
        try:
            if self.flush():
                return
            kept = len(self._journal.read_text().splitlines())
        except OSError as error:
            logger.error("%s: %s", self._spool, error)
            return
        logger.warning(
            "the tracking server is away: %d records stay in %s and are sent by the next run",
            kept,
            self._spool,
        )

    def _send(self) -> bool:
        """Carry the journal out; False when the server went in the middle."""
        lines = self._journal.read_text(errors="replace").splitlines()
        kept: list[str] = []
        payloads: list[Path] = []
        sent, away = 0, False
        for line in lines:
            try:
                operation = json.loads(line)
                uri, name = operation["uri"], operation["name"]
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: an incomplete line is skipped", self._journal)
                continue
            if away or without_secrets(uri) != self.address:
                kept.append(line)
                continue
            payload = None
            try:
                if "payload" in operation:
                    payload = (self._spool / operation["payload"]).read_bytes()
                OPERATIONS[name](self, operation["run_id"], payload, **operation["fields"])
                sent += 1
            except Exception as error:
                if is_away(error):
                    self._mark_away(error)
                    away = True
                    kept.append(line)
                    continue
                # one that no server will ever take must not hold up the others
                self._reject(operation, payload, error)
            if "payload" in operation:
                payloads.append(self._spool / operation["payload"])
        if not kept:
            self._journal.unlink()
            payloads = list(self._spool.glob("*.payload"))
        elif len(kept) < len(lines):
            with atomic_path(self._journal) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))
        for path in payloads:
            path.unlink(missing_ok=True)
        if sent:
            logger.info("%d records were sent to the tracking server", sent)
        return not away

    def _may_try(self) -> bool:
        return self._away_since is None or time.monotonic() - self._away_since > RETRY_SECONDS

    def _mark_away(self, error: BaseException) -> None:
        said = what_it_said(error)
        if self._away_since is None or said != self._warned:
            logger.warning(
                "the tracking server %s (%s): training continues, records are kept in %s",
                said,
                _first_line(error),
                self._spool,
            )
        self._warned = said
        self._away_since = time.monotonic()

    def _keep(self, operation: dict[str, Any], payload: bytes | None) -> None:
        with self._locked():
            content = {**operation, **self._write_payload(payload, "payload")}
            append_line(self._journal, json.dumps(content))

    def _reject(
        self, operation: dict[str, Any], payload: bytes | None, error: BaseException
    ) -> None:
        logger.error(
            "the tracking server refuses %s of run %s: %s; it is kept in %s",
            operation["name"],
            operation["run_id"],
            _first_line(error),
            self._rejected,
        )
        rejection = {
            "error": without_secrets(f"{type(error).__name__}: {error}"),
            "time": time.time(),
        }
        content = {**operation, **self._write_payload(payload, "rejected"), **rejection}
        append_line(self._rejected, json.dumps(content))

    def _write_payload(self, payload: bytes | None, suffix: str) -> dict[str, str]:
        """Write a payload into the spool; give the field that names its file."""
        if payload is None:
            return {}
        self._spool.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=self._spool, suffix=f".{suffix}")
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(descriptor)
        return {"payload": Path(path).name}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._spool.mkdir(parents=True, exist_ok=True)
        with (self._spool / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _first_line(error: BaseException) -> str:
    lines = without_secrets(str(error)).splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def log_params(recorder: Recorder, run_id: str, payload: None, values: dict[str, Any]) -> None:
    """Log parameters; lists and mappings as JSON."""
    from mlflow.entities import Param

    params = []
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
        params.append(Param(name, text[:MAX_PARAM_LENGTH]))
    for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
        batch = params[start : start + MAX_PARAMS_PER_BATCH]
        recorder.client.log_batch(run_id, params=batch)


def log_metrics(
    recorder: Recorder, run_id: str, payload: None, points: list[tuple[str, float, int]], at: int
) -> None:
    """Log ``(name, value, step)`` measured at a time in milliseconds."""
    from mlflow.entities import Metric

    # MLflow stores NaN but cannot draw it
    metrics = [Metric(key, value, at, step) for key, value, step in points if math.isfinite(value)]
    for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        batch = metrics[start : start + MAX_METRICS_PER_BATCH]
        recorder.client.log_batch(run_id, metrics=batch)


def set_tags(recorder: Recorder, run_id: str, payload: None, values: dict[str, str]) -> None:
    """Set tags."""
    from mlflow.entities import RunTag

    tags = [RunTag(name, str(value)[:MAX_TAG_LENGTH]) for name, value in values.items()]
    for start in range(0, len(tags), MAX_PARAMS_PER_BATCH):
        recorder.client.log_batch(run_id, tags=tags[start : start + MAX_PARAMS_PER_BATCH])


def log_file(recorder: Recorder, run_id: str, payload: bytes, path: str) -> None:
    """Log a file as an artifact."""
    target = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / target.name
        file.write_bytes(payload)
        parent = str(target.parent) if len(target.parts) > 1 else None
        recorder.client.log_artifact(run_id, str(file), parent)


def log_table(recorder: Recorder, run_id: str, payload: bytes, path: str) -> None:
    """Log a table, given as JSON, as the UI shows it.

    MLflow's own way of it appends to the table that is there, which may be this one.
    """
    log_file(recorder, run_id, payload, path)
    tag = "mlflow.loggedArtifacts"
    listed = json.loads(recorder.client.get_run(run_id).data.tags.get(tag, "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in listed:
        recorder.client.set_tag(run_id, tag, json.dumps([*listed, entry]))


def log_dataset(
    recorder: Recorder, run_id: str, payload: None, dataset: dict[str, str], context: str
) -> None:
    """Log a dataset as a run's input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
    recorder.client.log_inputs(run_id, [entity])


def log_model(
    recorder: Recorder,
    run_id: str,
    payload: bytes,
    name: str,
    code: str,
    register: str | None = None,
) -> None:
    """Log a tensor file, without pickle, as a model that a script of ``served`` loads.

    With ``register`` also as a version of the registered model of that name.
    """
    import mlflow
    from mlflow.models import Model

    client = recorder.client
    experiment = client.get_run(run_id).info.experiment_id
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        weights = Path(folder) / f"{name}.safetensors"
        weights.write_bytes(payload)
        uri = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(recorder.uri)
        try:
            # its advice is on type hints and examples, past every filter; a signature is given
            warnings.showwarning = lambda *arguments, **options: None
            model = client.create_logged_model(experiment, name=name, source_run_id=run_id)
            Model.log(
                artifact_path=None,
                model_id=model.model_id,
                name=name,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                python_model=str(PACKAGE / code),
                artifacts={"weights": str(weights)},
                signature=_signature(code),
                pip_requirements=[f"husai=={metadata.version('husai')}"],
            )
            if register is not None:
                if not client.search_registered_models(f"name = '{register}'"):
                    client.create_registered_model(register)
                client.create_model_version(
                    register, f"models:/{model.model_id}", run_id, model_id=model.model_id
                )
        finally:
            mlflow.set_tracking_uri(uri)


def register_sae(
    recorder: Recorder,
    run_id: str,
    payload: None,
    sae_id: str,
    identity: str,
    experiment: str,
    model: str,
) -> None:
    """Make an SAE, whose weights its run holds, a version of a registered model."""
    from mlflow.artifacts import download_artifacts

    run = find_saes(recorder.client, experiment, sae_id).get((sae_id, identity))
    if run is None:
        logger.warning("%s has no run: it is not registered", sae_id)
        return
    child = run.info.run_id
    if recorder.client.search_model_versions(f"run_id = '{child}'"):
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = download_artifacts(
            run_id=child,
            artifact_path=f"weights/{sae_id}.safetensors",
            dst_path=folder,
            tracking_uri=recorder.uri,
        )
        content = Path(weights).read_bytes()
    log_model(recorder, child, content, "sae", "served/sae.py", register=model)


def end_run(recorder: Recorder, run_id: str, payload: None, status: str, at: int) -> None:
    """Close a run at a time in milliseconds."""
    recorder.client.set_terminated(run_id, status, end_time=at)


def log_sae(
    recorder: Recorder,
    run_id: str,
    payload: bytes,
    sae_id: str,
    experiment: str,
    runs: str | None = None,
) -> None:
    """Give an SAE its own run below the session's, or complete the one it has.

    The run is found by the SAE's name and identity, whichever session made it. It moves below
    this session's run when its own was interrupted.

    Parameters
    ----------
    recorder, run_id, payload
        The SAE's file, and the session's run.
    sae_id
        Its name in the plan.
    experiment
        Id of the experiment.
    runs
        File of JSON lines to which its run's id is appended.
    """
    from husai.campaign.store import identity
    from husai.sae import from_tensors
    from husai.sae.config import NEUTRAL_FIELDS

    file = TensorFile.from_bytes(payload, sae_id)
    header = file.header
    found = find_saes(recorder.client, experiment, sae_id).get((sae_id, identity(header)))
    if found is not None:
        adopt(recorder, found, run_id)
        if found.info.status in ("FINISHED", "FAILED"):
            _note_run(runs, sae_id, header, found.info.run_id, recorder.address)
            return
    sae = from_tensors(file.tensors, header, sae_id)
    about = header["provenance"].get("campaign") or {}
    end = int(1000 * about.get("finished", time.time()))
    if found is None:
        # the time it was trained, so that the UI's duration column says something
        seconds = about.get("device_seconds", sae.metrics.get("train_seconds", 0.0))
        found = recorder.client.create_run(
            experiment,
            start_time=end - int(1000 * seconds),
            tags={PARENT_TAG: run_id, PROCESS_TAG: this_process(), **sae_tags(sae_id, header)},
            run_name=sae_id,
        )
    child = found.info.run_id
    training = {
        name: value
        for name, value in header["provenance"].get("training", {}).items()
        if name not in NEUTRAL_FIELDS
    }
    params = {**dict(flatten(header["config"])), **dict(flatten(training, "training"))}
    log_params(recorder, child, None, params)
    costs = {name: about[name] for name in COSTS if about.get(name) is not None}
    points = [(name, float(value), 0) for name, value in flatten(sae.metrics)]
    points += [(f"campaign.{name}", float(value), 0) for name, value in costs.items()]
    history = sae.history
    for column in history.select_dtypes("number").columns.drop("step", errors="ignore"):
        points += [
            (f"training.{column}", float(value), int(step))
            for step, value in zip(history["step"], history[column], strict=True)
        ]
    log_metrics(recorder, child, None, points, end)
    log_file(recorder, child, payload, f"weights/{sae_id}.safetensors")
    if sae.failure:
        set_tags(recorder, child, None, {"error": sae.failure})
    end_run(recorder, child, None, "FAILED" if sae.failure else "FINISHED", end)
    _note_run(runs, sae_id, header, child, recorder.address)


def sae_tags(sae_id: str, header: Mapping[str, Any]) -> dict[str, str]:
    """Give the tags by which ``mlflow.search_runs`` finds an SAE, or any slice of a campaign."""
    from husai.campaign.store import identity

    provenance = header["provenance"]
    about = provenance.get("campaign", {})
    tags = {
        ID_TAG: sae_id,
        IDENTITY_TAG: identity(header),
        "husai.status": "failed" if header.get("failure") else "trained",
        "husai.version": str(provenance.get("husai", "")),
        "husai.rows": str(provenance.get("rows", {}).get("fingerprint", "")),
        "mlflow.user": "husai",
    }
    for name in ("name", "group", "variant", "seed", "hook_name", "position", "model", "worker"):
        if about.get(name) is not None:
            tags["husai.campaign" if name == "name" else f"husai.{name}"] = str(about[name])
    for name, value in header["config"].items():
        if value is not None and not isinstance(value, list):
            tags[f"sae.{name}"] = str(value)
    return tags


def find_saes(
    client: MlflowClient, experiment: str, sae_id: str | None = None
) -> dict[tuple[str, str], Any]:
    """Give the runs of the SAEs of an experiment, or of one, by name and identity."""
    condition = f"= '{sae_id}'" if sae_id else "LIKE '%'"
    found = {}
    for run in _search(client, experiment, f"tags.`{ID_TAG}` {condition}"):
        tags = run.data.tags
        found[tags[ID_TAG], tags.get(IDENTITY_TAG, "")] = run
    return found


def _search(client: MlflowClient, experiment: str, condition: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(
            [experiment], condition, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def adopt(recorder: Recorder, child: Any, parent: str) -> None:
    """Move an SAE's run below this session's, when the session that made it was interrupted.

    A run of a session that still works stays where it is. So does one of another machine until it
    has ended: this machine cannot know whether its session works.
    """
    theirs = child.data.tags.get(PARENT_TAG)
    if theirs in (None, parent):
        return
    try:
        run = recorder.client.get_run(theirs)
    except Exception as error:
        if http_status(error) != 404:  # else it was deleted for good
            raise
    else:
        if run.info.status == "FINISHED":
            return
        if run.info.status == "RUNNING":
            if not is_gone(run.data.tags.get(PROCESS_TAG, "")):
                return
            recorder.client.set_terminated(theirs, "KILLED")  # its process had no time to say so
    set_tags(recorder, child.info.run_id, None, {PARENT_TAG: parent})


def adopt_sae(recorder: Recorder, run_id: str, payload: None, child: str) -> None:
    """Move an SAE's run, given by its id, below the session's: see :func:`adopt`."""
    adopt(recorder, recorder.client.get_run(child), run_id)


def end_abandoned(client: MlflowClient, experiment: str) -> None:
    """Close the runs of an experiment that killed processes of this machine left open."""
    condition = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{platform.node()}:%'"
    gone = [
        run.info.run_id
        for run in _search(client, experiment, condition)
        if is_gone(run.data.tags[PROCESS_TAG])
    ]
    for run_id in gone:
        logger.info("MLflow run %s was left open by a process that is gone: closed", run_id)
        client.set_terminated(run_id, "KILLED")


def this_process() -> str:
    """Name this process, for :func:`is_gone`."""
    import psutil

    return f"{platform.node()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_gone(process: str) -> bool:
    """Whether a process of this machine has ended; False for those of others."""
    import psutil

    node, pid, *began = process.split(":") if process.count(":") else (process, "")
    if node != platform.node() or not pid.isdigit():
        return False
    try:
        now = psutil.Process(int(pid)).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    # the id may belong to another process by now: in a container it is the same at every start
    return bool(began) and abs(now - float(began[0])) > SAME_PROCESS_SECONDS


def _note_run(
    runs: str | None, sae_id: str, header: Mapping[str, Any], run_id: str, uri: str
) -> None:
    """Write down which run is an SAE's, once."""
    from husai.campaign.store import identity

    if runs is None:
        return
    path = Path(runs)
    line = json.dumps(
        {"sae_id": sae_id, "identity": identity(header), "run_id": run_id, "tracking_uri": uri}
    )
    if not path.is_file() or line not in path.read_text().splitlines():
        append_line(path, line)


def _signature(code: str) -> Any:
    """What goes into a served model and what comes out, one row per input."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # integer tokens to logits, or activations to codes
    kind = np.int64 if code.endswith("transformer.py") else np.float32
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(kind), (-1, -1))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
    )


Operation = Callable[..., None]
OPERATIONS: dict[str, Operation] = {
    "params": log_params,
    "metrics": log_metrics,
    "tags": set_tags,
    "file": log_file,
    "table": log_table,
    "dataset": log_dataset,
    "model": log_model,
    "register": register_sae,
    "end": end_run,
    "sae": log_sae,
    "adopt": adopt_sae,
}
