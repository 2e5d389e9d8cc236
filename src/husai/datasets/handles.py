"""A folder that a node works in, handed over as a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError


class DirectoryHandle(AbstractDataset[NoReturn, Path]):
    """Give a node the path of a folder, made when missing.

    A checkpoint store is read and written while its node runs, which no Kedro dataset may be;
    so the node gets the folder itself.

    Parameters
    ----------
    path
        The folder, on a local or mounted disk.
    metadata
        Ignored here; layers and tracking read it.
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
        """Refuse: a handle is only ever an input."""
        raise DatasetError(f"{self._path}: a directory handle cannot be a node's output")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"path": str(self._path)}
