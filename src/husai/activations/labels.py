"""Prepare the user's labels of rows, which say what a latent stands for: classes and numbers."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from husai.errors import InputError

logger = logging.getLogger(__name__)

MOST_CLASSES = 1000
"""Most classes of a column; if it has more values (token ids), the most frequent become classes."""


def prepare_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Turn the columns of labels into classes or numbers.

    Parameters
    ----------
    table
        A row for each row of activations. Whole numbers, truth values and words are classes,
        other numbers are not.

    Returns
    -------
    DataFrame
        The same rows. If a column has more than :data:`MOST_CLASSES` values, the most frequent are
        kept and the others become missing (no class). Columns in which no value occurs twice, such
        as the number of the row, or with only one value, are left out with a warning.

    Raises
    ------
    InputError
        When a column of numbers holds NaN or infinity.
    """
    kept = {}
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_float_dtype(column):
            finite = np.isfinite(column.to_numpy(dtype=np.float64))
            if not finite.all():
                row = int(np.flatnonzero(~finite)[0])
                raise InputError(
                    f"labels {str(name)!r}: row {row} has NaN or infinity; give it a number, or "
                    "remove the column"
                )
            if column.nunique() > 1:
                kept[name] = column
            else:
                logger.warning("labels %r: all rows have the same value; left out", str(name))
            continue
        counts = column.value_counts()
        if len(counts) < 2 or counts.iloc[0] < 2:
            what = "all rows have the same value" if len(counts) < 2 else "no value occurs twice"
            logger.warning("labels %r: %s; left out", str(name), what)
            continue
        if len(counts) > MOST_CLASSES:
            logger.warning(
                "labels %r: %d values; the %d most frequent are used as classes",
                str(name),
                len(counts),
                MOST_CLASSES,
            )
            column = column.where(column.isin(counts.index[:MOST_CLASSES]))
            if pd.api.types.is_numeric_dtype(table[name]):
                column = column.astype("Int64")
        kept[name] = column
    return pd.DataFrame(kept, index=table.index)
