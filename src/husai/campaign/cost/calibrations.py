"""Measured costs of banks, in a file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from husai.campaign.banks import Bank
from husai.campaign.executors.tasks import Calibration
from husai.storage import atomic_path


class Calibrations:
    """Measured costs of banks, kept in a file so that no shape is measured twice.

    Parameters
    ----------
    path
        A JSON file.
    backend, devices
        Of the executor: measurements with one do not hold for another.
    """

    def __init__(self, path: Path, backend: str, devices: float) -> None:
        self._path = path
        self._where = [platform.node(), os.cpu_count(), backend, devices]
        self._known: dict[str, dict[str, float]] = {}
        # none yet, or torn: they are measured again
        with suppress(OSError, ValueError):
            self._known = json.loads(path.read_text())

    def get(self, bank: Bank) -> Calibration | None:
        """Give what was measured for a bank of this shape and size, or None."""
        found = self._known.get(self.key(bank))
        return None if found is None else Calibration(**found)  # type: ignore[arg-type]

    def put(self, bank: Bank, calibration: Calibration) -> None:
        """Keep what was measured."""
        self._known[self.key(bank)] = asdict(calibration)
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps(self._known, indent=1, sort_keys=True))

    def took(self, bank: Bank, seconds: float, peak_bytes: int) -> None:
        """Keep the time of a bank that was trained from its first step to its last.

        It is better than an estimate from the first steps: SAEs get faster as they get sparse.
        """
        self.put(bank, Calibration(0.0, seconds / bank.training.steps, 0.0, peak_bytes))

    def key(self, bank: Bank) -> str:
        """Digest of what a bank's cost depends on."""
        training = bank.training.model_dump(mode="json", exclude={"steps", "eval_interval"})
        per_sae = sorted(
            json.dumps(c.model_dump(mode="json", exclude={"init_seed", "data_seed"}))
            for c in bank.configs
        )
        content = json.dumps([self._where, training, per_sae, bank.rows.d_in, bank.rows.n_rows])
        return hashlib.sha256(content.encode()).hexdigest()[:16]
