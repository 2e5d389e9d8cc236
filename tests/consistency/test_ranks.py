"""The rank correlation of two measures of features."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from husai.consistency.inference.ranks import rank_correlation

NAN = np.nan


def test_it_is_the_correlation_of_mean_ranks_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4, 5 and 2, 1, 3, 5, 4; the sixth observation is not known
    x, y = [0.1, 7, 7, 8, 90, NAN], [2, 1, 3, 50, 4, 6]
    a, b = np.array([1, 2.5, 2.5, 4, 5]) - 3, np.array([2, 1, 3, 5, 4]) - 3
    expected = (a @ b) / np.sqrt((a @ a) * (b @ b))
    assert rank_correlation(x, y) == pytest.approx(expected)
    assert rank_correlation(np.exp(x), -np.array(y)) == pytest.approx(-expected)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, NAN, 5], [1, 2, 3, 4, NAN]),
        ([1, 1, 1, 1, NAN], [1, 2, 3, 4, 5]),
        ([], []),
    ],
    ids=["three", "three known", "constant", "none"],
)
def test_where_it_says_nothing_it_is_missing(x: list[float], y: list[float]) -> None:
    assert np.isnan(rank_correlation(x, y))


def test_columns_of_tables_with_missing_cells_are_read() -> None:
    x = pd.Series([1, 2, None, 4, 3], dtype="Float64")
    y = pd.Series([1.0, 2.0, 9.0, None, 4.0, 8.0][:5], dtype=object)
    assert np.isnan(rank_correlation(x, y))  # three are known
    assert rank_correlation(x, pd.Series([2, 3, 1, 5, 4])) == pytest.approx(1)
