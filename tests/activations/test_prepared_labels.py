"""Columns beside rows become classes or numbers; a column that can be neither gives a warning."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from husai.activations import labels as module
from husai.activations import prepare_labels, read_rows
from husai.consistency.analyses.labels import Classes, Regressors, table_labels
from husai.errors import InputError


def test_numbers_booleans_and_words_are_kept_as_they_are():
    table = pd.DataFrame(
        {
            "class": [0, 1, 0, -1],
            "is": [True, False, True, True],
            "word": ["a", "b", "a", None],
            "depth": [0.5, 0.25, 1.0, 2.0],
        }
    )
    made = prepare_labels(table)
    pd.testing.assert_frame_equal(made, table)
    classes = table_labels(made)
    assert [type(one) for one in classes] == [Classes, Classes, Classes, Regressors]


def test_only_the_most_frequent_values_become_classes(monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST_CLASSES", 2)
    table = pd.DataFrame({"token": [7, 7, 7, 5, 5, 3, 2], "word": list("xxyyyzw")})
    with caplog.at_level(logging.WARNING):
        made = prepare_labels(table)
    assert "4 values; the 2 most frequent" in caplog.text
    assert made["token"].fillna(-1).tolist() == [7, 7, 7, 5, 5, -1, -1]
    (tokens, words) = table_labels(made)
    assert isinstance(tokens, Classes)
    assert isinstance(words, Classes)
    assert (len(tokens.names), len(words.names)) == (2, 2)


def test_a_column_without_information_is_left_out_with_a_warning(caplog):
    table = pd.DataFrame({"row": range(4), "same": [1] * 4, "flat": [0.5] * 4, "y": [0, 0, 1, 1]})
    with caplog.at_level(logging.WARNING):
        assert list(prepare_labels(table)) == ["y"]
    assert "'row': no value occurs twice" in caplog.text
    assert "'same': all rows have the same value" in caplog.text
    assert "'flat': all rows have the same value" in caplog.text


def test_missing_numbers_give_an_error_of_one_line():
    with pytest.raises(InputError, match=r"labels 'depth': row 1 has NaN"):
        prepare_labels(pd.DataFrame({"depth": [0.5, np.nan]}))


def test_columns_of_a_table_keep_their_kind(tmp_path, caplog):
    table = pa.table(
        {
            "vector": [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]],
            "missing": pa.array([1, None, 1], pa.uint8()),
            "category": pa.array(["a", "b", "a"]).dictionary_encode(),
            "is": [True, False, True],
            "when": pa.array([0, 1, 2], pa.timestamp("s")),
            "pair": [[0, 1], [1, 0], [1, 1]],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    with caplog.at_level(logging.WARNING):
        found = read_rows(tmp_path / "rows.parquet")
    assert found.values.tolist() == [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert {name: found.labels[name].tolist() for name in found.labels} == {
        "missing": [1, -1, 1],
        "category": ["a", "b", "a"],
        "is": [True, False, True],
    }
    assert "column when holds timestamp" in caplog.text
    assert "pair (int64 [3, 2]) does not have one value for each of the 3 rows" in caplog.text


def test_labels_of_another_length_are_left_out_with_a_warning(tmp_path, caplog):
    np.savez(tmp_path / "rows.npz", rows=np.ones((4, 2)), y=np.arange(3))
    with caplog.at_level(logging.WARNING):
        assert read_rows(tmp_path / "rows.npz").labels.empty
    assert "y (int64 [3]) does not have one value for each of the 4 rows" in caplog.text
