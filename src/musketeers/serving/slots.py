"""Places for so many requests at once and a queue for so many more; others are turned away."""

import asyncio
from collections import deque


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

    async def enter(self) -> None:
        """Wait for a place, to be given back by `leave`; only to be asked for unless `full`."""
        self.waiting += 1
        try:
            # whatever arrived together is counted before any of it is worked on: an endpoint that
            # does not wait would let the next ones in one by one and never see the crowd
            await asyncio.sleep(0)
            await self._take()
        finally:
            self.waiting -= 1

    def leave(self) -> None:
        """Give the place to whoever waits longest."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

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
                self.leave()
            raise
