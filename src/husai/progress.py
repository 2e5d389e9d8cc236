"""One progress bar for all long work."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


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
