"""Labels beside rows of activations, made fit for asking what a latent means."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from husai.errors import InputError

logger = logging.getLogger(__name__)

MOST_CLASSES = 1000
"""Values of a column that are taken as classes; of more, as of token ids, the commonest are."""


def prepare_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Make the columns beside rows classes or numbers.

    Parameters
    ----------
    table
        A row for each row of activations. Whole numbers, truth values and words are classes,
        other numbers are not.

    Returns
    -------
    DataFrame
        The same rows. Of a column with more than :data:`MOST_CLASSES` values the commonest stay
        and the others become no class (missing). Columns in which no value occurs twice, such as
        the number of the row, or only one occurs, are left out with a warning.

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
                    f"labels {str(name)!r}: row {row} holds NaN or infinity; fill it or leave the "
                    "column out"
                )
            if column.nunique() > 1:
                kept[name] = column
            else:
                logger.warning("labels %r: one value in all rows; left out", str(name))
            continue
        counts = column.value_counts()
        if len(counts) < 2 or counts.iloc[0] < 2:
            what = "one value in all rows" if len(counts) < 2 else "another value in every row"
            logger.warning("labels %r: %s; left out", str(name), what)
            continue
        if len(counts) > MOST_CLASSES:
            logger.warning(
                "labels %r: %d values; the %d commonest are taken as classes",
                str(name),
                len(counts),
                MOST_CLASSES,
            )
            column = column.where(column.isin(counts.index[:MOST_CLASSES]))
            if pd.api.types.is_numeric_dtype(table[name]):
                column = column.astype("Int64")
        kept[name] = column
    return pd.DataFrame(kept, index=table.index)
