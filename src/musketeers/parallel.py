"""One pool of threads for the compiled loops, which release the interpreter's lock.

The loops take their share of the work as arguments, so that results depend on the number
of threads asked for and never on which thread ran first.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache


def available_threads() -> int:
    """Processors this process may use (affinity is respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(job: Callable[[int], object], n: int) -> None:
    """Run ``job(0) .. job(n - 1)`` at the same time and wait for all; the first failure is raised.

    Jobs must not call `each` themselves.
    """
    if n == 1:
        job(0)
        return
    for future in [_pool(n).submit(job, lane) for lane in range(n)]:
        future.result()


@lru_cache(maxsize=4)
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="musketeers")
