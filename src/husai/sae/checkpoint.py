"""Checkpoints of a bank: everything that a resumed run needs to end with the same bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from husai.errors import InputError
from husai.storage import read_tensors, write_tensors

FILE_KIND = "husai.bank-checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """State of a bank after ``step`` steps.

    The order of the rows and the draws of resampling depend only on the seed and the step, so that
    no state of a random generator has to be stored.
    """

    step: int
    seconds: float
    bank: dict[str, torch.Tensor]
    records: list[list[dict[str, float]]]
    snapshots: list[dict[int, torch.Tensor]]
    pending: dict[str, torch.Tensor]
    """Sums of the losses since the last entry of the history."""
    pending_steps: int


def checkpoint_files(directory: Path) -> list[Path]:
    """List the checkpoints in a directory, oldest first."""
    return sorted(directory.glob("step_*.safetensors"))


def write_checkpoint(
    directory: Path, checkpoint: Checkpoint, identity: dict[str, Any], keep: int
) -> None:
    """Write a checkpoint atomically, then remove all but the newest ``keep``."""
    tensors = {f"bank.{name}": tensor for name, tensor in checkpoint.bank.items()}
    tensors |= {f"pending.{name}": tensor for name, tensor in checkpoint.pending.items()}
    columns: list[str] = []
    for index, records in enumerate(checkpoint.records):
        if records:
            columns = list(records[0])
            table = np.array([[entry[c] for c in columns] for entry in records])
            tensors[f"history.{index}"] = torch.from_numpy(table)
        for step, W_dec in checkpoint.snapshots[index].items():
            tensors[f"snapshot.{index}.{step}"] = W_dec
    header = {
        "kind": FILE_KIND,
        "step": checkpoint.step,
        "seconds": checkpoint.seconds,
        "pending_steps": checkpoint.pending_steps,
        "history_columns": columns,
        "identity": identity,
    }
    write_tensors(directory / f"step_{checkpoint.step:09d}.safetensors", tensors, header)
    for old in checkpoint_files(directory)[:-keep]:
        old.unlink(missing_ok=True)


def read_latest(directory: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the newest checkpoint in a directory; ``None`` if there is none.

    Raises
    ------
    InputError
        When it is of other rows, SAEs or training parameters; the message says what differs.
    """
    files = checkpoint_files(directory)
    if not files:
        return None
    path = files[-1]
    tensors, header = read_tensors(path)
    if header.get("kind") != FILE_KIND:
        raise InputError(f"{path}: not a checkpoint of a bank; use another checkpoint directory")
    differing = _differences(header["identity"], json.loads(json.dumps(identity)))
    if differing:
        raise InputError(
            f"{path}: checkpoint of another run ({'; '.join(differing[:3])}); "
            "use another checkpoint directory or remove this one"
        )
    n = len(identity["configs"])
    columns = header["history_columns"]
    records: list[list[dict[str, float]]] = [
        [dict(zip(columns, row, strict=True)) for row in tensors[f"history.{index}"].tolist()]
        if f"history.{index}" in tensors
        else []
        for index in range(n)
    ]
    snapshots: list[dict[int, torch.Tensor]] = [{} for _ in range(n)]
    bank, pending = {}, {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "bank":
            bank[rest] = tensor
        elif kind == "pending":
            pending[rest] = tensor
        elif kind == "snapshot":
            index, _, step = rest.partition(".")
            snapshots[int(index)][int(step)] = tensor
    snapshots = [dict(sorted(kept.items())) for kept in snapshots]
    return Checkpoint(
        step=header["step"],
        seconds=header["seconds"],
        bank=bank,
        records=records,
        snapshots=snapshots,
        pending=pending,
        pending_steps=header["pending_steps"],
    )


ADDED_FIELDS = {"baseline": "none"}
"""Fields of an SAE's configuration that older checkpoints do not have, and their values there."""


def _differences(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    found = []
    if theirs["rows"] != mine["rows"]:
        found.append(f"rows {theirs['rows']} there, {mine['rows']} now")
    for name in sorted(theirs["training"].keys() | mine["training"].keys()):
        a, b = theirs["training"].get(name), mine["training"].get(name)
        if a != b:
            found.append(f"training.{name} {a} there, {b} now")
    if len(theirs["configs"]) != len(mine["configs"]):
        found.append(f"{len(theirs['configs'])} SAEs there, {len(mine['configs'])} now")
        return found
    for index, (a, b) in enumerate(zip(theirs["configs"], mine["configs"], strict=True)):
        found += [
            f"configs[{index}].{name} {a.get(name)} there, {b.get(name)} now"
            for name in sorted(a.keys() | b.keys())
            if a.get(name, ADDED_FIELDS.get(name)) != b.get(name)
        ]
    return found
