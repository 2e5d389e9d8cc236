from .base import Done, Event, Executor, Lost, Progress
from .choice import check_backend, make_executor

__all__ = [
    "Done",
    "Event",
    "Executor",
    "Lost",
    "Progress",
    "check_backend",
    "make_executor",
]
