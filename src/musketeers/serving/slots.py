"""Places for so many requests at once and a queue for so many more; others are turned away."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Slots:
    """`running` requests have a place, `waiting` ones will have one, first come, first served."""

    def __init__(self, places: int, queue: int) -> None:
        self.running = 0
        self.waiting = 0
        self._places = places
        self._room = places + queue
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        """Whether nobody more may wait."""
        return self.running + self.waiting >= self._room

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """A place until the block ends; to be asked for only unless `full`."""
        self.waiting += 1
        try:
            # whatever arrived together is counted before any of it is worked on: an endpoint that
            # does not wait would let the next ones in one by one and never see the crowd
            await asyncio.sleep(0)
            await self._take()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._give()

    async def _take(self) -> None:
        if self.running < self._places and not self._queue:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # the place came together with the cancellation
            if turn.done() and not turn.cancelled():
                self._give()
            raise

    def _give(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
