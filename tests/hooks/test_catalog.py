"""A catalog entry that cannot be read gives an error of one line with its file and name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kedro.io import MemoryDataset

from husai.hooks.catalog import NamedCatalog
from husai.hooks.checks import StudyError

GOOD = {"type": "pandas.ParquetDataset", "filepath": "x.parquet"}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base").mkdir()
    monkeypatch.setattr(NamedCatalog, "folders", [tmp_path / "base", tmp_path / "local"])

    def make(entries, name):
        (tmp_path / "base" / "catalog_saes.yml").write_text(yaml.safe_dump(entries))
        return NamedCatalog.from_config(entries).get(name)

    return make


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (GOOD | {"type": "pandas.ParquetDatset"}, "Dataset 'ParquetDatset' not found in 'pandas'"),
        (GOOD | {"type": "nothing.ParquetDataset"}, "No module named 'nothing'"),
        ({"filepath": "x.parquet"}, "'type' is missing"),
        (
            {"type": "pandas.ParquetDataset", "filpath": "x"},
            "unexpected keyword argument 'filpath'",
        ),
        ([1, 2], "not a valid dataset configuration"),
        (3, "not a valid dataset configuration"),
    ],
)
def test_a_wrong_entry_is_an_error_of_one_line_with_file_and_name(make, entry, words):
    with pytest.raises(StudyError) as found:
        make({"other": GOOD, "sae_table": entry}, "sae_table")
    message = found.value.format_message()
    assert "\n" not in message
    assert "base/catalog_saes.yml: sae_table: " in message
    assert words in message


def test_a_pattern_is_named_as_it_is_written(make):
    with pytest.raises(StudyError, match=r"catalog_saes\.yml: \{name\}_table: .*not found"):
        make({"{name}_table": GOOD | {"type": "pandas.Parqet"}}, "sae_table")
    with pytest.raises(StudyError, match=r"catalog_saes\.yml: \{name\}_table: "):
        make({"{name}_table": GOOD | {"filepath": "{nam}.parquet"}}, "sae_table")


def test_correct_entries_are_made_by_kedro_itself(make):
    assert make({"sae_table": GOOD}, "sae_table") is not None
    assert make({"sae_table": GOOD}, "not_there") is None
    assert isinstance(make({"a": {"type": "MemoryDataset"}}, "a"), MemoryDataset)
