"""The memory of this machine, and an error for work that would need more."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

from husai.errors import InputError

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """Return the memory that this process may use, in bytes: the machine's or the container's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # no container, or a container without a limit ("max")
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total


def check_memory(needed: float, what: str, advice: str) -> None:
    """Raise an error if some work needs more memory than this machine has.

    Parameters
    ----------
    needed
        An estimate, in bytes.
    what
        The parameters and values that need this memory.
    advice
        What the user can do.

    Raises
    ------
    InputError
        With both numbers.
    """
    there = machine_memory()
    if needed > there:
        raise InputError(
            f"{what}: this needs about {needed / 1e9:,.1f} GB of memory, and this machine has "
            f"{there / 1e9:,.1f} GB; {advice}"
        )


def return_memory() -> None:
    """Give memory that is no longer used back to the system.

    The C library keeps what was freed, so a process that read a large text stays large. Nothing
    happens where the C library is not glibc.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
