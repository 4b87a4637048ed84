"""One pool of threads for the compiled loops, which release the interpreter's lock.

The loops take their share of the work as arguments, so that results depend on the number
of threads asked for and never on which thread ran first.
"""

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import threadpool_limits


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


@contextmanager
def libraries_on_one_thread() -> Generator[None]:
    """Hold BLAS and torch to one thread, since the work is shared out here already.

    Two pools on the same processors wait for each other: BLAS's goes on spinning after a product
    and takes the time from whatever comes next, and torch's needs up to a hundred times as long
    for a small step on a busy machine.
    """
    import torch  # whoever only recommends does without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=4)
def _pool(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, thread_name_prefix="musketeers")
