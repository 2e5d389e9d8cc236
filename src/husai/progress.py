"""Progress of long work: bars on the terminal, lines in logs, and a regular line without a bar."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 4.0
"""Seconds without output after which a :class:`Heartbeat` logs the current step."""

# Seconds between the lines of a bar in a log file: at first, and after it has run for ten minutes.
_LINE_SECONDS, _LATER_LINE_SECONDS, _LATER = 4.0, 30.0, 600.0


class _Lines:
    """A text stream that turns a bar that redraws itself into lines of a log."""

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
    """Make progress bars report to ``sink(done, total)`` inside the block, and show nothing.

    A worker process uses it to send its progress to the bar that shows all workers.
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


class _Shown(tqdm):  # type: ignore[type-arg]
    """A bar that tells the heartbeat when it was last drawn."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar."""
        if isinstance(self.fp, _Lines) and time.time() - self.start_t > _LATER:
            self.mininterval = _LATER_LINE_SECONDS
        _LIFE.seen(self.mininterval)
        super().display(msg, pos)


def progress_bar(
    total: int | float, description: str, unit: str = "it", initial: int = 0, **options: Any
) -> tqdm[Any]:
    """Open a progress bar that shows the rate and the time left.

    On a terminal it redraws in place; in a log file it writes a line every few seconds, every 30
    seconds once it has run for ten minutes, so that a background run leaves a readable log.

    Parameters
    ----------
    total
        Number of units of work.
    description
        What is being done, in a few words.
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
    return _Shown(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        mininterval=0.2 if interactive else _LINE_SECONDS,
        miniters=None if interactive else 1,
        dynamic_ncols=interactive,
        **options,
    )


class _Life:
    """When something was last shown, and which steps are running."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self._silent_since = time.monotonic()

    def seen(self, for_seconds: float = 0.0) -> None:
        """Note that something was shown; the next output of a bar comes in ``for_seconds``."""
        self._silent_since = time.monotonic() + for_seconds

    def silent(self) -> bool:
        """Whether nothing was shown for too long."""
        return time.monotonic() - self._silent_since >= SILENCE_SECONDS


_LIFE = _Life()


@contextmanager
def step(text: str) -> Iterator[None]:
    """Name the work inside the block, for a :class:`Heartbeat`; steps may be nested.

    Parameters
    ----------
    text
        A few words: ``"nulls of topk d256 k4"``.
    """
    _LIFE.steps.append(text)
    try:
        yield
    finally:
        _LIFE.steps.remove(text)


class Heartbeat:
    """Logs the current steps if neither a log line nor a bar was shown for some seconds.

    It runs in a thread of its own, from :meth:`start` to :meth:`stop`.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._watch = _Watch()

    def start(self) -> None:
        """Start to watch; does nothing if it already does."""
        if self._thread is not None:
            return
        self._ended.clear()
        _LIFE.seen()
        logging.getLogger().addHandler(self._watch)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        logging.getLogger().removeHandler(self._watch)

    def _beat(self) -> None:
        began, last = time.monotonic(), ""
        while not self._ended.wait(SILENCE_SECONDS / 8):
            steps = list(_LIFE.steps)
            if steps and steps[0] != last:  # count the time of the outermost step
                began, last = time.monotonic(), steps[0]
            if steps and _LIFE.silent():
                logger.info("%s … %.0f s", ", ".join(steps), time.monotonic() - began)


@contextmanager
def heartbeat(text: str) -> Iterator[None]:
    """Run a heartbeat during the block, with a name for the work."""
    beating = Heartbeat()
    beating.start()
    try:
        with step(text):
            yield
    finally:
        beating.stop()


class _Watch(logging.Handler):
    """Notices that a line was logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Notice a line."""
        _LIFE.seen()
