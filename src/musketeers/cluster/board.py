"""How jobs that run on a cluster tell the driver's one live view what they do."""

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from musketeers.training import Epoch


@dataclass(frozen=True, slots=True)
class News:
    """What one attempt at a job tells."""

    job: str
    attempt: str
    host: str
    epoch: Epoch | None = None
    """None when the attempt begins."""


@dataclass(frozen=True, slots=True)
class Board:
    """A process on the driver's machine that jobs tell and the driver asks; dies with the driver.

    What it is told stays pickled there, so that it starts at once, without what the news is made
    of.
    """

    _process: Any

    @classmethod
    def opened(cls) -> "Board":
        """A new one, on which there is nothing."""
        here = ray.get_runtime_context().get_node_id()
        place = NodeAffinitySchedulingStrategy(here, soft=False)
        process = ray.remote(_keeper()).options(num_cpus=0, scheduling_strategy=place)
        return cls(process.remote())

    def tell(self, news: object) -> "ray.ObjectRef[Any]":
        """Put news on it; the reference is there once they are."""
        return self._process.tell.remote(pickle.dumps(news))

    def take(self) -> list[Any]:
        """All news since the last time, in the order in which they came."""
        return [pickle.loads(news) for news in ray.get(self._process.take.remote())]


def _keeper() -> type:
    """A class within a function is sent whole, and so imports nothing of this package."""

    class Keeper:
        def __init__(self) -> None:
            self.news: list[bytes] = []

        def tell(self, news: bytes) -> None:
            self.news.append(news)

        def take(self) -> list[bytes]:
            taken, self.news = self.news, []
            return taken

    return Keeper


@dataclass(slots=True)
class View:
    """What the driver has heard of some jobs, and whom it tells."""

    watched: Callable[[str], AbstractContextManager[Callable[[Epoch], None]]]
    """Job -> who hears of its epochs, from its beginning to its end."""
    on_lost: Callable[[str, str], None]
    """(job, host): the worker before was lost, and the job goes on there."""
    attempts: dict[str, str] = field(default_factory=dict[str, str])
    """Of each job that has begun and not ended, the latest attempt."""
    _shown: dict[str, tuple[ExitStack, Callable[[Epoch], None]]] = field(
        default_factory=dict[str, Any]
    )

    def hear(self, news: News) -> None:
        """Show it, unless an attempt that was given up tells it."""
        if news.epoch is None:
            self._begin(news)
        elif self.attempts.get(news.job) == news.attempt:
            self._shown[news.job][1](news.epoch)

    def end(self, job: str) -> None:
        """The job is over."""
        del self.attempts[job]
        self._shown.pop(job)[0].close()

    def _begin(self, news: News) -> None:
        if news.job in self.attempts:
            self.on_lost(news.job, news.host)
        else:
            shown = ExitStack()
            self._shown[news.job] = shown, shown.enter_context(self.watched(news.job))
        self.attempts[news.job] = news.attempt

    def close(self) -> None:
        """All jobs are over."""
        for job in list(self.attempts):
            self.end(job)
