"""The store of trained SAEs: reads their files, checks them against the plan, moves out misfits."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from husai import __version__
from husai.errors import InputError
from husai.sae.config import NEUTRAL_FIELDS, BankTrainingConfig, SAEConfig
from husai.storage import read_tensors

if TYPE_CHECKING:
    from husai.sae import TrainedSAE

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""Errors raised by a file that is damaged, of another kind, or lacks a part of its header."""


def difference(
    sae: TrainedSAE, config: SAEConfig, training: BankTrainingConfig, fingerprint: str
) -> str | None:
    """Return how an SAE differs from the result of this configuration on these rows, or None."""
    provenance = sae.provenance
    if sae.config != config:
        return "its configuration is not that of the plan"
    theirs = dict(provenance.get("training", {}))
    for name in NEUTRAL_FIELDS:
        theirs.pop(name, None)
    mine = training.decisive()
    if theirs != mine:
        names = sorted(n for n in mine.keys() | theirs.keys() if theirs.get(n) != mine.get(n))
        return f"it was trained with other settings ({', '.join(names)})"
    if provenance.get("rows", {}).get("fingerprint") != fingerprint:
        return "it was trained on other rows"
    if provenance.get("husai") != __version__:
        return f"it was trained by version {provenance.get('husai')}"
    return None


def about_campaign(sae: TrainedSAE) -> dict[str, Any]:
    """Return what an SAE's file says about the campaign that trained it; empty without one."""
    return dict(sae.provenance.get("campaign") or {})


def identity(header: Mapping[str, Any]) -> str:
    """Sixteen hex digits of all that an SAE depends on: configuration, training, rows, version."""
    provenance = header.get("provenance", {})
    training = {
        name: value
        for name, value in provenance.get("training", {}).items()
        if name not in NEUTRAL_FIELDS
    }
    content = [
        header.get("config"),
        training,
        provenance.get("rows", {}).get("fingerprint"),
        provenance.get("husai"),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The folder of the SAEs' files, ``<sae_id>.safetensors``, and the quarantine.

    Parameters
    ----------
    folder
        Folder of the SAEs.
    quarantine
        Folder to which files that are damaged or do not fit the plan are moved.
    """

    def __init__(self, folder: Path, quarantine: Path) -> None:
        self.folder = folder
        self.quarantine = quarantine

    def look(
        self, sae_id: str, config: SAEConfig, training: BankTrainingConfig, fingerprint: str
    ) -> tuple[TrainedSAE | None, str | None]:
        """Return the SAE of this name, or None and what is wrong with its file (None: no file)."""
        from husai.sae.trained import from_tensors

        path = self.folder / f"{sae_id}{SUFFIX}"
        if not path.is_file():
            return None, None
        try:
            tensors, header = read_tensors(path)
            sae = from_tensors(tensors, header, str(path))
            problem = difference(sae, config, training, fingerprint)
        except InputError as error:
            problem = str(error).removeprefix(f"{path}: ")
        except UNREADABLE as error:
            problem = f"it cannot be read as an SAE ({type(error).__name__}: {error})"
        return (sae, None) if problem is None else (None, problem)

    def move_out(self, sae_id: str) -> Path:
        """Move a file that is damaged or does not fit the plan to the quarantine.

        So no result is overwritten. Returns the new path.
        """
        path = self.folder / f"{sae_id}{SUFFIX}"
        self.quarantine.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        for number in range(1000):
            target = self.quarantine / f"{path.stem}.{stamp}.{number}{path.suffix}"
            if not target.exists():
                path.replace(target)
                return target
        raise InputError(f"{self.quarantine}: too many files of {path.stem}; remove old ones")


def remove_leftovers(folder: Path) -> None:
    """Remove incomplete files of killed processes; the caller must hold the lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
