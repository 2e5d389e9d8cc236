"""The temporary folder of files with training rows, which worker processes read."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "husai-rows-"
LOCK = "lock"


class RowsFolder:
    """A temporary folder of this process, removed by :meth:`close`.

    The folder of a killed process is removed by the next process that makes one: the system
    releases the lock in the folder however its process ends.
    """

    def __init__(self) -> None:
        remove_abandoned()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = FileLock(self.path / LOCK)
            # before it is locked, another process may remove it as abandoned; then make a new one
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
        # a folder without a lock file is just being made or removed by another process
        if not (folder / LOCK).is_file():
            continue
        # the folder of another user, or one in use, cannot be locked and stays
        with suppress(OSError, Timeout), FileLock(folder / LOCK, blocking=False):
            shutil.rmtree(folder, ignore_errors=True)
