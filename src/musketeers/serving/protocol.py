"""uvicorn's HTTP/1.1 with what it lacks before a request reaches the app.

Gives `protocol`, for ``uvicorn.Config(http=...)``.  Headers may not grow without end while they
arrive; what is no HTTP is answered with a problem document, too; an answer is sent in one go; and
while too many requests are there already, others are refused before anything is made of them, since
a crowd of refusals must not keep those inside from their answers.
"""

import asyncio
from functools import partial
from secrets import token_hex
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from musketeers.serving.corked import Corked
from musketeers.serving.gate import UNGATED, Gate
from musketeers.serving.problems import Problem, raw


def protocol(gate: Gate) -> type[asyncio.Protocol]:
    """uvicorn's protocol before that gate."""
    # uvicorn only calls it
    return cast(type[asyncio.Protocol], partial(_Bounded, gate))


_UNGATED = frozenset(path.encode() for path in UNGATED)


class _Bounded(HttpToolsProtocol):
    def __init__(self, gate: Gate, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gate = gate
        self._in_head = False
        self._is_refused = False
        """Whether the request that is arriving has its answer already."""
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(cast(asyncio.Transport, Corked(transport, self.loop)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._is_refused = True, False

    def on_headers_complete(self) -> None:
        self._in_head = False
        # one that comes before the last one's answer waits for that, and is the gate's matter
        is_next = not self.cycle or self.cycle.response_complete
        if is_next and self.url not in _UNGATED:
            if self._gate.is_crowded:
                self._turn_away()
                return
            self._gate.expect(cast(Scope, self.scope))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            super().on_message_complete()
        self._is_refused = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._unread = self._unread + len(data) if self._in_head else 0
        if self.transport.is_closing():
            return
        # the gate counts exactly; this is against what never comes to an end
        if self._unread > 2 * self._gate.limits.headers:
            self._end(Problem(431))
        # nobody waits for the rest of what is refused already
        if self._is_refused:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's own words
        self._end(Problem(400, "not_http", "This is no HTTP/1.1 request."))

    def _turn_away(self) -> None:
        self._is_refused = True
        closes = self.parser is None or not self.parser.should_keep_alive()
        self.transport.write(self._gate.turned_away(closes=closes))
        if closes:
            self.transport.close()
        else:
            self.on_response_complete()

    def _end(self, problem: Problem) -> None:
        self.transport.write(raw(problem, token_hex(16), closes=True))
        self.transport.close()
