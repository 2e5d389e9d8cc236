"""Write and read files safely: whole or not at all, line by line, and tensors with a header.

Also the lock of a folder. Everything that the project writes to disk goes through these functions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from husai.errors import InputError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

HEADER_KEY = "husai"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it to ``path``.

    A reader sees the old file or the new one, never an incomplete one. On an exception the
    temporary file is removed and ``path`` does not change.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the permissions of an ordinary file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file; it is on disk when this returns.

    If a killed writer left the last line incomplete, only that line is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            line = f"\n{line}"
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file that has one on each line; none if there is no file.

    A line that is incomplete or not a JSON object is skipped with a warning.
    """
    content = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            yield entry
        else:
            logger.warning("%s: line %d cannot be read and is skipped", path, number)


def set_aside(path: Path, reason: object) -> None:
    """Rename a file that cannot be read, so that it is made again and nothing is overwritten."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    target = path.with_name(f"{path.name}.{stamp}.unreadable")
    path.replace(target)
    logger.warning("%s cannot be read (%s); it is renamed to %s", path, reason, target.name)


@contextmanager
def locked(folder: Path, what: str = "this campaign") -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends, even if killed.

    Raises
    ------
    InputError
        When another process or thread holds it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the holder is written to a second file: on some systems a locked file cannot be read
    holder = folder / "lock.holder"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        by = holder.read_text(errors="replace").strip() if holder.is_file() else ""
        raise InputError(
            f"{folder}: {by or 'another process'} works on {what}; wait until it ends, or use "
            "another data folder (HUSAI_DATA_DIR)"
        ) from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        holder.write_text(f"process {os.getpid()} on {platform.node()} since {since}\n")
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class TensorFile:
    """The content of one safetensors file: named tensors and a JSON header.

    Attributes
    ----------
    tensors
        Name to tensor.
    header
        Anything JSON can hold.
    """

    tensors: Mapping[str, torch.Tensor]
    header: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Serialise; tensors of any device or layout are stored contiguous."""
        return tensors_to_bytes(self.tensors, self.header)

    @classmethod
    def from_bytes(cls, content: bytes, origin: str) -> TensorFile:
        """Read what :meth:`to_bytes` wrote.

        Raises
        ------
        InputError
            When the content is incomplete or not of this format; the message names ``origin``.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        except (SafetensorError, ValueError) as error:
            raise InputError(f"{origin}: not a complete safetensors file ({error})") from error
        return cls(tensors, _parse_header(Path(origin), metadata))


TensorFiles = Mapping[str, Callable[[], TensorFile]]
"""The tensor files of a folder: name to a function that reads the file."""


def tensors_to_bytes(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> bytes:
    """Serialise tensors and a JSON header to the safetensors format."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, {HEADER_KEY: json.dumps(dict(header), sort_keys=True)})


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute a checksum of tensors, because safetensors files have none."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON header to a safetensors file, atomically.

    Parameters
    ----------
    path
        The file; its folder is made when missing.
    tensors
        Name to tensor, any device or layout; stored contiguous.
    header
        Anything JSON can hold; read back by :func:`read_header`.
    """
    data = tensors_to_bytes(tensors, header)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the header of a file written by :func:`write_tensors`.

    The tensors are copies in memory: later changes of the file do not change them.

    Raises
    ------
    InputError
        When the file is missing, incomplete, or not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    file = TensorFile.from_bytes(path.read_bytes(), origin=str(path))
    return dict(file.tensors), dict(file.header)


def read_header(path: str | Path) -> dict[str, Any]:
    """Read only the header of a file written by :func:`write_tensors`."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({error})") from error
    return _parse_header(path, metadata)


def _parse_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata.get(HEADER_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header is not a JSON object")
    return header
