"""Read files that other programs wrote; any failure is an error of one line with the file's name.

No function here runs code from a file. No memory is allocated before the size that a file claims
has been compared with the size that it has.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from husai.errors import InputError

if TYPE_CHECKING:
    import torch

LARGEST_JSON = 16 * 2**20
"""Size in bytes of the largest configuration file that is read."""

MOST_DEFLATED = 64
"""Largest ratio of unpacked to packed size of an archive: numbers do not compress further."""

ALWAYS_UNPACKED = 64 * 2**20
"""Unpacked size in bytes that every archive may have, however small it is."""

REAL_KINDS = "fiu"
"""Kinds of NumPy dtypes that are real numbers; timedelta64 and complex are not."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Terminal codes for bold text, which torch's errors contain."""

_LFS = b"version https://git-lfs.github.com/spec/"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any failure inside into an `InputError` of one line that names ``path``.

    Raises
    ------
    InputError
        Instead of any other exception.
    """
    try:
        yield
    except InputError as error:
        if path.name in str(error):
            raise
        raise InputError(f"{path}: {_one_line(error)}") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be read; check the file") from error
    except MemoryError as error:
        raise InputError(f"{path}: does not fit in memory") from error
    except Exception as error:
        raise InputError(
            f"{path}: incomplete or of another format ({type(error).__name__}: {_one_line(error)})"
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(_COLOURS.sub("", str(error)).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def check_file(path: Path) -> int:
    """Size in bytes of a regular file that is not a Git LFS pointer.

    Raises
    ------
    InputError
        When there is none, it is empty, or only its pointer was downloaded.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise InputError(f"{path}: not a file; give the path of a file")
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        raise InputError(
            f"{path}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its repository"
        )
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path}: empty; copy or download it again")
    return size


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        When it is missing, too large, or not a JSON object.
    """
    with reading(path):
        if check_file(path) > LARGEST_JSON:
            raise InputError(
                f"{path}: larger than {LARGEST_JSON} bytes, too large for a configuration"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({_one_line(error)})") from error
        if not isinstance(data, dict):
            raise InputError(f"{path}: not a JSON object")
        return data


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read every tensor of a safetensors file, and its metadata.

    The library compares the header's sizes with the file before it allocates.

    Raises
    ------
    InputError
        When it is missing or not a complete safetensors file.
    """
    from safetensors import safe_open

    with reading(path):
        check_file(path)
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # a tensor whose type torch does not know is an error only when it is used
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def safetensors_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Shapes of the tensors of a safetensors file and its metadata, without reading the tensors.

    Raises
    ------
    InputError
        As :func:`read_safetensors`.
    """
    from safetensors import safe_open

    with reading(path):
        check_file(path)
        with safe_open(str(path), framework="pt") as file:
            shapes = {
                name: list(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118
            }
            return shapes, dict(file.metadata() or {})


def read_pt(path: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote, with ``weights_only``: tensors and plain values, never code.

    A bare tensor is given under the name ``tensor``.

    Raises
    ------
    InputError
        When it is missing or incomplete, holds anything but tensors and plain values, or would
        need more memory than the file has bytes.
    """
    import torch

    with reading(path):
        size = check_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch never compresses
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > size:
                raise InputError(
                    f"{path}: would unpack from {size:,} to {unpacked:,} bytes; torch.save does "
                    "not write such files"
                )
        data = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(data, torch.Tensor):
            data = {"tensor": data}
        if not isinstance(data, Mapping):
            raise InputError(f"{path}: holds {type(data).__name__}, not a dictionary of tensors")
        content = {str(name): value for name, value in data.items()}
        for name, value in content.items():
            if isinstance(value, torch.Tensor):
                _check_storage(path, name, value, size)
        return content


def _check_storage(path: Path, name: str, tensor: torch.Tensor, size: int) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputError(f"{path}: {name} is not a plain dense tensor")
    # with strides of 0, a few bytes can claim to be a tensor of any size
    if tensor.numel() * tensor.element_size() > size:
        raise InputError(
            f"{path}: {name} {tuple(tensor.shape)} needs more bytes than the file has ({size:,})"
        )


def read_npy(path: Path) -> NDArray[Any]:
    """Read a ``.npy`` array, memory-mapped.

    Raises
    ------
    InputError
        When it is missing, incomplete, or holds Python objects.
    """
    with reading(path):
        size = check_file(path)
        with path.open("rb") as file:
            _check_npy(path, path.name, file, size)
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a ``.npz`` archive.

    Raises
    ------
    InputError
        When it is missing, incomplete, holds Python objects, or unpacks to far too many bytes.
    """
    with reading(path):
        size = check_file(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(ALWAYS_UNPACKED, MOST_DEFLATED * size):
                raise InputError(
                    f"{path}: would unpack from {size:,} to {unpacked:,} bytes; numbers do not "
                    "compress so well"
                )
            for member in members:
                with archive.open(member) as file:
                    _check_npy(path, member.filename, file, member.file_size)  # type: ignore[arg-type]
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _check_npy(path: Path, name: str, file: BinaryIO, size: int) -> None:
    """Compare the shape that the header of an array claims with the bytes that follow."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise InputError(f"{path}: {name} holds Python objects, which are not read")
    if math.prod(shape) * dtype.itemsize > size:
        raise InputError(f"{path}: {name} {shape} needs more bytes than it has ({size:,})")


def real_tensor(path: Path, name: str, array: NDArray[Any]) -> torch.Tensor:
    """Convert a NumPy array of real numbers to a tensor.

    Raises
    ------
    InputError
        When it holds anything else: complex numbers, times, text.
    """
    import torch

    if array.dtype.kind not in REAL_KINDS:
        raise InputError(f"{path}: {name} holds {array.dtype}; give real numbers")
    # torch has no longdouble, and no unsigned or byte-swapped numbers
    wide = np.float32 if array.dtype.itemsize <= 4 and array.dtype.kind == "f" else np.float64
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, dtype=wide))


class Settings:
    """Values of a configuration that another project wrote, checked for their type when read.

    Parameters
    ----------
    path
        Its file, for errors.
    data
        Its content.
    """

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path, self.data = path, data

    @classmethod
    def of(cls, path: Path) -> Settings:
        """Read the settings from a JSON file."""
        return cls(path, read_json(path))

    def __contains__(self, name: str) -> bool:
        return self.data.get(name) is not None

    def bad(self, name: str, want: str) -> InputError:
        """Make the error for a wrong value."""
        return InputError(f"{self.path}: {name}: {self.data.get(name)!r}; expected {want}")

    def group(self, name: str) -> Settings:
        """Return a nested object; empty if it is missing."""
        value = self.data.get(name)
        if value is None:
            return Settings(self.path, {})
        if not isinstance(value, Mapping):
            raise self.bad(name, "an object")
        return Settings(self.path, value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value; words and numbers are refused."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def whole(self, name: str) -> int | None:
        """Return a whole number above 0; ``4.0`` is one."""
        value = self.number(name)
        if value is None:
            return None
        if value <= 0 or value != int(value):
            raise self.bad(name, "a whole number above 0")
        return int(value)

    def number(self, name: str) -> float | None:
        """Return a finite number."""
        value = self.data.get(name)
        if value is None:
            return None
        # in Python, True is a number
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, "a number")
        try:
            found = float(value)
        except OverflowError as error:
            raise self.bad(name, "a finite number") from error
        if not math.isfinite(found):
            raise self.bad(name, "a finite number")
        return found

    def text(self, name: str) -> str | None:
        """Return a text."""
        value = self.data.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.bad(name, "text")
        return value

    def first_text(self, *names: str) -> str | None:
        """Return the text under the first of these names that exists."""
        return next((self.text(name) for name in names if name in self), None)

    def agrees(self, name: str, found: int) -> None:
        """Compare a stated size with the size of the tensors.

        Raises
        ------
        InputError
            When they differ.
        """
        stated = self.whole(name)
        if stated is not None and stated != found:
            raise InputError(f"{self.path}: {name} {stated}, but the tensors have {found}")
