"""The folder in which worker processes find the rows they train on."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "husai-rows-"
LOCK = "lock"


class RowsFolder:
    """A temporary folder that is this process's own until it is closed.

    It is removed then. The folder of a killed process is removed by the next process: the system
    releases the lock in a folder however its process ends.
    """

    def __init__(self) -> None:
        remove_abandoned()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = FileLock(self.path / LOCK)
            # another process may come between, and take it for abandoned
            with suppress(FileNotFoundError):
                self._lock.acquire()
                if (self.path / LOCK).exists():
                    return
                self._lock.release()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()


def remove_abandoned() -> None:
    """Remove the folders whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # one without a lock is another process's that is just making or removing it
        if not (folder / LOCK).is_file():
            continue
        # another user's, or one in use, which refuses at once
        with suppress(OSError, Timeout), FileLock(folder / LOCK, blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
