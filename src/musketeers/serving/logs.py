"""What the service says on stderr: one line per request and per event, as JSON or plain text.

Gives `configure`, `event`, `request` and `failure`.  A line has no path, id, score, key or body;
of an exception it has the type and where it arose, not its text, which could hold an id.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Form = Literal["text", "json"]

_LOG = logging.getLogger("musketeers.serving")
_OTHERS = ("uvicorn", "uvicorn.error", "asyncio")
_MAX_FRAMES = 30


def configure(form: Form, stream: TextIO | None = None) -> None:
    """Write the service's, uvicorn's and asyncio's lines to `stream`, by default stderr.

    To be called once by the process that serves; uvicorn is given ``log_config=None`` and
    ``access_log=False``.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    for log in (_LOG, *map(logging.getLogger, _OTHERS)):
        log.handlers, log.propagate = [], False
    for log in (_LOG, logging.getLogger("uvicorn"), logging.getLogger("asyncio")):
        log.handlers = [handler]
        log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").propagate = True


def event(name: str, *, level: int = logging.INFO, **fields: str | float | None) -> None:
    """Something happened, such as a model loaded or refused; `fields` hold no user's data."""
    _LOG.log(level, name, extra={"fields": fields})


def request(
    *,
    request_id: str,
    trace_id: str | None,
    method: str,
    route: str,
    status: int,
    seconds: float,
    key: str | None,
) -> None:
    """A request was answered; `route` is a template, `key` a key's name."""
    if _LOG.isEnabledFor(logging.INFO):
        fields = {
            "request_id": request_id,
            "trace_id": trace_id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 3),
            "key": key,
        }
        _LOG.info("request", extra={"fields": fields})


def failure(error: BaseException, *, request_id: str) -> None:
    """A request failed for a reason that nobody foresaw."""
    _LOG.error("failure", exc_info=error, extra={"fields": {"request_id": request_id}})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_parts(record))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = _parts(record)
        head = f"{parts.pop('time')} {parts.pop('level')} {parts.pop('event')}"
        where: list[str] = parts.pop("at", [])
        said = "".join(f" {name}={value}" for name, value in parts.items() if value is not None)
        return head + said + "".join(f"\n  at {place}" for place in where)


def _parts(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    parts: dict[str, Any] = {
        "time": time,
        "level": record.levelname.lower(),
        "event": record.getMessage().strip(),
        **getattr(record, "fields", {}),
    }
    if record.exc_info and (error := record.exc_info[1]):
        parts["error"] = type(error).__qualname__
        frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
        parts["at"] = [f"{f.filename}:{f.lineno} {f.name}" for f in frames]
    return parts
