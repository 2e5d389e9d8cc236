"""Kedro's catalog, with errors in one line that name the entry and its file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from kedro.io import AbstractDataset, DataCatalog, DatasetError

from husai.hooks.checks import StudyError


class NamedCatalog(DataCatalog):
    """Kedro's catalog; an error in an entry names the entry and its file.

    Attributes
    ----------
    folders
        Folders of the configuration in which the files of entries are searched, the last first.
    """

    folders: ClassVar[Sequence[Path]] = ()

    @classmethod
    def from_config(
        cls, catalog: dict[str, dict[str, Any]] | None, *arguments: Any, **options: Any
    ) -> DataCatalog:
        """Make the catalog.

        Raises
        ------
        StudyError
            For an entry that is not a mapping, or a pattern that does not fit.
        """
        try:
            return super().from_config(catalog, *arguments, **options)
        except DatasetError as error:
            text = str(error)
            # the name of the entry is only in Kedro's message
            named = [name for name in catalog or {} if name in text]
            raise StudyError(cls._message([max(named, key=len, default="")], error)) from error

    def get(self, key: str, *arguments: Any, **options: Any) -> AbstractDataset[Any, Any] | None:
        """Return a dataset.

        Raises
        ------
        StudyError
            When its entry names a class that does not exist, or settings that the class lacks.
        """
        try:
            return super().get(key, *arguments, **options)
        except DatasetError as error:
            pattern = self.config_resolver.match_dataset_pattern(key)
            raise StudyError(self._message([key, pattern or key], error)) from error

    @classmethod
    def _message(cls, entries: Sequence[str], error: BaseException) -> str:
        # the innermost of Kedro's errors is the most exact, and its first sentence is enough
        while isinstance(error.__cause__, DatasetError):
            error = error.__cause__
        lines = [line.strip() for line in str(error).splitlines()]
        lines = [line for line in lines if line and not line.startswith(("Hint:", "http"))]
        reason = re.split(r"\. (?=Make|Please)", " ".join(lines))[0].rstrip(".")
        return f"{cls._place(entries)}: {reason}; correct the entry"

    @classmethod
    def _place(cls, entries: Sequence[str]) -> str:
        """Return the file and the entry of a dataset: its own entry, or that of a pattern."""
        for entry in entries:
            line = re.compile(rf"^[\"']?{re.escape(entry)}[\"']?\s*:", re.MULTILINE)
            for folder in reversed(cls.folders):
                for path in sorted(folder.rglob("catalog*.yml")):
                    if line.search(path.read_text()):
                        return f"{path}: {entry}"
        return f"catalog: {entries[-1]}"
