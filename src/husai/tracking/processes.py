"""Closes runs that killed processes left open, and searches for runs."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from husai.processes import is_gone

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PROCESS_TAG = "husai.process"


def end_abandoned(client: MlflowClient, experiment: str) -> None:
    """Close the runs of an experiment that killed processes of this machine left open."""
    condition = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{platform.node()}:%'"
    gone = [
        run.info.run_id
        for run in search_runs(client, experiment, condition)
        if is_gone(run.data.tags[PROCESS_TAG])
    ]
    for run_id in gone:
        logger.info("MLflow run %s of a process that has ended was still open: closed", run_id)
        client.set_terminated(run_id, "KILLED")


def search_runs(client: MlflowClient, experiment: str, condition: str) -> Iterator[Any]:
    """Yield all runs of an experiment that meet a condition, the oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment], condition, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
