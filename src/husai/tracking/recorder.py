"""Sends records to the tracking server, or keeps them on disk while the server is away.

Every operation is plain data and may be done again: parameters are the same, metrics have the time
at which they were measured, an SAE's run is found by its tags. While the server is away, operations
are written to a folder; they are done in order when it is back, in this session or in the next.
For an SAE only the path of its file is kept; the rest is read from the file. Operations that a
server refuses are kept in ``rejected.jsonl``.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from husai.provenance import without_secrets
from husai.storage import append_line, atomic_path
from husai.tracking import operations, sae_runs
from husai.tracking.servers import ENVIRONMENT, is_away, what_it_said

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""Seconds after which a server that did not answer is tried again."""

Operation = Callable[..., None]
OPERATIONS: dict[str, Operation] = {
    "params": operations.log_params,
    "metrics": operations.log_metrics,
    "tags": operations.set_tags,
    "file": operations.log_file,
    "table": operations.log_table,
    "dataset": operations.log_dataset,
    "model": operations.log_model,
    "end": operations.end_run,
    "sae": sae_runs.log_sae,
    "sae_results": sae_runs.log_results,
    "register": sae_runs.register_sae,
    "adopt": sae_runs.adopt_sae,
}


def hide_secrets(values: Any) -> Any:
    """Apply :func:`husai.provenance.without_secrets` to every string in nested data."""
    if isinstance(values, str):
        return without_secrets(values)
    if isinstance(values, Mapping):
        return {name: hide_secrets(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [hide_secrets(value) for value in values]
    return values


class Recorder:
    """Does operations now, or keeps them for later. Several threads may use it.

    Parameters
    ----------
    uri
        URI of the tracking store.
    spool
        Folder for operations that could not be done: ``operations.jsonl`` has those that wait for
        the store, ``rejected.jsonl`` those that the store refused.
    """

    def __init__(self, uri: str, spool: Path) -> None:
        from mlflow import MlflowClient

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.uri = uri
        self.address = without_secrets(uri)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._spool = spool
        self._lock = FileLock(spool / "lock")
        self._journal = spool / "operations.jsonl"
        self._rejected = spool / "rejected.jsonl"
        self._away_since: float | None = None
        self._warned = ""
        self._one_at_a_time = threading.RLock()

    def do(self, name: str, run_id: str, payload: bytes | None = None, /, **fields: Any) -> bool:
        """Do an operation of :data:`OPERATIONS`, now or when the server is back.

        An error of the store is never raised, so that it cannot end a training.

        Returns
        -------
        bool
            False when the operation was lost, or refused by the store.
        """
        if name != "metrics":  # these are numbers and have no secrets
            fields = hide_secrets(fields)
        operation = {"uri": self.address, "name": name, "run_id": run_id, "fields": fields}
        with self._one_at_a_time:
            try:
                if self._may_try() and self.flush():
                    try:
                        OPERATIONS[name](self, run_id, payload, **fields)
                        return True
                    except Exception as error:
                        if not is_away(error):
                            self._reject(operation, payload, error)
                            return False
                        self._mark_away(error)
                self._keep(operation, payload)
            except Exception as error:  # a full disk, for example
                logger.error("%s is not recorded: %s: %s", name, self._spool, _first_line(error))
                return False
        return True

    def flush(self) -> bool:
        """Do the operations that were kept; False when the server is still away."""
        with self._one_at_a_time:
            if self._journal.is_file():
                with self._lock:  # another process may have sent it meanwhile
                    if self._journal.is_file() and not self._send():
                        return False
            self._away_since = None
        return True

    def close(self) -> None:
        """Try once more, and warn if operations remain."""
        try:
            if self.flush():
                return
            kept = len(self._journal.read_text().splitlines())
        except OSError as error:
            logger.error("%s: %s", self._spool, error)
            return
        logger.warning(
            "the tracking server is away: %d records stay in %s and are sent by the next run",
            kept,
            self._spool,
        )

    def _send(self) -> bool:
        """Do the operations of the journal; False when the server went away during this."""
        lines = self._journal.read_text(errors="replace").splitlines()
        kept: list[str] = []
        payloads: list[Path] = []
        sent, away = 0, False
        for line in lines:
            try:
                operation = json.loads(line)
                uri, name = operation["uri"], operation["name"]
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: an incomplete line is skipped", self._journal)
                continue
            if away or without_secrets(uri) != self.address:
                kept.append(line)
                continue
            payload = None
            try:
                if "payload" in operation:
                    payload = (self._spool / operation["payload"]).read_bytes()
                OPERATIONS[name](self, operation["run_id"], payload, **operation["fields"])
                sent += 1
            except Exception as error:
                if is_away(error):
                    self._mark_away(error)
                    away = True
                    kept.append(line)
                    continue
                # a refused operation must not keep the others waiting
                self._reject(operation, payload, error)
            if "payload" in operation:
                payloads.append(self._spool / operation["payload"])
        if not kept:
            self._journal.unlink()
            payloads = list(self._spool.glob("*.payload"))
        elif len(kept) < len(lines):
            with atomic_path(self._journal) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))
        for path in payloads:
            path.unlink(missing_ok=True)
        if sent:
            logger.info("%d records were sent to the tracking server", sent)
        return not away

    def _may_try(self) -> bool:
        return self._away_since is None or time.monotonic() - self._away_since > RETRY_SECONDS

    def _mark_away(self, error: BaseException) -> None:
        said = what_it_said(error)
        if self._away_since is None or said != self._warned:
            logger.warning(
                "the tracking server %s (%s): training continues, records are kept in %s",
                said,
                _first_line(error),
                self._spool,
            )
        self._warned = said
        self._away_since = time.monotonic()

    def _keep(self, operation: dict[str, Any], payload: bytes | None) -> None:
        self._spool.mkdir(parents=True, exist_ok=True)
        with self._lock:
            content = {**operation, **self._write_payload(payload, "payload")}
            append_line(self._journal, json.dumps(content))

    def _reject(
        self, operation: dict[str, Any], payload: bytes | None, error: BaseException
    ) -> None:
        logger.error(
            "the tracking server refuses %s of run %s: %s; it is kept in %s",
            operation["name"],
            operation["run_id"],
            _first_line(error),
            self._rejected,
        )
        rejection = {
            "error": without_secrets(f"{type(error).__name__}: {error}"),
            "time": time.time(),
        }
        content = {**operation, **self._write_payload(payload, "rejected"), **rejection}
        append_line(self._rejected, json.dumps(content))

    def _write_payload(self, payload: bytes | None, suffix: str) -> dict[str, str]:
        """Write a payload into the spool; return the field with the name of its file."""
        if payload is None:
            return {}
        self._spool.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=self._spool, suffix=f".{suffix}")
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(descriptor)
        return {"payload": Path(path).name}


def _first_line(error: BaseException) -> str:
    lines = without_secrets(str(error)).splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def now() -> int:
    """Return the time in milliseconds, as MLflow needs it."""
    return int(time.time() * 1000)
