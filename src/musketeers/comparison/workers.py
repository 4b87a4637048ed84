"""Who does the jobs of a comparison: processes of this machine, or others behind the same face."""

import multiprocessing
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from musketeers.comparison import jobs as work
from musketeers.comparison.jobs import Job, Plan
from musketeers.errors import ConfigError, MusketeersError
from musketeers.memory import available
from musketeers.models.needs import refusal
from musketeers.parallel import available_threads, libraries_on_one_thread

Ended = tuple[Job, str | None]
"""A job, and why if it failed."""


class Workers(Protocol):
    """Who does jobs that do not depend on each other."""

    @property
    def memory(self) -> int:
        """Bytes that a job may take at most."""
        ...

    def check(self, job: Job, needed: int, held: int) -> None:
        """Raise `ConfigError` or `ClusterError` if the job needs more than they have.

        Of the bytes that are `needed` its process and data take those `held`.
        """
        ...

    def each(self, plan: Plan, needs: Mapping[Job, int]) -> Generator[Ended]:
        """Every job as it ends, of jobs whose needs were checked."""
        ...


@dataclass(frozen=True, slots=True)
class Processes:
    """Processes of this machine side by side, each on one thread."""

    n: int
    memory: int
    """Bytes that they may take together: a large job runs beside fewer others."""

    @classmethod
    def of(cls, n: int | None = None, memory: int | None = None) -> "Processes":
        """By default one for each processor, and nine tenths of what is available.

        Raises `ConfigError` for less than one.
        """
        if n is not None and n < 1:
            raise ConfigError(f"jobs is {n}; use 1 or more")
        return cls(n or available_threads(), memory or available() * 9 // 10)

    def check(self, job: Job, needed: int, held: int) -> None:
        """See `Workers.check`."""
        if needed > self.memory:
            raise ConfigError(refusal(job.model, needed - held, held, self.memory))

    def each(self, plan: Plan, needs: Mapping[Job, int]) -> Generator[Ended]:
        """See `Workers.each`."""
        # the large ones first: later there would be idle processes, which keep their memory
        share = self.memory // self.n
        waiting = sorted(needs, key=lambda job: -max(needs[job], share))
        # a fresh interpreter each: threads and compiled code do not survive a fork
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.n, mp_context=context) as pool:
            running: dict[Future[str | None], Job] = {}
            while waiting or running:
                left = self.memory - sum(needs[job] for job in running.values())
                while waiting and len(running) < self.n and needs[waiting[0]] <= left:
                    job = waiting.pop(0)
                    left -= needs[job]
                    running[pool.submit(_run, plan, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()


def _run(plan: Plan, job: Job) -> str | None:
    def here() -> None:
        with libraries_on_one_thread():
            work.run(plan, job, work.splits_of(plan, job.seed))

    return failure_of(here)


def failure_of(do: Callable[[], object]) -> str | None:
    """Do it; why it failed, as text, since not every exception survives the way back."""
    try:
        do()
    except MusketeersError as error:
        return str(error)
    except MemoryError:
        return "the memory did not suffice; run fewer processes at once"
    except Exception as error:  # noqa: BLE001 - one job's bug must not cost the others' hours
        return f"unexpected {type(error).__name__}: {error}; please report it"
    return None
