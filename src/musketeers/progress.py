"""What a fit tells while it runs: a live line per stage on stderr, one summary line after it.

Where stderr is no terminal only the summaries appear, one plain line each.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from musketeers.report.words import duration
from musketeers.run_folder import RunFolder
from musketeers.training import Epoch

UNNOTICED = 2.0
"""Seconds up to which passing over rows leaves no line."""
_LOSS_STAGES = ("cat",)
"""Their validation value is minus a loss; the others' is NDCG@10."""


@contextmanager
def watching(
    out: Path, *, resume: bool, kind: str = "run", console: Console | None = None
) -> Generator["Plain | Live"]:
    """A `Watch` for the fit into `out` that writes to `console`, by default stderr.

    Says at once if there is nothing left to resume.
    """
    console = console or Console(stderr=True)
    if resume and is_finished(out, kind):
        _print(console, f"{out}: the run is finished; nothing is trained")
    if not console.is_terminal:
        yield Plain(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield Live(live)


def is_finished(out: Path, kind: str = "run") -> bool:
    """Whether `out` holds a whole run of that kind; raises `RunError` for another kind's."""
    return (out / "manifest.json").is_file() and RunFolder(out, kind).finished


@dataclass(frozen=True, slots=True)
class Plain:
    """One line per finished stage, without control codes."""

    console: Console

    @contextmanager
    def stage(
        self, stage: str, domain: str | None, *, samples: int, max_epochs: int
    ) -> Generator[Callable[[Epoch], None]]:
        """See `runs.Watch.stage`."""
        tally = Tally(stage, domain, samples, max_epochs)
        yield tally.add
        self.say(tally.summary())

    @contextmanager
    def rows(self, stage: str, domain: str) -> Generator[Callable[[int], None]]:
        """See `runs.Watch.rows`."""
        tally = RowTally(stage, domain)
        yield tally.add
        if tally.seconds() > UNNOTICED:
            self.say(tally.summary())

    def say(self, line: str) -> None:
        """See `runs.Watch.say`."""
        _print(self.console, line)


@dataclass(frozen=True, slots=True)
class Live:
    """A line per running stage, renewed after every epoch, and the summaries above them."""

    progress: Progress

    @contextmanager
    def stage(
        self, stage: str, domain: str | None, *, samples: int, max_epochs: int
    ) -> Generator[Callable[[Epoch], None]]:
        """See `runs.Watch.stage`."""
        tally = Tally(stage, domain, samples, max_epochs)
        task = self.progress.add_task(tally.running(), total=None, left="")

        def on_epoch(epoch: Epoch) -> None:
            tally.add(epoch)
            self.progress.update(task, description=tally.running(), left=tally.left())

        try:
            yield on_epoch
        finally:
            self.progress.remove_task(task)
        self.say(tally.summary())

    @contextmanager
    def rows(self, stage: str, domain: str) -> Generator[Callable[[int], None]]:
        """See `runs.Watch.rows`."""
        tally = RowTally(stage, domain)
        task = self.progress.add_task(tally.running(), total=None, left="")

        def on_rows(n_rows: int) -> None:
            tally.add(n_rows)
            self.progress.update(task, description=tally.running())

        try:
            yield on_rows
        finally:
            self.progress.remove_task(task)
        if tally.seconds() > UNNOTICED:
            self.say(tally.summary())

    def say(self, line: str) -> None:
        """See `runs.Watch.say`."""
        _print(self.progress.console, line)


@dataclass(slots=True)
class Tally:
    """The epochs of one stage so far, in words."""

    stage: str
    domain: str | None
    samples: int
    """Training samples in an epoch."""
    max_epochs: int
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    start: float = field(default_factory=time.perf_counter)

    def add(self, epoch: Epoch) -> None:
        """Count one more; a number of 0 again begins the stage's next strength."""
        self.epochs.append(epoch)

    def running(self) -> str:
        """The live line, short enough for 80 columns with the two times behind it."""
        if not self.epochs:
            return f"{self._name()}  {'starting' if self.max_epochs else 'solving'}"
        if not self.max_epochs:
            return f"{self._name()}  {self._best()}  {self.epochs[-1].number} solved"
        epoch = f"epoch {self.epochs[-1].number}/≤{self.max_epochs}"
        return f"{self._name()}  {epoch}  {self._best()}  {self._rate()}/s"

    def left(self) -> str:
        """The time that all epochs still allowed at this strength would take."""
        if not self.max_epochs or not (trained := self._trained()):
            return ""
        mean = sum(e.seconds + e.valid_seconds for e in trained) / sum(e.passes for e in trained)
        rest = timedelta(seconds=round(mean * (self.max_epochs - self.epochs[-1].number)))
        return f"≤{str(rest).removeprefix('0:')} left"

    def summary(self) -> str:
        """What remains of a finished stage."""
        spent = duration(time.perf_counter() - self.start)
        if not self.max_epochs:
            found = f"{self._best()}  {self.epochs[-1].number} " if self.epochs else ""
            return f"{self._name()}  {found}solved, {spent}"
        if not self.epochs:
            return f"{self._name()}  was complete"
        n = sum(epoch.passes for epoch in self._trained())
        epochs = f"{n} epoch{'' if n == 1 else 's'}"
        return f"{self._name()}  {self._best()}  {epochs}, {self._rate()} samples/s, {spent}"

    def _name(self) -> str:
        return f"{self.stage:<8} {self.domain or 'all domains':<11}"

    def _best(self) -> str:
        best = max(epoch.valid for epoch in self.epochs)
        return f"loss {-best:.4f}" if self.stage in _LOSS_STAGES else f"NDCG@10 {best:.4f}"

    def _rate(self) -> str:
        """Samples per second of training, validation apart."""
        trained = self._trained()
        seconds = sum(epoch.seconds for epoch in trained)
        if not seconds:
            return "0"
        return _short(self.samples * sum(epoch.passes for epoch in trained) / seconds)

    def _trained(self) -> list[Epoch]:
        return [epoch for epoch in self.epochs if epoch.number > 0]


@dataclass(slots=True)
class RowTally:
    """The rows of one stage so far, in words."""

    stage: str
    domain: str
    n_rows: int = 0
    start: float = field(default_factory=time.perf_counter)

    def add(self, n_rows: int) -> None:
        """Count so many more."""
        self.n_rows += n_rows

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.start

    def running(self) -> str:
        """The live line."""
        rate = self.n_rows / self.seconds()
        return f"{self.stage:<8} {self.domain:<11}  {self.n_rows:,} rows  {_short(rate)}/s"

    def summary(self) -> str:
        """What remains of a finished stage."""
        return f"{self.running()}, {duration(self.seconds())}"


def _short(number: float) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number / 1e3:.1f} k"


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
