"""The catalog, in which an entry that is wrong is one line with its name and its file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from kedro.io import AbstractDataset, DataCatalog, DatasetError

from husai.hooks.checks import StudyError


class NamedCatalog(DataCatalog):
    """Kedro's own catalog; an entry that makes no dataset is named with its file.

    Attributes
    ----------
    folders
        Of the configuration, the one that counts last: where the files of entries are looked for.
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
            # the entry stands in Kedro's text alone
            named = [name for name in catalog or {} if name in text]
            raise StudyError(cls._message([max(named, key=len, default="")], error)) from error

    def get(self, key: str, *arguments: Any, **options: Any) -> AbstractDataset[Any, Any] | None:
        """Give a dataset.

        Raises
        ------
        StudyError
            Where its entry names a class that there is not, or settings that the class has not.
        """
        try:
            return super().get(key, *arguments, **options)
        except DatasetError as error:
            pattern = self.config_resolver.match_dataset_pattern(key)
            raise StudyError(self._message([key, pattern or key], error)) from error

    @classmethod
    def _message(cls, entries: Sequence[str], error: BaseException) -> str:
        # the last cause that is Kedro's says most, and its first sentence what is wrong
        while isinstance(error.__cause__, DatasetError):
            error = error.__cause__
        lines = [line.strip() for line in str(error).splitlines()]
        lines = [line for line in lines if line and not line.startswith(("Hint:", "http"))]
        reason = re.split(r"\. (?=Make|Please)", " ".join(lines))[0].rstrip(".")
        return f"{cls._place(entries)}: {reason}; correct the entry"

    @classmethod
    def _place(cls, entries: Sequence[str]) -> str:
        """Give the file and the entry that makes a dataset: its own, or a pattern's."""
        for entry in entries:
            line = re.compile(rf"^[\"']?{re.escape(entry)}[\"']?\s*:", re.MULTILINE)
            for folder in reversed(cls.folders):
                for path in sorted(folder.rglob("catalog*.yml")):
                    if line.search(path.read_text()):
                        return f"{path}: {entry}"
        return f"catalog: {entries[-1]}"
