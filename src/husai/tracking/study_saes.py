"""The runs of a session's SAEs in MLflow, made from their files and the ledgers of campaigns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from husai.activations.rows import activation_key
from husai.storage import TensorFile, read_header
from husai.tracking.recorder import now
from husai.tracking.sae_runs import find_saes, found_about_saes, run_key
from husai.tracking.session import TrackedRun

logger = logging.getLogger(__name__)

TOTALS_SECONDS = 10.0
"""Least seconds between two records of the campaign's cost, since each reads the ledger."""


@dataclass(frozen=True)
class SAEFolders:
    """The paths of a campaign's files, from the metadata of its SAEs in the catalog.

    Attributes
    ----------
    files
        Folder of the SAEs, ``SAE_ID.safetensors``.
    runs
        File of JSON lines with the run of each SAE, in the folder of the ledger.
    activations
        Folder of the activations that they read, ``HOOK.safetensors``.
    """

    files: Path
    runs: Path
    activations: Path

    @classmethod
    def of(cls, project: Path, options: Mapping[str, Any]) -> SAEFolders:
        """Read them from the catalog; relative paths start in the project's folder."""
        names = ("files", "runs", "activations")
        return cls(*((project / str(options[name])).resolve() for name in names))

    def file(self, sae_id: str) -> Path:
        """Return the file of an SAE."""
        return self.files / f"{sae_id}.safetensors"

    def transformer(self, header: Mapping[str, Any]) -> str:
        """Return the fingerprint of the transformer that an SAE's rows come from; empty if none."""
        about = header["provenance"].get("campaign") or {}
        if "hook_name" not in about:
            return ""
        key = activation_key(about["hook_name"], about["position"], about.get("model", "trained"))
        path = self.activations / f"{key}.safetensors"
        model = read_header(path).get("model", {}) if path.is_file() else {}
        return str(model.get("transformer", {}).get("fingerprint", ""))


class StudySAEs:
    """Writes the runs of a session's SAEs from their files and the ledger.

    Parameters
    ----------
    run
        The run of the session.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._known: dict[str, _Known] = {}
        self._ledgers: set[Path] = set()
        self._totals_logged: float | None = None

    def follow(self, folders: SAEFolders) -> None:
        """Include the costs of the campaign of these folders in the session's totals."""
        self._ledgers.add(folders.runs.parent)

    def log(self, sae_id: str, header: Mapping[str, Any], folders: SAEFolders) -> None:
        """Make a run for an SAE whose file is saved, as a child of the session's run."""
        known = _Known(header, folders)
        self._run.do(
            "sae",
            sae_id=sae_id,
            file=str(folders.file(sae_id)),
            identity=known.identity,
            experiment=self._run.experiment,
            runs=str(folders.runs),
            transformer=folders.transformer(header),
        )
        self._known[sae_id] = known
        logged = self._totals_logged
        if logged is None or time.monotonic() - logged > TOTALS_SECONDS:
            self.log_totals()

    def complete(
        self,
        planned: Sequence[str],
        partitions: Mapping[str, Callable[[], TensorFile]],
        folders: SAEFolders,
    ) -> None:
        """Log the planned SAEs that are trained but have no run.

        They were trained without tracking, or a process was killed after it saved them. Runs of
        interrupted sessions become children of this session's run.
        """
        unknown = [name for name in planned if name in partitions and name not in self._known]
        if not unknown:
            return
        try:
            runs = find_saes(self._run.recorder.client, self._run.experiment)
        except Exception as error:
            # each run is searched again when its SAE is logged
            logger.warning("the search for the SAEs' runs failed: %s", error)
            runs = {}
        for name in unknown:
            header = partitions[name]().header
            run = runs.get(run_key(name, header))
            if run is None or run.info.status not in ("FINISHED", "FAILED"):
                self.log(name, header, folders)
                continue
            self._known[name] = _Known(header, folders)
            self._run.do("adopt", child=run.info.run_id)

    def log_found(
        self,
        features: pd.DataFrame,
        folders: SAEFolders,
        label_f1: float,
        chance: Mapping[str, float],
    ) -> None:
        """Add the results of the comparison to the SAEs' runs."""
        results = []
        for sae_id, metrics in found_about_saes(features, label_f1, chance).items():
            path = folders.file(sae_id)
            if path.is_file():  # external SAEs have no run
                _, identity, study = run_key(sae_id, read_header(path))
                about = {"sae_id": sae_id, "identity": identity, "study": study}
                results.append({**about, "metrics": metrics})
        self._run.do("sae_results", results=results, experiment=self._run.experiment, at=now())

    def log_totals(self) -> None:
        """Record the costs of the campaign in all its sessions, failures included."""
        from husai.campaign import read_ledger

        statuses: dict[str, str] = {}
        took: dict[str, tuple[float, float]] = {}
        for folder in self._ledgers:
            table = read_ledger(folder)
            ids = table["sae_id"].tolist()
            statuses |= zip(ids, table["status"].tolist(), strict=True)
            costs = zip(table["cost"].tolist(), table["seconds"].tolist(), strict=True)
            took |= zip(ids, costs, strict=True)
        # the ledger is written after an SAE's file, so the file may have newer costs
        for name, sae in self._known.items():
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
        self._run.do("metrics", points=points, at=now())

    def register(self, which: str) -> None:
        """Register SAEs of this session as versions of registered models.

        Parameters
        ----------
        which
            ``none``, the ``best`` of each group (lowest FVU), or ``all``. The model has the name
            of the group: ``husai-topk-d16-k3``.
        """
        usable = {name: sae for name, sae in self._known.items() if sae.fvu is not None}
        chosen = list(usable) if which == "all" else []
        if which == "best":
            groups: dict[str, list[str]] = {}
            for name, sae in usable.items():
                groups.setdefault(sae.group, []).append(name)
            chosen = [min(names, key=partial(_fvu, usable)) for names in groups.values()]
        for name in chosen:
            sae = usable[name]
            self._run.do(
                "register",
                sae_id=name,
                file=str(sae.folders.file(name)),
                identity=sae.identity,
                experiment=self._run.experiment,
                model=f"husai {sae.group}".replace(" ", "-"),
            )


class _Known:
    """Facts about an SAE that the session needs when its file is not in memory any more."""

    def __init__(self, header: Mapping[str, Any], folders: SAEFolders) -> None:
        from husai.campaign.store import identity

        about: Mapping[str, Any] = header["provenance"].get("campaign") or {}
        self.folders = folders
        self.took = float(about.get("cost") or 0.0), float(about.get("device_seconds") or 0.0)
        self.failed = bool(header.get("failure"))
        self.identity = identity(header)
        config = header["config"]
        self.group = str(about.get("group", f"{config['architecture']} d{config['d_sae']}"))
        fvu = header["metrics"].get("fvu")
        self.fvu = None if fvu is None or self.failed else float(fvu)


def _fvu(saes: Mapping[str, _Known], name: str) -> float:
    fvu = saes[name].fvu
    assert fvu is not None
    return fvu


def study_metrics(groups: pd.DataFrame) -> dict[str, float]:
    """Return the scores at the study's main hook as metrics: means over its groups.

    Parameters
    ----------
    groups
        A row per group, space, score and sign; the study's main hook first.

    Returns
    -------
    dict
        ``pw_mcc``, ``mmcs``, ``shared_fraction``, and ``pw_mcc_NULL`` for each null, with absolute
        cosines, in the full space.
    """
    own = groups[groups["hook"] == groups["hook"].iloc[0]] if len(groups) else groups
    own = own[(own["space"] == "full") & ~own["signed"].astype(bool)]
    metrics = {
        str(score): float(rows["mean"].mean())
        for score, rows in own.groupby("score", sort=False)
        if score in ("pw_mcc", "mmcs", "shared_fraction") and rows["mean"].notna().any()
    }
    scores = own[own["score"] == "pw_mcc"]
    for column in scores.columns:
        if column.endswith("_mean") and scores[column].notna().any():
            metrics[f"pw_mcc_{column.removesuffix('_mean')}"] = float(scores[column].mean())
    return metrics


def permuted_scores(groups: pd.DataFrame) -> dict[str, float]:
    """Return the PW-MCC of permuted features in the full space, by group, if it is known."""
    chosen = groups[(groups["score"] == "pw_mcc") & (groups["space"] == "full")]
    chosen = chosen[~chosen["signed"].astype(bool)]
    if "permuted_mean" not in chosen:
        return {}
    known = chosen[chosen["permuted_mean"].notna()]
    return {
        str(name): float(value)
        for name, value in zip(known["group"], known["permuted_mean"], strict=True)
    }
