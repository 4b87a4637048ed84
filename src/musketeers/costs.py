"""What a piece of work took: its time, and the most memory of the process meanwhile."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from musketeers import memory


@dataclass(slots=True)
class Cost:
    """Of one piece of work; zeros until it is over."""

    seconds: float = 0.0
    peak_bytes: int = 0
    """The most that the process held, all that it held before included."""


@contextmanager
def metered() -> Generator[Cost]:
    """The cost of the block, also of one that fails; blocks must not lie within each other."""
    cost, start = Cost(), time.perf_counter()
    memory.forget_peak()
    try:
        yield cost
    finally:
        cost.seconds, cost.peak_bytes = time.perf_counter() - start, memory.peak()
