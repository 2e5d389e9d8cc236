"""Makes MLflow's SQLite file so that it is never left incomplete.

MLflow makes its tables by about seventy migrations of the file. If a process is killed during
these, or two processes do them at once, MLflow can never open the file again. Here the file is
made under a lock, with a temporary name, and renamed when it is complete.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock

from husai.storage import atomic_path

logger = logging.getLogger(__name__)

WHOLE = 1
"""SQLite's ``user_version`` of a complete file; it is 0 in a file that MLflow made."""

LOCKED_SECONDS = 60.0
"""Seconds to wait for a file that another process writes to."""

BROKEN = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""SQLite's errors when a table does not exist, or the file is not a database."""

JOURNALS = ("-journal", "-wal", "-shm")


def prepare_sqlite(path: Path, artifacts: str) -> None:
    """Make MLflow's SQLite file if there is none, and replace one that is incomplete.

    An incomplete file with runs is renamed, never deleted.

    Parameters
    ----------
    path
        The file.
    artifacts
        URI of the folder for the artifacts of MLflow's own default experiment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.exists():
            if _read(path, "PRAGMA user_version") == WHOLE:
                return
            if _is_complete(path):
                _mark_whole(path)
                return
            _put_aside(path)
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed start
            leftover.unlink()
        with atomic_path(path) as temporary:
            _create(temporary, artifacts)
            _mark_whole(temporary)


def _create(path: Path, artifacts: str) -> None:
    """Let MLflow make its tables in a new file; without syncs, as it is renamed only at the end."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def without_syncs(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", without_syncs)
    try:
        store = SqlAlchemyStore(f"sqlite:///{path}", artifacts)
        store.engine.dispose()
    finally:
        event.remove(Engine, "connect", without_syncs)


def _is_complete(path: Path) -> bool:
    """Whether all migrations were done in a file that MLflow made itself."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    migrations = Path(utils.__file__).parents[1] / "db_migrations"
    last = ScriptDirectory(str(migrations)).get_current_head()
    return bool(_read(path, "SELECT version_num FROM alembic_version") == last)


def _put_aside(path: Path) -> None:
    """Rename an incomplete file; delete it if it has no runs."""
    parts = [
        part for name in ("", *JOURNALS) if (part := path.with_name(path.name + name)).exists()
    ]
    is_database = _read(path, "PRAGMA schema_version") is not None
    if is_database and not _read(path, "SELECT count(*) FROM runs"):
        logger.warning("%s is incomplete, as its first start was killed: it is made again", path)
        for part in parts:
            part.unlink()
        return
    aside = f"{path.name}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    for part in parts:
        part.rename(path.with_name(part.name.replace(path.name, aside, 1)))
    logger.warning(
        "%s does not have all tables of this MLflow: it is kept as %s and a new one is made. If "
        "an older MLflow wrote it, this makes it readable: mlflow db upgrade sqlite:///%s",
        path,
        aside,
        path.with_name(aside),
    )


def _mark_whole(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {WHOLE}")


def _read(path: Path, query: str) -> Any:
    """Return the first value that a query finds; None without the table or the database."""
    try:
        with closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as connection:
            found = connection.execute(query).fetchone()
    except sqlite3.DatabaseError as error:
        # a locked database or a failing disk does not mean that the file is incomplete
        if error.sqlite_errorcode & 0xFF not in BROKEN:
            raise
        return None
    return None if found is None else found[0]
