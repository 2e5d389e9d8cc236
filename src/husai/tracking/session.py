"""The open MLflow run of a session, with the recorder that writes to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from husai.tracking.recorder import Recorder


@dataclass(frozen=True)
class TrackedRun:
    """A session's open run.

    Attributes
    ----------
    recorder
        Does the operations.
    id
        Id of the run.
    experiment
        Id of its experiment.
    """

    recorder: Recorder
    id: str
    experiment: str

    def do(self, operation: str, payload: bytes | None = None, /, **fields: Any) -> bool:
        """Do an operation for this run: see :meth:`Recorder.do`."""
        return self.recorder.do(operation, self.id, payload, **fields)
