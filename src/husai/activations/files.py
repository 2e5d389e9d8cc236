"""Rows of activations in the files that people bring, with the labels beside them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_NAMES = ("activations", "rows", "acts", "x", "hidden_states", "embeddings", "vectors")
"""Names of the rows in a file that holds several arrays, in order of preference."""

BLOCK_ROWS = 65_536
"""Rows checked at a time, so that a memory-mapped file is never held whole."""


class RowsFile(NamedTuple):
    """Rows read from a file.

    Attributes
    ----------
    values
        ``[n, d]``, float32, float16 or float64, finite; memory-mapped where the format allows it.
    labels
        ``n`` rows: the integer and float columns (labels, token ids) that the file holds beside
        them; without columns where it holds none.
    """

    values: NDArray[Any]
    labels: pd.DataFrame


def read_rows(path: str | Path) -> RowsFile:
    """Read rows of activations and the numbers that stand beside them.

    Parameters
    ----------
    path
        An ``.npy``, ``.npz``, ``.safetensors``, ``.pt`` or ``.parquet`` file, or a folder that
        Hugging Face ``datasets`` saved. Rows are ``[n, d]``; of ``[batch, position, d]`` the
        leading axes are flattened, and so are those of the labels.

    Raises
    ------
    InputError
        When the file is missing or cannot be read, when none or several of its arrays may be the
        rows, or when they are not a finite matrix of at least two rows.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; give the path of your rows of activations")
    kind = "folder" if path.is_dir() else path.suffix
    if kind not in _READERS:
        raise InputError(
            f"{path}: rows are read from {', '.join(sorted(_READERS))} "
            "(a folder is one that Hugging Face datasets saved)"
        )
    try:
        arrays = _READERS[kind](path)
    except InputError:
        raise
    except Exception as error:  # each format's reader has errors of its own for a broken file
        message = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as {kind} ({message[:200]})") from error
    name = _name_of_rows(path, arrays)
    values = arrays[name]
    if values.ndim < 2 or not values.size:
        raise InputError(
            f"{path}: {name} has shape {list(values.shape)}; rows are [n, d] or "
            "[batch, position, d]"
        )
    leading = values.shape[:-1]
    values = values.reshape(-1, values.shape[-1])
    if len(values) < 2:
        raise InputError(f"{path}: {len(values)} row; give at least two")
    _check_finite(path, values)
    labels = {other: _flat(array, leading) for other, array in arrays.items() if other != name}
    known = {other: column for other, column in labels.items() if column is not None}
    return RowsFile(values, pd.DataFrame(known, index=pd.RangeIndex(len(values))))


def _name_of_rows(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    named = [name for name in ROW_NAMES if name in arrays]
    wide = [name for name, array in arrays.items() if array.ndim >= 2 and array.dtype.kind == "f"]
    chosen = named or wide
    if not named and len(wide) != 1:
        raise InputError(
            f"{path}: {len(wide)} of its arrays may be the rows ({', '.join(sorted(arrays))}); "
            f"name yours '{ROW_NAMES[0]}'"
        )
    if arrays[chosen[0]].dtype.kind not in "fiu":
        raise InputError(f"{path}: {chosen[0]} holds {arrays[chosen[0]].dtype}; give real numbers")
    return chosen[0]


def _flat(array: NDArray[Any], leading: tuple[int, ...]) -> NDArray[Any] | None:
    """Give an array of labels a value a row; None where it is not one."""
    if array.dtype.kind not in "fiub":
        return None
    if array.shape == leading or array.shape == (int(np.prod(leading)),):
        return array.reshape(-1)
    if len(leading) > 1 and array.shape == leading[:1]:  # one label for all positions of an input
        return np.repeat(array, int(np.prod(leading[1:])))
    return None


def _check_finite(path: Path, values: NDArray[Any]) -> None:
    for start in range(0, len(values), BLOCK_ROWS):
        finite = np.isfinite(values[start : start + BLOCK_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise InputError(f"{path}: row {row} holds NaN or infinity; leave such rows out")


def _npy(path: Path) -> dict[str, NDArray[Any]]:
    return {"rows": np.load(path, mmap_mode="r", allow_pickle=False)}


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return {name: _numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def _pt(path: Path) -> dict[str, NDArray[Any]]:
    import torch

    mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are not
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(content, torch.Tensor):
        return {"rows": _numpy(content)}
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}; save a tensor, or a dict")
    tensors = content.items()
    return {str(n): _numpy(value) for n, value in tensors if isinstance(value, torch.Tensor)}


def _numpy(tensor: Any) -> NDArray[Any]:
    import torch

    # numpy has no bfloat16
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet as pq

    return _columns(pq.read_table(path, memory_map=True))


def _folder(path: Path) -> dict[str, NDArray[Any]]:
    """Read what ``datasets.Dataset.save_to_disk`` wrote: Arrow streams named in state.json."""
    import pyarrow as pa

    state = path / "state.json"
    if not state.is_file():
        raise InputError(
            f"{path}: no state.json in it; give a folder written by Dataset.save_to_disk (of one "
            "split), or a file"
        )
    names = [entry["filename"] for entry in json.loads(state.read_text())["_data_files"]]
    if any(Path(name).name != name for name in names):
        raise InputError(f"{state}: names a file outside of its folder")
    tables = [pa.ipc.open_stream(pa.memory_map(str(path / name))).read_all() for name in names]
    return _columns(pa.concat_tables(tables))


def _columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Give numeric columns, and lists of equal length as matrices."""
    import pyarrow as pa

    found = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        shape = [len(column)]
        while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            inner = column.flatten()
            if not len(column) or column.null_count or len(inner) % len(column):
                raise InputError(f"column {name}: its lists are not all of one length")
            lengths = set(column.value_lengths().unique().to_pylist())
            if len(lengths) > 1:
                raise InputError(f"column {name}: its lists have {len(lengths)} different lengths")
            shape.append(lengths.pop())
            column = inner
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            found[name] = column.to_numpy(zero_copy_only=False).reshape(shape)
    return found


_READERS: Mapping[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".parquet": _parquet,
    "folder": _folder,
}
