"""The operations that record something about a run; each may safely be done twice.

All have the arguments ``store`` (the tracking store), ``run_id`` (the run), ``payload`` (the bytes
of a file, or None), and fields of plain data.
"""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from husai.tracking.servers import Store

# MLflow's own limits for one log_batch call and for a parameter's value
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 500

PACKAGE = Path(__file__).parent


def log_params(store: Store, run_id: str, payload: None, values: dict[str, Any]) -> None:
    """Log parameters; lists and mappings are written as JSON."""
    from mlflow.entities import Param

    params = []
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
        params.append(Param(name, text[:MAX_PARAM_LENGTH]))
    for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
        batch = params[start : start + MAX_PARAMS_PER_BATCH]
        store.client.log_batch(run_id, params=batch)


def log_metrics(
    store: Store, run_id: str, payload: None, points: list[tuple[str, float, int]], at: int
) -> None:
    """Log metrics ``(name, value, step)`` that were measured at a time in milliseconds."""
    from mlflow.entities import Metric

    # MLflow stores NaN but cannot draw it
    metrics = [Metric(key, value, at, step) for key, value, step in points if math.isfinite(value)]
    for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        batch = metrics[start : start + MAX_METRICS_PER_BATCH]
        store.client.log_batch(run_id, metrics=batch)


def set_tags(store: Store, run_id: str, payload: None, values: dict[str, str]) -> None:
    """Set tags."""
    from mlflow.entities import RunTag

    tags = [RunTag(name, str(value)[:MAX_TAG_LENGTH]) for name, value in values.items()]
    for start in range(0, len(tags), MAX_PARAMS_PER_BATCH):
        store.client.log_batch(run_id, tags=tags[start : start + MAX_PARAMS_PER_BATCH])


def log_file(store: Store, run_id: str, payload: bytes, path: str) -> None:
    """Log a file as an artifact."""
    target = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / target.name
        file.write_bytes(payload)
        parent = str(target.parent) if len(target.parts) > 1 else None
        store.client.log_artifact(run_id, str(file), parent)


def log_table(store: Store, run_id: str, payload: bytes, path: str) -> None:
    """Log a table, given as JSON, as a table that the UI shows.

    MLflow's own function would append to a table of this name; done twice, it would repeat it.
    """
    log_file(store, run_id, payload, path)
    tag = "mlflow.loggedArtifacts"
    listed = json.loads(store.client.get_run(run_id).data.tags.get(tag, "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in listed:
        store.client.set_tag(run_id, tag, json.dumps([*listed, entry]))


def log_dataset(
    store: Store, run_id: str, payload: None, dataset: dict[str, str], context: str
) -> None:
    """Log a dataset as a run's input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
    store.client.log_inputs(run_id, [entity])


def log_model(
    store: Store,
    run_id: str,
    payload: bytes,
    name: str,
    code: str,
    register: str | None = None,
) -> None:
    """Log a tensor file, without pickle, as a model that a script in ``served`` loads.

    With ``register``, also as a version of the registered model of that name.
    """
    import mlflow
    from mlflow.models import Model

    client = store.client
    experiment = client.get_run(run_id).info.experiment_id
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        weights = Path(folder) / f"{name}.safetensors"
        weights.write_bytes(payload)
        uri = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(store.uri)
        try:
            # MLflow warns about missing type hints and examples in spite of filters; the
            # signature is given here
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
                _make_registered(client, register)
                client.create_model_version(
                    register, f"models:/{model.model_id}", run_id, model_id=model.model_id
                )
        finally:
            mlflow.set_tracking_uri(uri)


def _make_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    if not client.search_registered_models(f"name = '{name}'"):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            # another user's study may have made it in the meantime
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def end_run(store: Store, run_id: str, payload: None, status: str, at: int) -> None:
    """Close a run at a time in milliseconds."""
    store.client.set_terminated(run_id, status, end_time=at)


def _signature(code: str) -> Any:
    """The types of a served model's inputs and outputs, one row per input."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # integer tokens to logits, or activations to codes
    kind = np.int64 if code.endswith("transformer.py") else np.float32
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(kind), (-1, -1))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
    )
