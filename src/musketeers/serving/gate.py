"""The one door of the service: who asks, how much at once, how long, and what is said of it.

Gives `Gate`, whose `around` is the app's only middleware.  In order, for each request: a request
id; who asks (`keys`); bounds of headers and body; what operators ask for passes here (`UNGATED`);
then draining, the key's rate, the body read whole, a place among those worked on, and the deadline
over all of that.  Whatever is refused is a problem document; each request is counted and logged
once.
"""

import asyncio
import math
import re
from secrets import token_hex
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from musketeers.serving.keys import Key, Keys
from musketeers.serving.limits import Limits, Rate
from musketeers.serving.logs import Log
from musketeers.serving.metrics import METHODS, UNMATCHED, Metrics
from musketeers.serving.problems import Problem, as_problem, raw
from musketeers.serving.slots import Slots

UNGATED = frozenset(
    {
        "/livez",
        "/readyz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/v1/admin/reload",
        "/v1/admin/rollback",
    }
)
"""Paths that answer however busy the service is, and take the time that they need."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TRACE = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_JSON = b"application/json"
_COMMON = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""For every answer: what is said of a user is kept by no cache."""
_CLOSE = (b"connection", b"close")
_BUSY, _EXPECTED = "busy", "expected"
_SOON = {"Retry-After": "1"}
_POLL = 0.01


class Gate:
    """The door of one app, with what it lets in now."""

    def __init__(self, keys: Keys, limits: Limits, metrics: Metrics, log: Log) -> None:
        self.draining = False
        self._keys = keys
        self.limits = limits
        self._metrics = metrics
        self._log = log
        self._rate = Rate(limits.rate) if limits.rate else None
        self._slots = Slots(limits.concurrency, limits.queue)
        self._most = limits.concurrency + limits.queue
        self._n_coming = self._unplaced = 0
        self._n_away = 0
        self._room = limits.body * (limits.concurrency + limits.queue)
        metrics.watch(lambda: self.inside)

    @property
    def inside(self) -> int:
        """Requests that are worked on now."""
        return self._slots.running

    @property
    def is_crowded(self) -> bool:
        """Whether as many as may are inside, wait, or are on their way.

        Those whose bodies are still arriving take no place from others.
        """
        slots = self._slots
        return self._n_coming + slots.running + slots.waiting >= self._most and not self.draining

    def expect(self, scope: Scope) -> None:
        """Count a request whose task has not begun: of a crowd that comes at once, none has."""
        scope["state"][_EXPECTED] = True
        self._n_coming += 1

    def turned_away(self, *, closes: bool) -> bytes:
        """The answer to a request of which nothing is made; see `problems.raw`.

        It is counted; of such a crowd the log has one line a second, which says how many.
        """
        self._metrics.rejected(_BUSY)
        if not self._n_away:
            asyncio.get_running_loop().call_later(1, self._tell_of_crowd)
        self._n_away += 1
        return raw(_busy(), token_hex(16), closes=closes)

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this gate, for ``app.add_middleware(gate.around)``."""

        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._handle(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return gated

    async def drain(self) -> bool:
        """Let nobody more in and wait for those inside; whether all came out in time."""
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self.limits.drain
        while self._slots.running + self._slots.waiting:
            if loop.time() > end:
                return False
            await asyncio.sleep(_POLL)
        return True

    async def _handle(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        begun = perf_counter()
        head = _Head(scope)
        state = scope.setdefault("state", {})
        self._n_coming -= state.pop(_EXPECTED, False)
        state["request_id"], state["key"] = head.request_id, None
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (b"x-request-id", head.request_id.encode())
                message["headers"] = [*message.get("headers", ()), own, *_COMMON]
                if self.draining:
                    message["headers"].append(_CLOSE)
            await send(message)

        try:
            await self._pass(app, scope, head, receive, answer)
        except Exception as error:  # noqa: BLE001 -- an answer for whatever went wrong
            problem = as_problem(error)
            if problem is error:
                self._metrics.rejected(problem.code)
            else:
                self._log.failure(error, request_id=head.request_id)
            if not status:
                await _refuse(problem, head.request_id, answer)
        finally:
            # without a status it was cancelled, by the server's end; 499 says so to many tools
            self._tell(scope, head, status or 499, perf_counter() - begun)

    async def _pass(
        self, app: ASGIApp, scope: Scope, head: "_Head", receive: Receive, send: Send
    ) -> None:
        key = self._keys.identify(head.authorization, head.host, head.origin)
        scope["state"]["key"] = key
        head.check(self.limits)
        if scope["path"] in UNGATED:
            await app(scope, receive, send)
            return
        self._check_room()
        self._check_rate(key)
        reading = head.has_body
        clock = asyncio.timeout(self.limits.deadline)
        try:
            async with clock:
                if reading:
                    receive = await self._whole(receive)
                    self._check_room()
                    reading = False
                await self._slots.enter()
                try:
                    await app(scope, receive, send)
                finally:
                    self._slots.leave()
        except TimeoutError:
            if not clock.expired():
                raise
            if reading:
                raise Problem(408, headers={"Connection": "close"}) from None
            raise Problem(504) from None

    def _check_room(self) -> None:
        if self.draining:
            raise Problem(503, "draining", "The service is ending.", headers=_SOON)
        if self._slots.full:
            raise _busy()

    def _check_rate(self, key: Key | None) -> None:
        if self._rate and (wait := self._rate.take(key.name if key else "")):
            raise Problem(429, headers={"Retry-After": str(math.ceil(wait))})

    async def _whole(self, receive: Receive) -> Receive:
        """Wait for all of a body, before the request takes a place from others."""
        body, more = bytearray(), True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400)
                part, more = message.get("body", b""), message.get("more_body", False)
                body += part
                self._unplaced += len(part)
                if len(body) > self.limits.body:
                    raise Problem(413)
                # many slow bodies must not fill the memory
                if self._unplaced > self._room:
                    raise _busy()
        finally:
            self._unplaced -= len(body)
        unread = [bytes(body)]

        async def again() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        return again

    def _tell_of_crowd(self) -> None:
        self._log.event("crowded", level="warning", refused=self._n_away)
        self._n_away = 0

    def _tell(self, scope: Scope, head: "_Head", status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in METHODS else "other"
        key: Key | None = scope["state"]["key"]
        self._metrics.answered(route, method, status, seconds)
        self._log.event(
            "request",
            request_id=head.request_id,
            trace_id=head.trace_id,
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1e3, 3),
            key=key and key.name,
        )


class _Head:
    """What the gate needs to know of a request's headers, gathered in one pass."""

    __slots__ = (
        "authorization",
        "content_type",
        "has_body",
        "host",
        "length",
        "origin",
        "request_id",
        "size",
        "trace_id",
    )

    def __init__(self, scope: Scope) -> None:
        size = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        found: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            found[name] = value
        self.size = size
        self.authorization = found.get(b"authorization", b"")
        self.host = found.get(b"host", b"")
        self.origin = found.get(b"origin", b"")
        self.content_type = found.get(b"content-type", b"")
        self.length = int(found.get(b"content-length", b"0"))
        self.has_body = self.length > 0 or b"transfer-encoding" in found
        given = found.get(b"x-request-id", b"")
        self.request_id = given.decode() if _SANE_ID.fullmatch(given) else token_hex(16)
        traced = _TRACE.fullmatch(found.get(b"traceparent", b""))
        self.trace_id = traced[1].decode() if traced else None

    def check(self, limits: Limits) -> None:
        """Raise `Problem` for what is too large or not JSON, as far as the headers tell."""
        if self.size > limits.headers:
            raise Problem(431)
        if self.length > limits.body:
            raise Problem(413)
        if self.has_body and self.content_type.partition(b";")[0].strip().lower() != _JSON:
            raise Problem(415)


def _busy() -> Problem:
    return Problem(503, headers=_SOON)


async def _refuse(problem: Problem, request_id: str, send: Send) -> None:
    headers, body = problem.encoded(request_id)
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
