"""A table of an earlier run, which may not be there yet."""

from __future__ import annotations

import pandas as pd
from kedro_datasets.pandas import ParquetDataset


class EarlierTable(ParquetDataset):
    """A parquet table; an empty one where no run has written it."""

    def load(self) -> pd.DataFrame:
        """Return the table, or an empty one."""
        return super().load() if super()._exists() else pd.DataFrame()

    def _exists(self) -> bool:
        return True
