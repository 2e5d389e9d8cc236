"""Settings of all tests: one thread per process, long files first, an empty MLflow file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# The suite takes all cores by processes (make test); read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FIRST = ("pipelines", "language", "tracking", "campaign")
"""Folders whose files run whole chains: begun last, one of them would end long after the rest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite file without runs, whose tables take seconds to make."""
    from husai.tracking.sqlite import prepare_sqlite

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_sqlite(path, path.parent.as_uri())
    return path


@pytest.fixture(scope="module")
def copied_mlflow(empty_mlflow: Path) -> Iterator[None]:
    """Copy that file into every new data folder of a module's runs."""
    from husai.tracking import sqlite

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite, "_create", lambda path, artifacts: shutil.copy(empty_mlflow, path))
        yield
