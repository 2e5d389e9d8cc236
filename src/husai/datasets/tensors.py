"""The dataset of tensors with a header in one safetensors file, versioned, on any file system."""

from __future__ import annotations

from copy import deepcopy
from pathlib import PurePosixPath
from typing import Any

import fsspec
from kedro.io.core import AbstractVersionedDataset, Version, get_filepath_str, get_protocol_and_path
from kedro_datasets._typing import TablePreview

from husai.storage import TensorFile, atomic_path


class TensorDataset(AbstractVersionedDataset[TensorFile, TensorFile]):
    """Saves and loads a :class:`husai.storage.TensorFile`.

    Nothing is pickled. On a local disk a file is never left incomplete; on other file systems it
    is written in one call.

    Parameters
    ----------
    filepath
        Path or URL of the file.
    version
        Given by Kedro for versioned entries.
    credentials, fs_args
        Options of ``fsspec.filesystem``.
    metadata
        Not used here; layers and tracking read it.
    """

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        credentials: dict[str, Any] | None = None,
        fs_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        protocol, path = get_protocol_and_path(filepath, version)
        self._protocol = protocol
        self._fs = fsspec.filesystem(protocol, **deepcopy(credentials or {}), **(fs_args or {}))
        self.metadata = metadata
        super().__init__(
            filepath=PurePosixPath(path),
            version=version,
            exists_function=self._fs.exists,
            glob_function=self._fs.glob,
        )

    def load(self) -> TensorFile:
        """Read the file; a damaged one, or one of another kind, raises ``InputError``."""
        path = get_filepath_str(self._get_load_path(), self._protocol)
        with self._fs.open(path, "rb") as file:
            return TensorFile.from_bytes(file.read(), origin=path)

    def save(self, data: TensorFile) -> None:
        """Write the file."""
        path = get_filepath_str(self._get_save_path(), self._protocol)
        content = data.to_bytes()
        if self._protocol == "file":
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        else:
            self._fs.makedirs(self._fs._parent(path), exist_ok=True)
            self._fs.pipe_file(path, content)
        self._invalidate_cache()

    def preview(self) -> TablePreview:
        """List the tensors and the header for Kedro-Viz."""
        data = self.load()
        rows: list[list[Any]] = [
            [name, str(list(tensor.shape)), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in sorted(data.tensors.items())
        ]
        rows += [[f"header: {key}", str(value)[:200], ""] for key, value in data.header.items()]
        return TablePreview(
            {
                "index": list(range(len(rows))),
                "columns": ["tensor", "shape or value", "dtype"],
                "data": rows,
            }
        )

    def _describe(self) -> dict[str, Any]:
        return {
            "filepath": self._filepath,
            "protocol": self._protocol,
            "version": self._version,
        }

    def _exists(self) -> bool:
        try:
            path = get_filepath_str(self._get_load_path(), self._protocol)
        except Exception:  # Kedro raises its own error when no version is there yet
            return False
        return bool(self._fs.exists(path))

    def _invalidate_cache(self) -> None:
        self._fs.invalidate_cache(get_filepath_str(self._filepath, self._protocol))
