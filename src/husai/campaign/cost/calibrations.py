"""The file with the measured costs of banks."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from husai.campaign.banks import Bank
from husai.campaign.executors.outcomes import Calibration
from husai.campaign.executors.tasks import load_per_core
from husai.storage import atomic_path, set_aside


class Calibrations:
    """Measured costs of banks, kept in a file so that no shape is measured twice.

    Parameters
    ----------
    path
        A JSON file.
    backend, devices
        Backend and devices of the executor; measurements with one do not hold for another.
    forget
        Whether to ignore earlier measurements; each stays in the file until it is replaced.
    """

    def __init__(self, path: Path, backend: str, devices: float, *, forget: bool = False) -> None:
        self._path = path
        self._where = [platform.node(), os.cpu_count(), backend, devices]
        self._known = _read(path)
        self._forgotten = set(self._known) if forget else set()

    def get(self, bank: Bank) -> Calibration | None:
        """Return the measured cost of a bank of this shape and size, or None."""
        key = self.key(bank)
        return None if key in self._forgotten else self._known.get(key)

    def put(self, bank: Bank, calibration: Calibration) -> None:
        """Store the measured cost of a bank."""
        key = self.key(bank)
        self._known[key] = calibration
        self._forgotten.discard(key)
        content = {known: asdict(each) for known, each in self._known.items()}
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True))

    def took(self, bank: Bank, seconds: float, peak_bytes: int) -> None:
        """Store the time of a bank that was trained from its first step to its last.

        It is better than an estimate from the first steps, since SAEs become faster as they
        become sparse.
        """
        self.put(
            bank,
            Calibration(0.0, seconds / bank.training.steps, 0.0, peak_bytes, load=load_per_core()),
        )

    def key(self, bank: Bank) -> str:
        """Digest of everything that a bank's cost depends on."""
        training = bank.training.model_dump(mode="json", exclude={"steps", "eval_interval"})
        per_sae = sorted(
            json.dumps(c.model_dump(mode="json", exclude={"init_seed", "data_seed"}))
            for c in bank.configs
        )
        content = json.dumps([self._where, training, per_sae, bank.rows.d_in, bank.rows.n_rows])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Calibration]:
    """Read measured costs; a file with anything else is renamed, and they are measured again."""
    try:
        return TypeAdapter(dict[str, Calibration]).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        set_aside(path, error.errors(include_url=False)[0]["msg"])
        return {}
