"""Turns signals that would kill the process into an ordinary exit, so that runs are closed."""

from __future__ import annotations

import signal
import threading
from types import FrameType

ENDING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise ``SystemExit``, unless they are handled or ignored already."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def restore_signals() -> None:
    """Restore the default effect of these signals."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        if signal.getsignal(number) is _exit:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    restore_signals()  # a second signal ends the process at once
    raise SystemExit(128 + number)
