"""A worker process: ``python -m husai.campaign.executors.worker DESCRIPTOR CHECKPOINTS``."""

from __future__ import annotations

import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def main(descriptor: int, checkpoints: Path | None) -> None:
    """Train or measure the banks that arrive through the pipe, until it closes."""
    # Ctrl-C reaches all processes of the group; only the main process decides what to do
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)
    work: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                work.put(pipe.recv())
            except (EOFError, OSError):
                os._exit(0)  # the main process is gone, so nobody would receive the result

    threading.Thread(target=listen, daemon=True).start()
    from husai.campaign.executors.tasks import calibrate, read_bank_rows, train_task
    from husai.memory import return_memory

    sending = threading.Lock()

    def send(kind: str, value: object) -> None:
        with sending:
            try:
                pipe.send((kind, value))
            except OSError:
                os._exit(0)

    while True:
        bank, path, measure = work.get()
        rows = read_bank_rows(Path(path))
        send("progress", 0.0)
        if measure:
            send("done", calibrate(bank, rows))
        else:
            send("done", train_task(bank, rows, checkpoints, lambda p: send("progress", p)))
        del bank, rows
        return_memory()  # what one bank needed must not be held beside the next one's


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None)
