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


def each(job: Callable[[int], object], n: int, *, n_threads: int) -> None:
    """Run ``job(0) .. job(n - 1)``, so many at the same time; the first failure is raised.

    Jobs must not call `each` themselves.
    """
    if n == 1 or n_threads == 1:
        for number in range(n):
            job(number)
        return
    for future in [_pool(n_threads).submit(job, number) for number in range(n)]:
        future.result()


@lru_cache(maxsize=4)
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="musketeers")
