"""The datasets of a campaign's plan, and of partitions such as its SAEs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets.pandas import ParquetDataset
from kedro_datasets.partitions import PartitionedDataset

from husai.boundary import reading
from husai.storage import locked


class PlanDataset(ParquetDataset):
    """The plan of a campaign; it cannot be overwritten while the campaign runs.

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
        """Write the plan; raises ``InputError`` while a campaign runs in the folder."""
        with locked(self._campaign):
            super().save(data)


class ReadOncePartitions(PartitionedDataset):
    """Partitions whose files are read only once in a run, however many nodes load them.

    They are kept in memory until Kedro releases the dataset: after the last node that reads it, or
    at the end of the run.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._kept: dict[str, Any] = {}

    def load(self) -> dict[str, Callable[[], Any]]:
        """Return a function for each partition, which reads the file when it is first called."""
        return {name: partial(self._once, name, read) for name, read in super().load().items()}

    def save(self, data: dict[str, Any]) -> None:
        """Write partitions, and forget what was read from them before."""
        super().save(data)
        for name in data:
            self._kept.pop(name, None)

    def _once(self, name: str, read: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = read()
        return self._kept[name]

    def _release(self) -> None:
        self._kept.clear()
        super()._release()


class PlannedPartitionedDataset(ReadOncePartitions):
    """A partitioned dataset that exists only when every planned partition does.

    Kedro's own dataset exists as soon as one partition exists, so that ``--only-missing-outputs``
    would skip a campaign with missing SAEs.

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
        """Return the names of the planned partitions that do not exist.

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
        """Return the names of the planned partitions.

        Raises
        ------
        FileNotFoundError
            When there is no plan.
        InputError
            When it cannot be read.
        """
        if not Path(self._plan).exists():
            raise FileNotFoundError(self._plan)
        with reading(Path(self._plan)):
            names = pd.read_parquet(self._plan, columns=[self._plan_column])[self._plan_column]
        return [str(name) for name in names]

    def _exists(self) -> bool:
        try:
            return not self.missing()
        except (OSError, ValueError):  # no plan, or one that cannot be read
            return False

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "plan": self._plan}
