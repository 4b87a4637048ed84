"""What the service says on stderr: one line per request and per event, as JSON or plain text.

Gives `Log`.  A line has no path, id, score, key or body; of an exception it has the type and where
it arose, not its text, which could hold an id.
"""

import logging
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from pydantic_core import to_json

Form = Literal["text", "json"]

_MAX_FRAMES = 30


@dataclass(frozen=True, slots=True)
class Log:
    """Where lines go and in which form."""

    form: Form = "json"
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def event(self, name: str, *, level: str = "info", **fields: Any) -> None:
        """One line; `fields` are plain values without anything of a user."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self.form == "json":
            line = to_json({"time": time, "level": level, "event": name, **fields}).decode()
        else:
            said = (f" {key}={value}" for key, value in fields.items() if value is not None)
            line = f"{time} {level} {name}{''.join(said)}"
        # a log that cannot be written must not end what it tells of
        with suppress(OSError, ValueError):
            # one call for a line: those of several threads do not mix
            self.stream.write(line + "\n")
            self.stream.flush()

    def failure(self, error: BaseException, **fields: Any) -> None:
        """Something failed for a reason that nobody foresaw."""
        self.event("failure", level="error", **fields, **_origin(error))

    def adopt(self) -> None:
        """Also say what uvicorn and asyncio have to say, of level warning or above.

        For the process that serves; uvicorn is given ``log_config=None`` and
        ``access_log=False``.
        """
        for name in ("uvicorn", "asyncio"):
            log = logging.getLogger(name)
            log.handlers, log.propagate = [_Adopted(self)], False
            log.setLevel(logging.WARNING)


class _Adopted(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log.event(
            "log",
            level=record.levelname.lower(),
            logger=record.name,
            # asyncio shows an exception's text in the lines that follow
            message=record.getMessage().partition("\n")[0],
            **(_origin(error) if error else {}),
        )


def _origin(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    return {
        "error": type(error).__qualname__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
