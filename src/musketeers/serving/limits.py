"""How much the service takes on: `Limits`, and `Rate`, the requests that a key has left."""

import math
from dataclasses import dataclass, field
from time import monotonic

from musketeers.errors import ConfigError

_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a service; raises `ConfigError` for a value that makes no sense."""

    concurrency: int = 32
    """Requests that are worked on at once."""
    queue: int = 64
    """Requests that wait for that; others are refused at once."""
    deadline: float = 0.5
    """Seconds for a request, waiting included."""
    rate: float | None = None
    """Requests a second for each key, with one second's worth at once; None: as many as come."""
    body: int = 256 * 1024
    """Bytes of a body."""
    headers: int = 16 * 1024
    """Bytes of all headers and the address."""
    drain: float = 20.0
    """Seconds for finishing what was begun, when the service ends."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "body", "headers"):
            _check(name, getattr(self, name), lowest=1)
        _check("queue", self.queue, lowest=0)
        _check("deadline", self.deadline, lowest=0.001)
        _check("drain", self.drain, lowest=0)
        if self.rate is not None:
            _check("rate", self.rate, lowest=1 / _DAY)


@dataclass(slots=True)
class Rate:
    """A bucket of tokens that refills with time, for each of the keys."""

    per_second: float
    _left: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def take(self, key: str) -> float:
        """Seconds until `key` may ask again; 0 if it may now, which uses up one token."""
        now, full = monotonic(), max(1.0, self.per_second)
        tokens, then = self._left.get(key, (full, now))
        tokens = min(full, tokens + (now - then) * self.per_second)
        if tokens < 1.0:
            self._left[key] = (tokens, now)
            return (1.0 - tokens) / self.per_second
        self._left[key] = (tokens - 1.0, now)
        return 0.0


def _check(name: str, value: float, *, lowest: float) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or value < lowest:
        raise ConfigError(f"{name} must be at least {lowest:g} (found {value!r})")
