"""The dataset of a folder that a node reads and writes itself; the node gets its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError


class DirectoryHandle(AbstractDataset[NoReturn, Path]):
    """Gives a node the path of a folder, which is made if it is missing.

    A folder of checkpoints is read and written while its node runs. A Kedro dataset is read before
    and written after a node, so the node gets the folder itself.

    Parameters
    ----------
    path
        The folder, on a local or mounted disk.
    metadata
        Not used here; layers and tracking read it.
    """

    def __init__(self, *, path: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._path = Path(path)
        self.metadata = metadata

    def load(self) -> Path:
        """Return the folder's path."""
        self._path.mkdir(parents=True, exist_ok=True)
        return self._path

    def save(self, data: NoReturn) -> None:
        """Raise an error: a handle can only be an input."""
        raise DatasetError(f"{self._path}: a directory handle cannot be a node's output")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}
