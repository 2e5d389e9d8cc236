"""What all tests share: one thread a process, the long files first, MLflow's empty file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The suite takes all cores by processes (make test); read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FIRST = ("pipelines", "tracking", "campaign")
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
