"""The project's Kedro datasets: whole files, versions, and partitions that follow a plan."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError, Version

from husai.datasets import (
    DirectoryHandle,
    DocumentDataset,
    PlannedPartitionedDataset,
    TensorDataset,
)
from husai.errors import InputError
from husai.storage import TensorFile


def make_file(value: float = 1.0) -> TensorFile:
    # a transposed view: not contiguous
    return TensorFile({"w": torch.full((2, 3), value).T}, {"config": {"k": 4}})


def test_round_trip_and_header(tmp_path):
    dataset = TensorDataset(filepath=str(tmp_path / "a" / "w.safetensors"))
    assert not dataset.exists()
    dataset.save(make_file())
    back = dataset.load()
    assert torch.equal(back.tensors["w"], torch.ones(3, 2))
    assert back.header == {"config": {"k": 4}}
    assert dataset.exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["w.safetensors"]


def test_versions_are_kept_apart(tmp_path):
    path = str(tmp_path / "w.safetensors")
    TensorDataset(filepath=path, version=Version(None, "v1")).save(make_file(1.0))
    TensorDataset(filepath=path, version=Version(None, "v2")).save(make_file(2.0))
    latest = TensorDataset(filepath=path, version=Version(None, None))
    assert latest.load().tensors["w"][0, 0] == 2.0
    first = TensorDataset(filepath=path, version=Version("v1", None))
    assert first.load().tensors["w"][0, 0] == 1.0


def test_other_file_systems():
    dataset = TensorDataset(filepath="memory://bucket/deep/w.safetensors")
    dataset.save(make_file(3.0))
    assert dataset.load().tensors["w"][0, 0] == 3.0


@pytest.mark.parametrize("cut", [0, 7, 40, 60])
def test_an_incomplete_file_is_an_error_that_names_it(tmp_path, cut):
    path = tmp_path / "w.safetensors"
    path.write_bytes(make_file().to_bytes()[:cut])
    with pytest.raises(DatasetError, match=r"w\.safetensors: not a complete safetensors file"):
        TensorDataset(filepath=str(path)).load()


def test_preview_lists_tensors_and_header(tmp_path):
    dataset = TensorDataset(filepath=str(tmp_path / "w.safetensors"))
    dataset.save(make_file())
    rows = dataset.preview()["data"]
    assert ["w", "[3, 2]", "float32"] in rows
    assert ["header: config", "{'k': 4}", ""] in rows


def make_partitions(folder) -> PlannedPartitionedDataset:
    return PlannedPartitionedDataset(
        path=str(folder / "saes"),
        dataset="husai.datasets.TensorDataset",
        filename_suffix=".safetensors",
        plan=str(folder / "plan.parquet"),
    )


def test_partitions_exist_only_if_all_saes_of_the_plan_do(tmp_path):
    dataset = make_partitions(tmp_path)
    assert not dataset.exists()
    pd.DataFrame({"sae_id": ["a", "b"]}).to_parquet(tmp_path / "plan.parquet")
    assert not dataset.exists()
    dataset.save({"a": make_file(), "stale": make_file()})
    assert not dataset.exists()
    assert dataset.missing() == ["b"]
    dataset.save({"b": make_file()})
    assert dataset.exists()
    assert set(dataset.load()) == {"a", "b", "stale"}


def test_a_partition_is_read_once_until_it_is_written_or_released(tmp_path):
    dataset = make_partitions(tmp_path)
    dataset.save({"a": make_file(1.0), "b": make_file(2.0)})
    first = dataset.load()["a"]()
    (tmp_path / "saes" / "a.safetensors").write_bytes(make_file(5.0).to_bytes())
    assert dataset.load()["a"]() is first
    dataset.save({"a": make_file(3.0)})
    second = dataset.load()["a"]()
    assert second.tensors["w"][0, 0] == 3.0
    assert dataset.load()["b"]().tensors["w"][0, 0] == 2.0
    dataset.release()
    assert dataset.load()["a"]() is not second


def test_a_handle_loads_as_a_folder_and_cannot_be_saved(tmp_path):
    handle = DirectoryHandle(path=str(tmp_path / "x" / "y"))
    assert handle.load().is_dir()
    with pytest.raises(DatasetError, match="cannot be a node's output"):
        handle.save(tmp_path)


def test_a_plan_that_cannot_be_read_is_an_error_of_one_line_with_its_name(tmp_path):
    dataset = make_partitions(tmp_path)
    for content in (b"", b"PAR1 and no more"):
        (tmp_path / "plan.parquet").write_bytes(content)
        assert not dataset.exists()
        with pytest.raises(InputError, match=r"plan\.parquet: incomplete or of another format"):
            dataset.missing()


@pytest.mark.parametrize("text", ["[]", "null", "{}", "3", '"a"', "{", ""])
def test_a_document_must_be_an_object_with_entries(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError):
        DocumentDataset(filepath=str(path)).load()


def test_a_document_is_checked_against_its_schema(tmp_path):
    path, check = tmp_path / "a.json", "husai.consistency.study.summary.checked_summary"
    dataset = DocumentDataset(filepath=str(path), check=check)
    document = {"schema": "husai.consistency", "n_saes": 0}
    dataset.save(document)
    with pytest.raises(DatasetError, match="schema_version"):
        dataset.load()
    assert DocumentDataset(filepath=str(path)).load() == {
        "schema": "husai.consistency",
        "n_saes": 0,
    }
