"""What may be tuned, and within which bounds."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are."""

    low: float
    high: float
    log: bool = True
    """Whether factors count and not differences."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    values: tuple[str | int | float | bool, ...]


Space = Mapping[str, Range | Choice]
