"""The folder in which worker processes find the rows they train on."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "husai-rows-"
LOCK = "lock"


class RowsFolder:
    """A temporary folder that is this process's own until it is closed.

    It is removed then. What a killed process left behind the next one removes: the system gives
    back the lock in a folder whatever ends its process.
    """

    def __init__(self) -> None:
        remove_abandoned()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = (self.path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # another process may have come between, and taken it for abandoned
            if (self.path / LOCK).exists():
                return
            self._lock.close()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_abandoned() -> None:
    """Remove the folders whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # another user's, one without a lock, or one that its process is just removing
        with suppress(OSError), (folder / LOCK).open("r+") as file:
            # one that is in use refuses at once
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
