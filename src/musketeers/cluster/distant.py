"""A `Watch` that is somewhere else than who is watched."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import ray

from musketeers.cluster.board import Board
from musketeers.protocols import untold
from musketeers.runs import Watch
from musketeers.training import Epoch, ignore


@dataclass(frozen=True, slots=True)
class _Began:
    stage: str
    domain: str | None
    samples: int
    max_epochs: int


@dataclass(frozen=True, slots=True)
class Distant:
    """A `Watch` that writes on a board all that it is told, for one that `hearing` reads it to."""

    board: Board

    @contextmanager
    def stage(
        self, stage: str, domain: str | None, *, samples: int, max_epochs: int
    ) -> Generator[Callable[[Epoch], None]]:
        """See `Watch.stage`; one at a time."""
        self.board.tell(_Began(stage, domain, samples, max_epochs))

        def on_epoch(epoch: Epoch) -> None:
            self.board.tell(epoch)

        yield on_epoch
        ray.get(self.board.tell(None))

    def rows(self, stage: str, domain: str) -> AbstractContextManager[Callable[[int], object]]:
        """See `Watch.rows`; tells nobody."""
        return untold(stage, domain)

    def say(self, line: str) -> None:
        """See `Watch.say`."""
        self.board.tell(line)


@contextmanager
def hearing(board: Board, watch: Watch) -> Generator[Callable[[], None]]:
    """What reads to `watch` all that is new on the board; a stage that fails has no end."""
    with ExitStack() as stages:
        on_epoch: Callable[[Epoch], None] = ignore

        def hear() -> None:
            nonlocal on_epoch
            for news in board.take():
                match news:
                    case _Began():
                        on_epoch = stages.enter_context(
                            watch.stage(
                                news.stage, news.domain,
                                samples=news.samples, max_epochs=news.max_epochs,
                            )
                        )  # fmt: skip
                    case Epoch():
                        on_epoch(news)
                    case str():
                        watch.say(news)
                    case _:
                        stages.close()

        yield hear
