"""Reads the results of campaigns into one table, a row for every SAE."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from husai.campaign.folders import LEDGER, PLAN, QUARANTINE, RUNS
from husai.campaign.ledger import Ledger
from husai.campaign.plan import KEPT_COLUMNS, records
from husai.campaign.store import SUFFIX, UNREADABLE, identity
from husai.errors import InputError
from husai.provenance import without_secrets
from husai.storage import read_header, read_lines

logger = logging.getLogger(__name__)


def results(*folders: str | Path) -> pd.DataFrame:
    """Make a table of every SAE of the campaigns in these folders, trained, failed or missing.

    Only headers are read, no weights.

    Parameters
    ----------
    *folders
        Folders of campaigns, with ``trained/`` and ``campaign/`` in them, or any folder above:
        every campaign below it is included. ``data`` when none is given.

    Returns
    -------
    DataFrame
        One row per SAE and campaign, and one for every file in quarantine: ``campaign`` (with the
        folder, if several have the same name), ``sae_id``, ``status`` (planned, running, done,
        failed; unfit for a file in the store that is not in the ledger; quarantined for a file
        that was moved out of the store), ``group``, ``seed`` and others from the plan;
        ``config.NAME``; ``training.NAME``; ``metric.NAME``; ``attempts``, ``device_seconds``,
        ``cost``, ``reason``; ``path``; ``run_id`` and ``tracking_uri``; ``identity``, ``rows`` and
        ``version.NAME``.

    Raises
    ------
    InputError
        When there is no campaign in a folder.
    """
    campaigns = [found for folder in folders or ("data",) for found in _campaigns(Path(folder))]
    # a campaign may lie below several of the folders
    table = pd.DataFrame([row for campaign in dict.fromkeys(campaigns) for row in _rows(campaign)])
    if table.empty:
        return pd.DataFrame(columns=["campaign", "sae_id", "status", "path"])
    # studies of the same name get different names, so that means by campaign do not mix them
    folders_of_name = table.groupby("campaign")["folder"].transform("nunique")
    shared = (folders_of_name > 1) & (table["campaign"] != "")
    table.loc[shared, "campaign"] += " in " + table.loc[shared, "folder"]
    return table.sort_values(["folder", "sae_id"], ignore_index=True)


def read_ledger(folder: str | Path, ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the ledger in a campaign's folder: a row for each SAE, or for these.

    Columns: ``sae_id``, ``status``, ``attempts``, ``seconds`` (of devices), ``cost``, ``bank``,
    ``worker``, ``started``, ``ended`` (Unix times), ``reason``, ``traceback``.
    """
    return Ledger(Path(folder) / LEDGER).table(ids)


def ledger_totals(table: pd.DataFrame) -> dict[str, float]:
    """Add up a table of :func:`read_ledger`: SAEs, attempts, device-seconds, cost.

    ``elapsed`` is the wall-clock time in seconds in which at least one of these SAEs was trained,
    without the pauses between sessions; it is left out if no SAE has ended.
    """
    counts = table["status"].value_counts()
    totals = {"planned": float(len(table))}
    totals |= {status: float(counts.get(status, 0)) for status in ("done", "failed")}
    totals |= {name: float(table[name].sum()) for name in ("attempts", "seconds", "cost")}
    if table["ended"].notna().any():
        totals["elapsed"] = _covered(table[table["started"].notna() & table["ended"].notna()])
    return totals


def _covered(table: pd.DataFrame) -> float:
    """Return the length of the union of the intervals from ``started`` to ``ended``."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(zip(table["started"], table["ended"], strict=True)):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return float(total)


def _campaigns(folder: Path) -> list[Path]:
    found = sorted(path.parent.parent for path in folder.rglob(f"campaign/{LEDGER}"))
    if not found:
        raise InputError(
            f"{folder}: no campaign/{LEDGER} in it or below; give the folder of a campaign"
        )
    return found


def _rows(folder: Path) -> list[dict[str, Any]]:
    entries = Ledger(folder / "campaign" / LEDGER).entries
    runs = _runs(folder / "campaign" / RUNS)
    places = _planned_rows(folder / PLAN)
    files = {path.stem: path for path in sorted((folder / "trained").glob(f"*{SUFFIX}"))}
    rows = []
    for sae_id in dict.fromkeys([*entries, *files]):
        entry = entries.get(sae_id)
        row: dict[str, Any] = {
            "campaign": "",
            "folder": str(folder),
            "sae_id": sae_id,
            "status": "unfit" if entry is None else entry.status,
            **places.get(sae_id, {}),
        }
        path = files.get(sae_id)
        if path is not None:
            row |= _file_cells(path, sae_id, runs)
        if entry is not None:
            row |= {
                "attempts": entry.attempts,
                "device_seconds": entry.seconds,
                "cost": entry.cost,
                "reason": entry.reason or row.get("reason", ""),
            }
        rows.append(row)
    names = {row["campaign"] for row in rows} - {""}
    if len(names) == 1:
        # missing SAEs have no file with the name of the campaign
        (name,) = names
        rows = [{**row, "campaign": name} for row in rows]
    for path in sorted((folder / "campaign" / QUARANTINE).glob(f"*{SUFFIX}")):
        # names of files in quarantine end in the time of the move and a number
        sae_id = path.stem.rsplit(".", 2)[0]
        row = {"campaign": "", "folder": str(folder), "sae_id": sae_id, "status": "quarantined"}
        rows.append({**row, **places.get(sae_id, {}), **_file_cells(path, sae_id, runs)})
    return rows


def _planned_rows(plan: Path) -> dict[str, dict[str, Any]]:
    """Read the plan, if there is one, for SAEs that are not trained yet."""
    if not plan.is_file():
        return {}
    try:
        table = pd.read_parquet(plan)
        if "sae_id" not in table:
            raise ValueError("it has no column sae_id")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        logger.warning("%s cannot be read (%s); its columns are left out", plan, reason)
        return {}
    return {
        row["sae_id"]: {name: row[name] for name in KEPT_COLUMNS if name in row}
        for row in records(table)
    }


def _file_cells(
    path: Path, sae_id: str, runs: dict[tuple[str, str], dict[str, str]]
) -> dict[str, Any]:
    try:
        return _header_cells(path, sae_id, runs)
    except UNREADABLE as error:
        return {"reason": f"{type(error).__name__}: {error}", "path": str(path)}


def _header_cells(
    path: Path, sae_id: str, runs: dict[tuple[str, str], dict[str, str]]
) -> dict[str, Any]:
    header = read_header(path)
    provenance = header.get("provenance", {})
    about = dict(provenance.get("campaign", {}))
    cells: dict[str, Any] = {
        "campaign": about.get("name", ""),
        **{name: about[name] for name in (*KEPT_COLUMNS, "worker") if name in about},
    }
    for kind, values in (
        ("config", header.get("config", {})),
        ("training", provenance.get("training", {})),
        ("metric", header.get("metrics", {})),
    ):
        cells |= {
            f"{kind}.{name}": json.dumps(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    mine = identity(header)
    run = runs.get((sae_id, mine), {})
    return {
        **cells,
        "path": str(path),
        "run_id": run.get("run_id", ""),
        "tracking_uri": without_secrets(run.get("tracking_uri", "")),
        "identity": mine,
        "rows": provenance.get("rows", {}).get("fingerprint", ""),
        "finished": pd.Timestamp(about.get("finished", float("nan")), unit="s"),
        "version.husai": provenance.get("husai", ""),
        "version.torch": provenance.get("torch", ""),
    }


def _runs(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    # a damaged line is skipped; its run can still be found by the tags of the run
    return {
        (str(run["sae_id"]), str(run["identity"])): run
        for run in read_lines(path)
        if {"sae_id", "identity"} <= run.keys()
    }
