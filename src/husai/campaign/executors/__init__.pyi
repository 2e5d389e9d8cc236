from .base import POLL_SECONDS, Done, Event, Executor, Lost, Progress
from .choice import check_backend, make_executor

__all__ = [
    "POLL_SECONDS",
    "Done",
    "Event",
    "Executor",
    "Lost",
    "Progress",
    "check_backend",
    "make_executor",
]
