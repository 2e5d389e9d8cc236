"""One progress bar for all long work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


Sink = Callable[[float, float], None]
_SINK: ContextVar[Sink | None] = ContextVar("progress_sink", default=None)


@contextmanager
def progress_to(sink: Sink) -> Iterator[None]:
    """Let the progress bars opened meanwhile report to ``sink(done, total)`` and show nothing.

    So a worker's progress gets to the view that shows all workers.
    """
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


class _Reported(tqdm):  # type: ignore[type-arg]
    """A bar that is not shown and reports its progress to a sink."""

    def __init__(self, total: int | float, initial: int, sink: Sink) -> None:
        super().__init__(total=total, disable=True)
        self._total, self._done, self._sink = float(total), float(initial), sink
        sink(self._done, self._total)

    def update(self, n: float | None = 1) -> bool | None:
        """Count ``n`` units of work as done."""
        self._done += 1 if n is None else n
        self._sink(self._done, self._total)
        return None


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
    sink = _SINK.get()
    if sink is not None:
        return _Reported(total, initial, sink)
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
