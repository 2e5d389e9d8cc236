"""Read the user's own rows of activations from files, with the labels in the same file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from husai.boundary import (
    REAL_KINDS,
    read_json,
    read_npy,
    read_npz,
    read_pt,
    read_safetensors,
    reading,
)
from husai.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

ROW_NAMES = ("activations", "rows", "acts", "x", "hidden_states", "embeddings", "vectors")
"""Names of the rows in a file that holds several arrays, in order of preference."""

BLOCK_ROWS = 65_536
"""Rows checked at a time, so that a memory-mapped file is never in memory as a whole."""


class RowsFile(NamedTuple):
    """Rows read from a file.

    Attributes
    ----------
    values
        ``[n, d]``, float32, float16 or float64, finite; memory-mapped if the format allows it.
    labels
        ``n`` rows: the other arrays or columns of the file with one number, truth value or word
        per row (labels, token ids); without columns if there are none.
    """

    values: NDArray[Any]
    labels: pd.DataFrame


def read_rows(path: str | Path, width: int | None = None) -> RowsFile:
    """Read rows of activations, and their labels from the same file.

    Parameters
    ----------
    path
        An ``.npy``, ``.npz``, ``.safetensors``, ``.pt`` or ``.parquet`` file, or a folder that
        Hugging Face ``datasets`` saved. Rows are ``[n, d]`` or ``[batch, position, d]``, which is
        flattened, and the labels with it. Arrays that are neither rows nor labels are left out
        with a warning.
    width
        Width of the SAEs. Rows of separate heads, ``[..., heads, d_head]``, are joined if
        ``heads · d_head`` is this width and ``d_head`` is not. None joins nothing.

    Raises
    ------
    InputError
        When the file is missing or cannot be read, when none or several of its arrays could be the
        rows, or when the rows are not a matrix of at least two rows that is finite in float32.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; give the path of your activation rows")
    kind = "folder" if path.is_dir() else path.suffix
    if kind not in _READERS:
        raise InputError(
            f"{path}: not a format of rows; give a file of {', '.join(sorted(_READERS))}, or a "
            "folder that Hugging Face datasets saved"
        )
    with reading(path):
        arrays = _READERS[kind](path)
        name = _name_of_rows(path, arrays)
        values = arrays[name]
        if values.ndim < 2 or not values.size:
            raise InputError(
                f"{path}: {name} has shape {list(values.shape)}; rows are [n, d] or "
                "[batch, position, d]"
            )
        d = values.shape[-1]
        if width is not None and values.ndim > 2 and d != width == d * values.shape[-2]:
            values = values.reshape(*values.shape[:-2], width)
        leading = values.shape[:-1]
        values = values.reshape(-1, values.shape[-1])
        if len(values) < 2:
            raise InputError(f"{path}: only {len(values)} row; give at least two")
        if values.shape[1] < 2:
            raise InputError(
                f"{path}: rows of one number have no direction; give [n, d] with d > 1"
            )
        _check_finite(path, values)
    labels = {other: _flat(array, leading) for other, array in arrays.items() if other != name}
    known = {other: column for other, column in labels.items() if column is not None}
    for other in sorted(labels.keys() - known.keys()):
        array = arrays[other]
        logger.warning(
            "%s: %s (%s %s) does not have one value for each of the %d rows; it is left out",
            *(path, other, array.dtype, list(array.shape), len(values)),
        )
    return RowsFile(values, pd.DataFrame(known, index=pd.RangeIndex(len(values))))


def _name_of_rows(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    named = [name for name in ROW_NAMES if name in arrays]
    wide = [name for name, array in arrays.items() if array.ndim >= 2 and array.dtype.kind == "f"]
    chosen = named or (list(arrays) if len(arrays) == 1 else wide)
    if not chosen:
        raise InputError(
            f"{path}: no array is a matrix of numbers (it has {', '.join(sorted(arrays))}); give "
            "rows [n, d], in one array or in one column of vectors"
        )
    if not named and len(chosen) != 1:
        raise InputError(
            f"{path}: {len(chosen)} arrays could be the rows (it has {', '.join(sorted(arrays))}); "
            f"give the rows the name '{ROW_NAMES[0]}'"
        )
    if arrays[chosen[0]].dtype.kind not in REAL_KINDS:
        raise InputError(f"{path}: {chosen[0]} holds {arrays[chosen[0]].dtype}; give real numbers")
    return chosen[0]


def _flat(array: NDArray[Any], leading: tuple[int, ...]) -> NDArray[Any] | None:
    """Flatten an array of labels to one value per row; None if it does not have that shape."""
    if array.dtype.kind not in "fiubUO":  # objects are read only if they are words
        return None
    if array.shape == leading or array.shape == (int(np.prod(leading)),):
        return array.reshape(-1)
    if len(leading) > 1 and array.shape == leading[:1]:  # all positions of an input share a label
        return np.repeat(array, int(np.prod(leading[1:])))
    return None


def _check_finite(path: Path, values: NDArray[Any]) -> None:
    for start in range(0, len(values), BLOCK_ROWS):
        with np.errstate(over="ignore"):
            block = values[start : start + BLOCK_ROWS].astype(np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise InputError(
                f"{path}: row {row} has NaN, infinity or a number too large for float32; remove "
                "such rows"
            )


def _npy(path: Path) -> dict[str, NDArray[Any]]:
    return {"rows": read_npy(path)}


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    return _arrays(read_safetensors(path)[0])


def _pt(path: Path) -> dict[str, NDArray[Any]]:
    return _arrays(read_pt(path))


def _arrays(content: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    import torch

    tensors = {name: one.detach() for name, one in content.items() if isinstance(one, torch.Tensor)}
    # NumPy has no bfloat16
    return {
        name: (one.float() if one.dtype == torch.bfloat16 else one).numpy()
        for name, one in tensors.items()
    }


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet as pq

    return _columns(pq.read_table(path, memory_map=True))


def _folder(path: Path) -> dict[str, NDArray[Any]]:
    """Read what ``datasets.Dataset.save_to_disk`` wrote: Arrow streams named in state.json."""
    import pyarrow as pa

    state = path / "state.json"
    splits = path / "dataset_dict.json"
    if splits.is_file():
        names = [str(path / str(name)) for name in read_json(splits).get("splits") or ()]
        raise InputError(f"{path}: has several splits; give the folder of one: {', '.join(names)}")
    if not state.is_file():
        raise InputError(
            f"{path}: has no state.json; give a folder that Dataset.save_to_disk wrote (of one "
            "split), or a file"
        )
    names = [entry["filename"] for entry in json.loads(state.read_text())["_data_files"]]
    if any(Path(name).name != name for name in names):
        raise InputError(f"{state}: names a file outside its folder; save the data set again")
    tables = [pa.ipc.open_stream(pa.memory_map(str(path / name))).read_all() for name in names]
    return _columns(pa.concat_tables(tables))


def _columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return columns of numbers, truth values and words; lists of equal length become matrices."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types = pa.types
    readable: tuple[Callable[[pa.DataType], bool], ...] = (
        *(types.is_integer, types.is_floating, types.is_boolean),
        *(types.is_string, types.is_large_string),
    )

    found = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        shape = [len(column)]
        while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            inner = column.flatten()
            if not len(column) or column.null_count or len(inner) % len(column):
                raise InputError(
                    f"column {name}: its lists differ in length; give lists of one length"
                )
            lengths = set(column.value_lengths().unique().to_pylist())
            if len(lengths) > 1:
                raise InputError(
                    f"column {name}: its lists have {len(lengths)} lengths; give lists of one "
                    "length"
                )
            shape.append(lengths.pop())
            column = inner
        if pa.types.is_dictionary(column.type):  # a category
            column = column.dictionary_decode()
        if pa.types.is_integer(column.type) and column.null_count:
            column = pc.fill_null(column.cast(pa.int64()), -1)  # -1: no class
        if any(test(column.type) for test in readable):
            found[name] = column.to_numpy(zero_copy_only=False).reshape(shape)
        else:
            logger.warning("column %s holds %s and is left out", name, column.type)
    return found


_READERS: Mapping[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    ".npy": _npy,
    ".npz": read_npz,
    ".safetensors": _safetensors,
    ".pt": _pt,
    ".pth": _pt,
    ".parquet": _parquet,
    "folder": _folder,
}
