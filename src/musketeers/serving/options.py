"""How to serve, but for the limits."""

from dataclasses import dataclass
from pathlib import Path

from musketeers.serving.logs import Form


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve, but for the limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: one that is free."""
    keys: Path | None = None
    secret: Path | None = None
    fresh: str | None = None
    """Where fresh interactions are kept; None: nowhere."""
    explains: bool = False
    stages: bool = True
    """Whether to read what the run's stages made, beside its model."""
    threads: int | None = None
    """That rank; by default all processors but one, which the rest needs."""
    watch: float = 0.5
    """Seconds between two looks at whether there is another version; 0: none."""
    log: Form | None = None
    """By default text on a terminal, else JSON."""
