"""The memory of this machine, and what would not fit into it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from husai.errors import InputError

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """Give the memory that this process may have, in bytes: the machine's, or its container's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total


def check_memory(needed: float, what: str, advice: str) -> None:
    """Refuse what takes more memory than this machine has.

    Parameters
    ----------
    needed
        An estimate, in bytes.
    what
        The fields and values that take it.
    advice
        What to do about it.

    Raises
    ------
    InputError
        With both numbers.
    """
    there = machine_memory()
    if needed > there:
        raise InputError(
            f"{what}: about {needed / 1e9:,.1f} GB of memory, and this machine has "
            f"{there / 1e9:,.1f} GB; {advice}"
        )
