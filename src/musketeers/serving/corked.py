"""A connection on which what is written in one turn of the event loop leaves together.

uvicorn writes an answer's headers and its body one after the other: two system calls, and two
packets that wake the client twice.
"""

import asyncio
from typing import Any


class Corked:
    """The transport that it is given, but for `write` and `close`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """To be sent at the end of this turn."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """After what is held."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))
