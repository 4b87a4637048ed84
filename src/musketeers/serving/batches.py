"""Requests that wait while others are ranked are ranked together.

A ranking of sixteen users takes little longer than that of one, since the items pass by once for
all.  Whoever is alone goes at once.  While others are on their way a list waits for them, but never
for longer than `MOMENT`.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from musketeers.errors import ArtifactError
from musketeers.serving.fresh import Store
from musketeers.serving.ids import Id
from musketeers.serving.lists import Asked, Listed, lists
from musketeers.serving.version import Version

MOST = 64
"""Lists that are made together, at most: more would make the first wait for too long."""

MOMENT = 0.002
"""Seconds."""

Answer = tuple[Version, list[Listed]]
"""Lists, and the version that all of them come from."""


@dataclass(slots=True, eq=False)
class Batches:
    """A queue of wanted lists for each domain, and threads that take from it; for one loop."""

    current: Callable[[], Version]
    fresh: Store | None
    """Where it is kept what users have done since the model was fitted."""
    threads: Executor
    n_free: int
    """Threads that have nothing to do."""
    n_inside: Callable[[], int]
    """How many requests are being worked on, those that wait here included."""
    on_batch: Callable[[int], object]
    """Told how many lists were made together."""
    _waiting: dict[str, list["_Waiting"]] = field(default_factory=dict[str, list["_Waiting"]])
    """In the order in which domains began to wait."""
    _due: float = 0.0
    """When the first has waited long enough, by the loop's clock."""

    async def lists(self, domain: str, asked: Sequence[Asked]) -> Answer:
        """Those of one request, from one version.  Raises what `lists.lists` raises."""
        loop = asyncio.get_running_loop()
        one = _Waiting(asked, loop.create_future())
        if not self._waiting:
            self._due = loop.time() + MOMENT
            loop.call_at(self._due, self._look, loop)
        self._waiting.setdefault(domain, []).append(one)
        # after whatever else has arrived by now
        loop.call_soon(self._look, loop)
        return await one.answer

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin if nobody is left to wait for, or the first has waited long enough."""
        n_waiting = sum(map(len, self._waiting.values()))
        if n_waiting >= min(self.n_inside(), MOST) or loop.time() >= self._due:
            self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        while self.n_free and self._waiting:
            domain = next(iter(self._waiting))
            queue = self._waiting.pop(domain)
            taken = _first(queue)
            if rest := queue[len(taken) :]:
                self._waiting[domain] = rest
            # whose deadline is over has gone
            taken = [one for one in taken if not one.answer.done()]
            if taken:
                self.n_free -= 1
                loop.run_in_executor(self.threads, self._work, loop, domain, taken)

    def _work(self, loop: asyncio.AbstractEventLoop, domain: str, taken: list["_Waiting"]) -> None:
        """On a thread of its own."""
        version, asked = self.current(), [one for each in taken for one in each.asked]
        try:
            asked, lost = _told(self.fresh, asked)
            found: list[Listed] | Exception = lists(version, domain, asked)
            if lost:
                found = [replace(each, degraded=True) for each in found]
        except Exception as error:  # noqa: BLE001 -- raised where it was asked for
            found = error
        loop.call_soon_threadsafe(self._done, loop, version, taken, found)

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        version: Version,
        taken: list["_Waiting"],
        found: list[Listed] | Exception,
    ) -> None:
        self.n_free += 1
        self._look(loop)
        start = 0
        for one in taken:
            stop = start + len(one.asked)
            if one.answer.done():
                pass
            elif isinstance(found, Exception):
                one.answer.set_exception(found)
            else:
                one.answer.set_result((version, found[start:stop]))
            start = stop
        self.on_batch(start)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    asked: Sequence[Asked]
    answer: "asyncio.Future[Answer]"


def _first(queue: list[_Waiting]) -> list[_Waiting]:
    """As many of the queue as are ranked together, one at least."""
    n_lists = 0
    for place, one in enumerate(queue):
        n_lists += len(one.asked)
        if n_lists > MOST:
            return queue[: max(place, 1)]
    return queue


def _told(store: Store | None, asked: Sequence[Asked]) -> tuple[Sequence[Asked], bool]:
    """The same with what is kept of the users' doings, and whether the store failed to say."""
    if store is None:
        return asked, False
    try:
        kept = store.recent([str(one.user) for one in asked])
    except ArtifactError:
        return asked, True
    return [
        replace(one, recent=_joined(one.recent, more))
        for one, more in zip(asked, kept, strict=True)
    ], False


def _joined(
    some: Mapping[str, Sequence[Id]], more: Mapping[str, Sequence[Id]]
) -> Mapping[str, Sequence[Id]]:
    return {name: [*some.get(name, ()), *more.get(name, ())] for name in {**some, **more}}
