"""A pool of threads that share the cores between them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]


@contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Give ``workers`` threads, whose linear algebra starts no threads of its own meanwhile.

    Two threads that each wait for two BLAS threads spend more time waiting than computing, several
    times more on busy cores. One worker leaves BLAS as it is.
    """
    with (
        threadpool_limits(1 if workers > 1 else None, user_api="blas"),
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        yield pool
