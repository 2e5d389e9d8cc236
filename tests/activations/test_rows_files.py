"""Rows of activations in files: every format gives the same matrix and labels, or one line."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from husai.activations.files import read_rows
from husai.errors import InputError

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([3, 1, 4, 1, 5, 9])


def write_npy(folder):
    np.save(folder / "r.npy", ROWS)
    return folder / "r.npy"


def write_npz(folder):
    np.savez(folder / "r.npz", rows=ROWS, label=LABELS)
    return folder / "r.npz"


def write_safetensors(folder):
    save_file(
        {"my_rows": torch.from_numpy(ROWS), "label": torch.from_numpy(LABELS)},
        folder / "r.safetensors",
    )
    return folder / "r.safetensors"


def write_pt(folder):
    content = {"acts": torch.from_numpy(ROWS), "label": torch.from_numpy(LABELS)}
    torch.save(content, folder / "r.pt")
    return folder / "r.pt"


def write_parquet(folder):
    table = pa.table({"vector": list(ROWS), "label": LABELS, "text": ["a"] * 6})
    pq.write_table(table, folder / "r.parquet")
    return folder / "r.parquet"


def write_folder(folder):
    """As ``datasets.Dataset.save_to_disk`` does, in two Arrow streams."""
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 4)
    table = pa.table({"activations": fixed, "label": LABELS})
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table[:2], table[2:]), strict=True):
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    "write", [write_npy, write_npz, write_safetensors, write_pt, write_parquet, write_folder]
)
def test_every_format_gives_the_same_rows_and_labels(tmp_path, write):
    found = read_rows(write(tmp_path))
    np.testing.assert_array_equal(found.values, ROWS)
    expected = {} if write is write_npy else {"label": LABELS}
    expected |= {"text": ["a"] * 6} if write is write_parquet else {}
    index = pd.RangeIndex(6)
    expected_frame = pd.DataFrame(expected, index=index)
    pd.testing.assert_frame_equal(found.labels, expected_frame, check_dtype=False)


def test_an_npy_file_is_not_read_into_memory(tmp_path):
    assert isinstance(read_rows(write_npy(tmp_path)).values.base, np.memmap)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_positions_are_flattened_together_with_their_labels(tmp_path, dtype):
    path = tmp_path / "r.pt"
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tokens = torch.tensor([[7, 8, 9], [1, 2, 3]])
    torch.save({"rows": values, "token": tokens, "input": torch.tensor([5, 6])}, path)
    found = read_rows(path)
    np.testing.assert_array_equal(found.values, np.arange(24).reshape(6, 4))
    assert found.labels["token"].tolist() == [7, 8, 9, 1, 2, 3]
    assert found.labels["input"].tolist() == [5, 5, 5, 6, 6, 6]


def save(path, content):
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.npy", np.array([[1.0, np.nan], [1.0, 2.0]]), "row 0 has NaN"),
        ("r.npy", np.ones(3), r"shape \[3\]"),
        ("r.npy", np.ones((1, 3)), "at least two"),
        ("r.npy", np.array([["a", "b"]]), "give real numbers"),
        ("r.npy", np.array([[object()]]), "holds Python objects"),
        ("r.npy", np.ones((5, 1)), "rows of one number"),
        ("r.npy", np.full((2, 2), 1e300), "too large for float32"),
        ("r.npz", {}, "no array is a matrix"),
        ("r.npz", {"p": np.ones((2, 2)), "q": np.ones((2, 2))}, "2 arrays could be the rows"),
        ("r.npz", {"label": np.arange(3)}, r"label has shape \[3\]"),
        ("r.pt", [1, 2], "holds list"),
        ("r.pt", {"rows": object()}, "incomplete or of another format"),
    ],
)
def test_arrays_that_cannot_be_rows_give_an_error_of_one_line(tmp_path, name, content, message):
    save(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as error:
        read_rows(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_foreign_and_incomplete_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.npy: no such file"):
        read_rows(tmp_path / "none.npy")
    (tmp_path / "r.csv").write_text("1,2\n")
    with pytest.raises(InputError, match="not a format of rows"):
        read_rows(tmp_path / "r.csv")
    with pytest.raises(InputError, match=r"no state\.json"):
        read_rows(tmp_path)
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        InputError, match=r"give the folder of one: .*several/train, .*several/test"
    ):
        read_rows(tmp_path / "several")
    for path in (write_pt(tmp_path), write_safetensors(tmp_path), write_parquet(tmp_path)):
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(InputError, match="incomplete or of another format"):
            read_rows(path)
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0]]}), tmp_path / "u.parquet")
    with pytest.raises(InputError, match="column v: its lists"):
        read_rows(tmp_path / "u.parquet")
