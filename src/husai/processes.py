"""Which process made something, and whether that process is still there."""

from __future__ import annotations

import os
import platform

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
