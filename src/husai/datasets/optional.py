"""The dataset of a table from an earlier run, which may not exist yet."""

from __future__ import annotations

import pandas as pd
from kedro_datasets.pandas import ParquetDataset


class EarlierTable(ParquetDataset):
    """A parquet table; an empty one if no run has written it."""

    def load(self) -> pd.DataFrame:
        """Return the table, or an empty one."""
        return super().load() if super()._exists() else pd.DataFrame()

    def _exists(self) -> bool:
        return True
