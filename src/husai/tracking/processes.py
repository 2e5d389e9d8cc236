"""Which process a run belongs to, and whether that process is still there."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PROCESS_TAG = "husai.process"

SAME_PROCESS_SECONDS = 60.0
"""Processes with one id whose starts differ by more are different; clocks may be corrected."""


def this_process() -> str:
    """Name this process, for :func:`is_gone`."""
    import psutil

    return f"{platform.node()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_gone(process: str) -> bool:
    """Whether a process of this machine has ended; False for those of others."""
    import psutil

    node, pid, *began = process.split(":") if process.count(":") else (process, "")
    if node != platform.node() or not pid.isdigit():
        return False
    try:
        now = psutil.Process(int(pid)).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    # the id may belong to another process by now: in a container it is the same at every start
    return bool(began) and abs(now - float(began[0])) > SAME_PROCESS_SECONDS


def end_abandoned(client: MlflowClient, experiment: str) -> None:
    """Close the runs of an experiment that killed processes of this machine left open."""
    condition = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{platform.node()}:%'"
    gone = [
        run.info.run_id
        for run in search_runs(client, experiment, condition)
        if is_gone(run.data.tags[PROCESS_TAG])
    ]
    for run_id in gone:
        logger.info("MLflow run %s was left open by a process that is gone: closed", run_id)
        client.set_terminated(run_id, "KILLED")


def search_runs(client: MlflowClient, experiment: str, condition: str) -> Iterator[Any]:
    """Yield all runs of an experiment that fulfil a condition, the oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment], condition, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
