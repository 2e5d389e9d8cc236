"""The MLflow run of a session, for those who record something of it."""

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
        Carries out what is recorded of it.
    id
        Of the run.
    experiment
        Id of its experiment.
    """

    recorder: Recorder
    id: str
    experiment: str

    def do(self, operation: str, payload: bytes | None = None, /, **fields: Any) -> bool:
        """Have something recorded of this run: see :meth:`Recorder.do`."""
        return self.recorder.do(operation, self.id, payload, **fields)
