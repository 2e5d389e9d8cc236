"""The plan of a campaign, and partitions that know from it which of them there should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets.partitions import PartitionedDataset

from husai.storage import locked


class PlanDataset(ParquetDataset):
    """The table of what a campaign trains; it cannot be overwritten while the campaign runs.

    Parameters
    ----------
    campaign
        Folder of the campaign's lock.
    **options
        As for :class:`kedro_datasets.pandas.ParquetDataset`.
    """

    def __init__(self, *, campaign: str, **options: Any) -> None:
        super().__init__(**options)
        self._campaign = Path(campaign)

    def save(self, data: pd.DataFrame) -> None:
        """Write the plan; while another process works in the folder, an ``InputError``."""
        with locked(self._campaign):
            super().save(data)


class PlannedPartitionedDataset(PartitionedDataset):
    """A partitioned dataset that exists only when every planned partition does.

    Kedro's own is taken to exist as soon as any partition is there, so that
    ``--only-missing-outputs`` would skip a campaign with SAEs still missing.

    Parameters
    ----------
    plan
        Path of the parquet table that lists the partitions.
    plan_column
        Its column of partition names.
    **options
        As for :class:`kedro_datasets.partitions.PartitionedDataset`.
    """

    def __init__(self, *, plan: str, plan_column: str = "sae_id", **options: Any) -> None:
        super().__init__(**options)
        self._plan = plan
        self._plan_column = plan_column

    def missing(self) -> list[str]:
        """Name the planned partitions that are not there.

        Raises
        ------
        FileNotFoundError
            When there is no plan.
        """
        planned = self.planned()
        self._invalidate_caches()
        present = {self._path_to_partition(path) for path in self._list_partitions()}
        return [name for name in planned if name not in present]

    def planned(self) -> list[str]:
        """Name the planned partitions.

        Raises
        ------
        FileNotFoundError
            When there is no plan.
        """
        names = pd.read_parquet(self._plan, columns=[self._plan_column])[self._plan_column]
        return [str(name) for name in names]

    def _exists(self) -> bool:
        try:
            return not self.missing()
        except (OSError, ValueError):  # no plan, or one that does not read
            return False

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "plan": self._plan}
