"""The MLflow runs of SAEs; everything in them is read from the SAEs' files."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from husai.activations.rows import activation_key
from husai.config import flatten
from husai.processes import is_gone, this_process
from husai.storage import TensorFile, append_line
from husai.tracking.operations import (
    end_run,
    log_metrics,
    log_model,
    log_params,
    set_tags,
)
from husai.tracking.processes import PROCESS_TAG, search_runs
from husai.tracking.servers import http_status

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from husai.tracking.servers import Store

logger = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
ID_TAG, IDENTITY_TAG, CAMPAIGN_TAG = "husai.sae_id", "husai.identity", "husai.campaign"
COSTS = ("cost", "device_seconds", "attempts", "peak_bytes")
"""Costs stated in an SAE's file; each becomes a metric ``campaign.NAME`` of its run."""
SETTINGS = ("architecture", "d_sae", "k", "l0_coefficient", "l1_coefficient")
"""Fields of an SAE's configuration that are parameters of the same name; others are ``sae.NAME``.

MLflow's page that compares runs draws the first three parameters, by name, that differ, against the
first metric that all of them have. So the names of other parameters come later in the alphabet, and
:data:`FIRST_METRIC` is recorded first.
"""
FIRST_METRIC = "reproducibility"
"""Recorded for every SAE when its run is made; NaN until a comparison gives its value."""


def log_sae(
    store: Store,
    run_id: str,
    payload: None,
    sae_id: str,
    file: str,
    identity: str,
    experiment: str,
    runs: str | None = None,
    transformer: str = "",
) -> None:
    """Make a run for an SAE, as a child of the session's run, or complete the run that it has.

    The run is found by the SAE's name and identity, whichever session made it. If that session was
    interrupted, the run becomes a child of this session's run.

    Parameters
    ----------
    store, run_id, payload
        The tracking store, the session's run, and None.
    sae_id
        The SAE's name in the plan.
    file
        The SAE's file. If it does not exist any more or has another SAE, a warning is logged.
    identity
        The SAE's identity, from :func:`husai.campaign.store.identity`.
    experiment
        Id of the experiment.
    runs
        File of JSON lines to which the id of the run is appended.
    transformer
        Fingerprint of the transformer whose activations it reads; empty without one.
    """
    sae_file = _read(file, sae_id, identity)
    if sae_file is None:
        return
    header = sae_file.header
    found = find_saes(store.client, experiment, sae_id).get(run_key(sae_id, header))
    if found is not None:
        adopt(store, found, run_id)
        if found.info.status in ("FINISHED", "FAILED"):
            _note_run(runs, sae_id, header, found.info.run_id, store.address)
            return
    about = header["provenance"].get("campaign") or {}
    end = int(1000 * about.get("finished", time.time()))
    if found is None:
        # starts when its training started, so that the UI shows the duration of the training
        seconds = about.get("device_seconds", header["metrics"].get("train_seconds") or 0.0)
        found = store.client.create_run(
            experiment,
            start_time=end - int(1000 * seconds),
            tags={PARENT_TAG: run_id, PROCESS_TAG: this_process(), **sae_tags(sae_id, header)},
            run_name=sae_id,
        )
    child = found.info.run_id
    log_params(store, child, None, sae_params(header, transformer))
    _reserve_first_metric(store, child)
    log_metrics(store, child, None, _points(sae_file, sae_id), end)
    store.client.log_artifact(child, file, "weights")
    if header.get("failure"):
        set_tags(store, child, None, {"error": header["failure"]})
    end_run(store, child, None, "FAILED" if header.get("failure") else "FINISHED", end)
    _note_run(runs, sae_id, header, child, store.address)


def _reserve_first_metric(store: Store, run_id: str) -> None:
    from mlflow.entities import Metric

    # at time 0: any later value replaces it
    store.client.log_batch(run_id, metrics=[Metric(FIRST_METRIC, math.nan, 0, 0)])


def sae_params(header: Mapping[str, Any], transformer: str = "") -> dict[str, Any]:
    """Return an SAE's parameters: its settings, and those of its training.

    ``architecture``, ``d_sae``, ``k``, ``seed``, ``transformer``, ``plan.group`` and ``plan.hook``
    have these names, if they are known.
    """
    from husai.sae.config import NEUTRAL_FIELDS

    about = header["provenance"].get("campaign") or {}
    params = {name: about.get(name) for name in ("seed", "variant", "model")}
    params["plan.group"] = about.get("group")
    if "hook_name" in about:
        key = about["hook_name"], about["position"], about.get("model", "trained")
        params["plan.hook"] = activation_key(*key)
    params["transformer"] = transformer
    for name, value in flatten(header["config"]):
        params[name if name in SETTINGS else f"sae.{name}"] = value
    for name, value in flatten(header["provenance"].get("training", {})):
        if name.split(".")[0] not in NEUTRAL_FIELDS:
            params[f"training.{name}"] = value
    return {name: value for name, value in params.items() if value is not None and value != ""}


def _points(file: TensorFile, sae_id: str) -> list[tuple[str, float, int]]:
    """Return an SAE's metrics, its costs, and the history of its training."""
    from husai.sae import from_tensors

    sae = from_tensors(file.tensors, file.header, sae_id)
    about = file.header["provenance"].get("campaign") or {}
    points = [(name, float(value), 0) for name, value in flatten(sae.metrics)]
    points += [
        (f"campaign.{name}", float(about[name]), 0) for name in COSTS if about.get(name) is not None
    ]
    history = sae.history
    for column in history.select_dtypes("number").columns.drop("step", errors="ignore"):
        points += [
            (f"training.{column}", float(value), int(step))
            for step, value in zip(history["step"], history[column], strict=True)
        ]
    return points


def _read(file: str, sae_id: str, identity: str) -> TensorFile | None:
    """Read an SAE's file; None if it does not have the SAE of this identity any more."""
    from husai.campaign import store

    try:
        found = TensorFile.from_bytes(Path(file).read_bytes(), file)
    except FileNotFoundError:
        logger.warning("%s is not recorded: %s does not exist any more", sae_id, file)
        return None
    if store.identity(found.header) != identity:
        logger.warning("%s is not recorded: %s now has another SAE", sae_id, file)
        return None
    return found


def found_about_saes(
    features: pd.DataFrame, label_f1: float, chance: Mapping[str, float] | None = None
) -> dict[str, dict[str, float]]:
    """Return the results of the comparison for each SAE, as metrics.

    Parameters
    ----------
    features
        A row per latent, see :func:`husai.consistency.study.features.feature_table`.
    label_f1
        F1, at the best threshold, above which a latent stands for a class.
    chance
        PW-MCC of permuted features, by group.

    Returns
    -------
    dict
        The metrics by id of the SAE: ``n_live``, the latents compared. With another seed,
        ``reproducibility``, their mean similarity to their partners in the other seeds;
        ``found_in_every_seed``, the share of them that have a partner at the threshold or above in
        each; and, if the null is known, ``corrected``: 0 at the null, 1 at the perfect score. With
        labels, ``kind.KIND``, the number of latents of each kind; ``reproducibility.KIND``; and
        ``covered.FAMILY``, the number of different classes that have a latent.
    """
    found = {}
    for sae_id, latents in features[features["space"] == "full"].groupby("id", sort=False):
        metrics = {"n_live": float(len(latents))}
        compared = "reproducibility" in latents and latents["reproducibility"].notna().any()
        if compared:
            everywhere = latents["n_seeds_found"] == latents["n_other_seeds"]
            metrics["reproducibility"] = float(latents["reproducibility"].mean())
            metrics["found_in_every_seed"] = float(everywhere.mean())
            null = (chance or {}).get(str(latents["group"].iloc[0])) if "group" in latents else None
            if null is not None:
                metrics["corrected"] = (metrics["reproducibility"] - null) / (1 - null)
        if "kind" in latents:
            for kind, part in latents[latents["kind"].notna()].groupby("kind"):
                name = _metric_name(str(kind))
                metrics[f"kind.{name}"] = float(len(part))
                if compared:
                    metrics[f"reproducibility.{name}"] = float(part["reproducibility"].mean())
            classes = latents[latents["f1_best"] > label_f1]
            for family, part in classes.groupby("family"):
                metrics[f"covered.{_metric_name(str(family))}"] = float(part["label"].nunique())
        found[str(sae_id)] = metrics
    return found


def _metric_name(text: str) -> str:
    """Remove the characters that MLflow does not allow in the name of a metric."""
    return re.sub(r"[^\w./ -]", "", text)


def log_results(
    store: Store,
    run_id: str,
    payload: None,
    results: list[dict[str, Any]],
    experiment: str,
    at: int,
) -> None:
    """Add the results of a comparison to the runs of SAEs.

    Parameters
    ----------
    store, run_id, payload
        The tracking store, the session's run, and None.
    results
        ``sae_id``, ``identity``, ``study`` and ``metrics`` of each SAE; those without a run are
        skipped with a warning.
    experiment
        Id of the experiment.
    at
        Time in milliseconds.
    """
    runs = find_saes(store.client, experiment)
    for one in results:
        run = runs.get((one["sae_id"], one["identity"], one["study"]))
        if run is None:
            logger.warning("%s has no run: its results are not recorded", one["sae_id"])
            continue
        points = [(name, value, 0) for name, value in one["metrics"].items()]
        log_metrics(store, run.info.run_id, None, points, at)


def register_sae(
    store: Store,
    run_id: str,
    payload: None,
    sae_id: str,
    file: str,
    identity: str,
    experiment: str,
    model: str,
) -> None:
    """Register an SAE that has a run as a version of a registered model."""
    sae_file = _read(file, sae_id, identity)
    if sae_file is None:
        return
    run = find_saes(store.client, experiment, sae_id).get(run_key(sae_id, sae_file.header))
    if run is None:
        logger.warning("%s has no run: it is not registered", sae_id)
        return
    child = run.info.run_id
    if not store.client.search_model_versions(f"run_id = '{child}'"):
        content = Path(file).read_bytes()
        log_model(store, child, content, "sae", "served/sae.py", register=model)


def sae_tags(sae_id: str, header: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags by which ``mlflow.search_runs`` finds an SAE or a part of a campaign."""
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
            tags[CAMPAIGN_TAG if name == "name" else f"husai.{name}"] = str(about[name])
    for name, value in header["config"].items():
        if value is not None and not isinstance(value, list):
            tags[f"sae.{name}"] = str(value)
    return tags


RunKey = tuple[str, str, str]
"""Name, identity and study of an SAE; if two studies train the same SAE, each has a run of it."""


def run_key(sae_id: str, header: Mapping[str, Any]) -> RunKey:
    """Return the key of an SAE's run from the header of its file."""
    from husai.campaign.store import identity

    about = header["provenance"].get("campaign") or {}
    return sae_id, identity(header), str(about.get("name", ""))


def find_saes(
    client: MlflowClient, experiment: str, sae_id: str | None = None
) -> dict[RunKey, Any]:
    """Return the runs of all SAEs of an experiment, or of one, by name, identity and study."""
    condition = f"= '{sae_id}'" if sae_id else "LIKE '%'"
    found = {}
    for run in search_runs(client, experiment, f"tags.`{ID_TAG}` {condition}"):
        tags = run.data.tags
        found[tags[ID_TAG], tags.get(IDENTITY_TAG, ""), tags.get(CAMPAIGN_TAG, "")] = run
    return found


def adopt(store: Store, child: Any, parent: str) -> None:
    """Make an SAE's run a child of this session's run, if the session that made it was interrupted.

    A run of a session that is still running stays unchanged. So does a run of another machine
    until its session has ended, since this machine cannot know whether it is running.
    """
    theirs = child.data.tags.get(PARENT_TAG)
    if theirs in (None, parent):
        return
    try:
        run = store.client.get_run(theirs)
    except Exception as error:
        if http_status(error) != 404:  # else it was deleted for good
            raise
    else:
        if run.info.status == "FINISHED":
            return
        if run.info.status == "RUNNING":
            if not is_gone(run.data.tags.get(PROCESS_TAG, "")):
                return
            store.client.set_terminated(theirs, "KILLED")  # its process was killed before it could
    set_tags(store, child.info.run_id, None, {PARENT_TAG: parent})


def adopt_sae(store: Store, run_id: str, payload: None, child: str) -> None:
    """Make an SAE's run, given by its id, a child of the session's run: see :func:`adopt`."""
    adopt(store, store.client.get_run(child), run_id)


def _note_run(
    runs: str | None, sae_id: str, header: Mapping[str, Any], run_id: str, uri: str
) -> None:
    """Append the id of an SAE's run to the file of runs, once."""
    from husai.campaign.store import identity

    if runs is None:
        return
    path = Path(runs)
    line = json.dumps(
        {"sae_id": sae_id, "identity": identity(header), "run_id": run_id, "tracking_uri": uri}
    )
    if not path.is_file() or line not in path.read_text().splitlines():
        append_line(path, line)
