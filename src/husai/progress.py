"""One progress bar for all long work."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm


class _Lines:
    """A text stream on which a bar that redraws itself becomes lines of a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(
    total: int | float, description: str, unit: str = "it", initial: int = 0, **options: Any
) -> tqdm[Any]:
    """Open a progress bar that shows the rate and the time left.

    On a terminal it redraws in place; in a log file it writes a line every 30 seconds, so that a
    background run leaves a readable log.

    Parameters
    ----------
    total
        Units of work in all.
    description
        What is going on, a few words.
    unit
        Name of one unit of work.
    initial
        Units already done, when resuming.
    **options
        Further arguments for :class:`tqdm.tqdm`.
    """
    interactive = sys.stderr.isatty()
    if not interactive:
        options = {"file": _Lines(sys.stderr), "ncols": 100, **options}
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        mininterval=0.2 if interactive else 30.0,
        miniters=None if interactive else 1,
        dynamic_ncols=interactive,
        **options,
    )
