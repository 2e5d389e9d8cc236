"""The dataset of JSON documents, which are checked when they are read."""

from __future__ import annotations

from typing import Any

from kedro.utils import load_obj
from kedro_datasets.json import JSONDataset
from pydantic import ValidationError

from husai.config import problems


class DocumentDataset(JSONDataset):
    """A JSON object with entries; reading a file with anything else is an error.

    Parameters
    ----------
    check
        Dotted name of a function that raises pydantic's ``ValidationError`` for a wrong document.
    **options
        As for :class:`kedro_datasets.json.JSONDataset`.
    """

    def __init__(self, *, check: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._check = check

    def load(self) -> dict[str, Any]:
        """Read the document.

        Raises
        ------
        ValueError
            When it is not a valid document.
        """
        found = super().load()
        if not isinstance(found, dict) or not found:
            raise ValueError("not a JSON object with entries")
        if self._check is not None:
            try:
                load_obj(self._check)(found)
            except ValidationError as error:
                raise ValueError(problems(error)[0]) from error
        return found
