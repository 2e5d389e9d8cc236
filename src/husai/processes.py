"""Name a process in a file, and find out later whether that process has ended."""

from __future__ import annotations

import os
import platform

SAME_PROCESS_SECONDS = 60.0
"""Seconds by which the recorded start of one process may vary, because clocks are corrected."""


def this_process() -> str:
    """Name this process, for :func:`is_gone`."""
    import psutil

    return f"{platform.node()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_gone(process: str) -> bool:
    """Whether a process of this machine has ended; False for processes of other machines."""
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
    # another process may have this id by now: in a container ids are the same at every start
    return bool(began) and abs(now - float(began[0])) > SAME_PROCESS_SECONDS
