"""Every error of the service in one form: RFC 9457 problem documents.

Gives `Problem`, the exception to raise; `as_problem`, what any exception is to the caller;
`install`, which makes an app answer with them; `raw`, for where there is no app yet; and
`RESPONSES`, what its OpenAPI document says of them.  An answer repeats nothing of a request (no
id, body, header or key) and nothing of an exception that was not written for callers: its text
could hold an id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from musketeers.errors import ConfigError, DataError, UnknownNameError

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 16
"""More broken rules than this are not listed: a long list of wrong ids stays a short answer."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STATUSES = {
    400: ("malformed", "The request cannot be read; a body must be one JSON document in UTF-8."),
    401: ("unauthenticated", "No key was given, or none that is known here."),
    403: ("forbidden", "The key does not allow this."),
    404: ("not_found", "There is nothing at this path."),
    405: ("method_not_allowed", "The path does not take this method; see the Allow header."),
    408: ("body_too_slow", "The body did not arrive in time."),
    409: ("conflict", "Something else is being done that excludes this."),
    413: ("body_too_large", "The body is larger than this service reads."),
    415: ("unsupported_media_type", "A body must be of the type application/json."),
    421: ("misdirected", "The Host header names another host than this one."),
    422: ("invalid", "The request breaks a rule; see errors."),
    429: ("rate_limited", "The key has used up its rate; see the Retry-After header."),
    431: ("headers_too_large", "The headers are larger than this service reads."),
    500: ("internal", "The service failed; the operator finds the cause by the request id."),
    503: ("busy", "The service cannot take the request now; see the Retry-After header."),
    504: ("deadline", "The answer took longer than the service allows."),
}
"""Status -> the code and the sentence that it has unless a `Problem` says otherwise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule of a request."""

    pointer: str
    """A JSON pointer (RFC 6901) into {"path", "query", "header", "body"}, such as /body/k."""
    detail: str


class Problem(Exception):
    """An answer that is an error, to be raised by whatever handles a request.

    `status` is one of those in `RESPONSES`, or 409.  `code` is what programs go by, `detail` a
    sentence for people, by default those of the status; neither may repeat what a caller sent.
    """

    def __init__(
        self,
        status: int,
        code: str | None = None,
        detail: str | None = None,
        *,
        errors: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        common = _STATUSES[status]
        self.status = status
        self.code = code or common[0]
        self.detail = detail or common[1]
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        super().__init__(f"{status} {self.code}: {self.detail}")

    def encoded(self, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The headers and the document of the answer."""
        body = to_json(
            {
                "type": "about:blank",
                "title": HTTPStatus(self.status).phrase,
                "status": self.status,
                "detail": self.detail,
                "code": self.code,
                "request_id": request_id,
                "errors": [{"pointer": e.pointer, "detail": e.detail} for e in self.errors],
            }
        )
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **self.headers}
        return [(n.lower().encode(), v.encode()) for n, v in headers.items()], body


def as_problem(error: Exception) -> Problem:
    """What `error` is to the caller: 500 unless it is one that requests bring about."""
    match error:
        case Problem():
            return error
        case HTTPException():
            return _of_framework(error)
        case RequestValidationError():
            return _of_validation(error)
        case UnknownNameError():
            return Problem(404, "unknown_name", "No such user, item or domain is known.")
        case DataError() | ConfigError():
            return Problem(422)
        case _:
            return Problem(500)


def install(app: FastAPI) -> None:
    """Make `app` answer every error that a request brings about as a problem document.

    All other exceptions pass; the gate (`gate.Gate`) answers and logs them.  A path with a
    slash too many is unknown, not redirected: the address to go to would repeat ids.
    """
    app.router.redirect_slashes = False
    for kind in (Problem, HTTPException, RequestValidationError, DataError, ConfigError):
        app.add_exception_handler(kind, _answer)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _SCHEMA
        return document

    app.openapi = openapi


def raw(problem: Problem, request_id: str, *, closes: bool) -> bytes:
    """The whole answer as HTTP/1.1 has it; `closes`: the connection ends with it."""
    headers, body = problem.encoded(request_id)
    headers.append((b"x-request-id", request_id.encode()))
    if closes:
        headers.append((b"connection", b"close"))
    first = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n".encode()
    return first + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n" + body


def response(status: int) -> dict[str, Any]:
    """The OpenAPI response object of problems with this status."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": _STATUSES[status][1], "content": {MEDIA_TYPE: {"schema": schema}}}


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: response(status) for status in _STATUSES if status != HTTPStatus.CONFLICT
}
"""For ``FastAPI(responses=...)``: what every route may answer; 409 is added where it applies."""

_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "A problem document (RFC 9457).",
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "title", "status", "detail", "code", "request_id", "errors"],
    "properties": {
        "type": {"const": "about:blank"},
        "title": {"type": "string", "description": "The name of the status."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "code": {
            "type": "string",
            "pattern": "^[a-z_]+$",
            "description": "What is wrong, for programs.",
        },
        "request_id": {"type": "string", "description": "What the operator's log calls it."},
        "errors": {
            "type": "array",
            "maxItems": MAX_FAULTS,
            "description": "The rules that the request breaks, if it can be said which.",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "A JSON pointer into {path, query, header, body}.",
                    },
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


async def _answer(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException) or error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        problem = as_problem(error)
    else:
        problem = Problem(405, headers={"Allow": ", ".join(_allowed(request.app, request.scope))})
    answer = Response(status_code=problem.status)
    request_id = request.scope.get("state", {}).get("request_id", "")
    answer.raw_headers, answer.body = problem.encoded(request_id)
    return answer


def _allowed(app: FastAPI, scope: Scope) -> list[str]:
    """The methods of all routes at this path; the framework names those of the first alone."""
    return [
        method
        for method in _METHODS
        if any(r.matches({**scope, "method": method})[0] is Match.FULL for r in app.router.routes)
    ]


def _of_framework(error: HTTPException) -> Problem:
    status = error.status_code if error.status_code in _STATUSES else 500
    return Problem(status, headers=error.headers)


def _of_validation(error: RequestValidationError) -> Problem:
    found: Sequence[Mapping[str, Any]] = error.errors()
    if any(e["type"] == "json_invalid" for e in found):
        return Problem(400)
    faults = dict.fromkeys(Fault(_pointer(e), _rule(e)) for e in found[:MAX_FAULTS])
    return Problem(422, errors=tuple(faults))


def _pointer(error: Mapping[str, Any]) -> str:
    """Where the rule is broken, as deep as names are ours: a map's keys are the caller's."""
    where = list(error["loc"])
    if error["type"] == "extra_forbidden":
        where.pop()
    deep = next((i for i, part in enumerate(where) if i > 1 and isinstance(part, str)), len(where))
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in where[:deep])
    return "".join(f"/{part}" for part in parts)


def _rule(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "There is a field here that is not known"
    return str(error["msg"]).removeprefix("Value error, ")
