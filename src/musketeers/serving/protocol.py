"""uvicorn's HTTP/1.1 with what it lacks before a request reaches the app.

Gives `protocol`, for ``uvicorn.Config(http=...)``: headers may not grow without end while they
arrive, and what is no HTTP is answered with a problem document, too.
"""

from secrets import token_hex
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from musketeers.serving.limits import Limits
from musketeers.serving.problems import Problem, raw


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with those limits."""

    class Bounded(HttpToolsProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._in_head = False
            self._unread = 0

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
            if self._unread > 2 * limits.headers and not self.transport.is_closing():
                self._end(Problem(431))

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's own words
            self._end(Problem(400, "not_http", "This is no HTTP/1.1 request."))

        def _end(self, problem: Problem) -> None:
            self.transport.write(raw(problem, token_hex(16)))
            self.transport.close()

    return Bounded
