"""A time budget: what is left of it, and what was decided by it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from musketeers.errors import ConfigError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(slots=True)
class Clock:
    """The one place where time decides.

    What a clock decides is no function of seed and data, so every decision is kept: who starts
    again with the `decisions` of before decides the same.
    """

    seconds: float
    """The budget; infinite where time does not matter."""
    decisions: dict[str, bool] = field(default_factory=dict[str, bool])
    """What was asked -> whether there was time for it."""
    keep: Callable[[], None] = lambda: None
    """Called after each new decision."""
    start: float = field(default_factory=monotonic)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds until the budget is spent; below 0 after that."""
        return self.seconds - self.spent

    def allows(self, what: str, seconds: float) -> bool:
        """Whether `what`, which is expected to take so long, can still be done."""
        if what not in self.decisions:
            self.decisions[what] = seconds <= self.left
            self.keep()
        return self.decisions[what]


def in_seconds(time: str | float) -> float:
    """Seconds from such as ``90s``, ``5m``, ``1.5h`` or ``300``; above 0.

    Raises `ConfigError` for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(time).strip())
    if found is None or not (seconds := float(found[1]) * _UNITS[found[2]]):
        raise ConfigError(f"budget is {time!r}; give a time above 0 such as 90s, 5m or 1h")
    return seconds
