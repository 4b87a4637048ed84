"""uvicorn's HTTP/1.1 with what it lacks before a request reaches the app.

Gives `protocol`, for ``uvicorn.Config(http=...)``: headers may not grow without end while they
arrive, what is no HTTP is answered with a problem document, too, and an answer is sent in one go.
"""

import asyncio
from functools import partial
from secrets import token_hex
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from musketeers.serving.corked import Corked
from musketeers.serving.limits import Limits
from musketeers.serving.problems import Problem, raw


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol with those limits."""
    # uvicorn only calls it
    return cast(type[asyncio.Protocol], partial(_Bounded, limits))


class _Bounded(HttpToolsProtocol):
    def __init__(self, limits: Limits, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._in_head = False
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        super().connection_made(cast(asyncio.Transport, Corked(transport, self.loop)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._unread = self._unread + len(data) if self._in_head else 0
        # the gate counts exactly; this is against what never comes to an end
        if self._unread > 2 * self._limits.headers and not self.transport.is_closing():
            self._end(Problem(431))

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's own words
        self._end(Problem(400, "not_http", "This is no HTTP/1.1 request."))

    def _end(self, problem: Problem) -> None:
        self.transport.write(raw(problem, token_hex(16)))
        self.transport.close()
