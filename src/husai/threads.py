"""A pool of threads that share the cores: their linear algebra starts no further threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]


@contextmanager
def worker_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``workers`` threads, in which BLAS uses one thread each.

    Two threads that each wait for two BLAS threads spend more time waiting than computing, several
    times more on busy cores. With one worker, BLAS keeps its own number of threads.
    """
    with (
        threadpool_limits(1 if workers > 1 else None, user_api="blas"),
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        yield pool
