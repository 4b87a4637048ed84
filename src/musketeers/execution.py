"""Where the jobs of a stage are done: here, one after another, or elsewhere and at once."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from musketeers.costs import Cost
from musketeers.data.domains import Split
from musketeers.run_folder import FolderCheckpoint
from musketeers.training import Epoch, Job

Made = TypeVar("Made")
Work = Callable[[Job], Made]
"""One domain's part of a stage; to be sent elsewhere, a `functools.partial` of a public function
over what can be pickled."""


class Jobs(Protocol):
    """Where the trainings of a run keep their progress, and where those of a stage are done."""

    def __call__(self, stage: str, domain: str | None, max_epochs: int, /) -> Job:
        """One training, done here; the domain is None for all together."""
        ...

    def each(
        self, stage: str, work: Mapping[str, Work[Made]], *, max_epochs: int, dim: int
    ) -> dict[str, Made]:
        """What the work of each domain makes, in that order, wherever it is done.

        `dim` is the width of the vectors, with which the memory grows.
        """
        ...


@dataclass(frozen=True, slots=True)
class InTurn:
    """`Jobs` that are all done here, kept and watched as `opened` says."""

    opened: Callable[[str, str | None, int], Job]

    def __call__(self, stage: str, domain: str | None, max_epochs: int, /) -> Job:
        """See `Jobs.__call__`."""
        return self.opened(stage, domain, max_epochs)

    def each(
        self, stage: str, work: Mapping[str, Work[Made]], *, max_epochs: int, dim: int
    ) -> dict[str, Made]:
        """See `Jobs.each`; the results do not depend on `dim`."""
        del dim
        return {name: do(self(stage, name, max_epochs)) for name, do in work.items()}


@dataclass(frozen=True, slots=True)
class Renamed:
    """The same `Jobs`, whose progress is kept under the name of another stage."""

    jobs: Jobs
    stage: str

    def __call__(self, stage: str, domain: str | None, max_epochs: int, /) -> Job:
        """See `Jobs.__call__`."""
        del stage
        return self.jobs(self.stage, domain, max_epochs)

    def each(
        self, stage: str, work: Mapping[str, Work[Made]], *, max_epochs: int, dim: int
    ) -> dict[str, Made]:
        """See `Jobs.each`."""
        del stage
        return self.jobs.each(self.stage, work, max_epochs=max_epochs, dim=dim)


@dataclass(frozen=True, slots=True)
class Watched:
    """A `Job` that keeps its progress in a folder, and whose epochs somebody hears of."""

    folder: Path | None
    """None keeps none."""
    on_epoch: Callable[[Epoch], None]
    writer: str = ""
    """See `FolderCheckpoint.writer`."""

    def checkpoint(self, part: str) -> FolderCheckpoint | None:
        """See `Job.checkpoint`."""
        return FolderCheckpoint(self.folder / part, self.writer) if self.folder else None


class Keeper(Protocol):
    """Of one run: who keeps the accounts of its jobs."""

    @property
    def splits(self) -> Mapping[str, Split]:
        """What the jobs are about."""
        ...

    @property
    def n_threads(self) -> int:
        """Of each job."""
        ...

    def __call__(self, stage: str, domain: str | None, max_epochs: int, /) -> Job:
        """A job that is done here; the one before is over."""
        ...

    def place(self, stage: str, domain: str | None) -> Path | None:
        """The folder for a job's progress; None keeps none."""
        ...

    def watched(
        self, stage: str, domain: str | None, max_epochs: int
    ) -> AbstractContextManager[Callable[[Epoch], None]]:
        """Who hears of a job's epochs, from its start to its end; others may be at that time."""
        ...

    def spent(self, stage: str, domain: str, cost: Cost) -> None:
        """Note what a job took that was done elsewhere."""
        ...

    def say(self, line: str) -> None:
        """Something a person should know."""
        ...


class Workers(Protocol):
    """Who does the jobs of one run."""

    def check(self, splits: Mapping[str, Split], *, n_threads: int, dim: int) -> None:
        """Raise a `MusketeersError` if the domains' jobs are more than any of them can do."""
        ...

    def each(
        self,
        keeper: Keeper,
        stage: str,
        work: Mapping[str, Work[Made]],
        *,
        max_epochs: int,
        dim: int,
    ) -> dict[str, Made]:
        """See `Jobs.each`."""
        ...

    def spread(
        self, name: str, do: Callable[..., Made], *, n_threads: int, memory: int
    ) -> Callable[..., Iterable[Made]] | None:
        """As `map(do, ...)`, but all calls at once; None where nobody else is there to do them.

        `do` is a `functools.partial` of a public function over what can be pickled; a call takes so
        many bytes at most.  Raises a `MusketeersError` if that is more than any worker has.
        """
        ...


class Executor(Protocol):
    """Where to find who does the jobs."""

    def workers(self, folder: Path | None) -> AbstractContextManager[Workers]:
        """Those for a run into `folder`, until the block ends; None for one in memory alone."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """The `Executor` of this process: one job after another."""

    def workers(self, folder: Path | None) -> AbstractContextManager["Here"]:  # noqa: ARG002
        """See `Executor.workers`."""
        return nullcontext(self)

    def check(self, splits: Mapping[str, Split], *, n_threads: int, dim: int) -> None:
        """See `Workers.check`; what all jobs need is found before (`models.needs.check_fit`)."""

    def each(
        self,
        keeper: Keeper,
        stage: str,
        work: Mapping[str, Work[Made]],
        *,
        max_epochs: int,
        dim: int,
    ) -> dict[str, Made]:
        """See `Workers.each`."""
        return InTurn(keeper).each(stage, work, max_epochs=max_epochs, dim=dim)

    def spread(self, name: str, do: Callable[..., Made], *, n_threads: int, memory: int) -> None:
        """See `Workers.spread`."""


HERE = Here()
