"""All jobs of a comparison, in processes side by side, and what they found together."""

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from musketeers import config as configuration
from musketeers.comparison import jobs as work
from musketeers.comparison.jobs import Found, Job, Plan
from musketeers.config import RunConfig
from musketeers.errors import ConfigError, MusketeersError
from musketeers.memory import available, peak
from musketeers.models.needs import refusal
from musketeers.models.registry import MODELS, check
from musketeers.parallel import libraries_on_one_thread

OnDone = Callable[[Job, int, int], None]
"""(job, jobs done, jobs in all)"""


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What the jobs of a comparison found."""

    config: RunConfig
    models: tuple[str, ...]
    n_seeds: int
    n_tries: int
    found: dict[Job, Found]
    failed: dict[Job, str]
    """Why, in one line."""


def compare_models(
    config: RunConfig,
    base: Path,
    out: Path,
    *,
    models: Sequence[str],
    n_seeds: int,
    n_tries: int,
    n_processes: int,
    memory: int | None = None,
    sampled: bool = False,
    on_done: OnDone = lambda _job, _done, _all: None,
) -> Study:
    """Train, tune and measure every model with every seed; what is done already is kept.

    Each job is one process on one thread, so results do not depend on `n_processes`.  At most
    `memory` bytes are taken together, by default nine tenths of what is available: a large job
    runs beside fewer others, and one that needs more fails before it starts, with the number.  A
    job that fails leaves the others', and is named in `Study.failed`.  With `sampled` all are also
    measured among random items.

    Raises `ConfigError` for an unknown model or a number below 1.
    """
    names = checked(models, config, n_seeds=n_seeds, n_tries=n_tries)
    plan = Plan(
        configuration.dump(config), base, out, n_tries, 1, memory or available() * 9 // 10, sampled
    )
    waves = work.jobs_of(names, list(config.data.domains), n_seeds)
    every = [job for wave in waves for job in wave]
    failed: dict[Job, str] = {}
    done = 0
    for wave in waves:
        for job, failure in _together(plan, wave, n_processes):
            done += 1
            if failure:
                failed[job] = failure
            on_done(job, done, len(every))
    found = {job: work.found(out, job) for job in every if job not in failed}
    return Study(config, names, n_seeds, n_tries, found, failed)


def _together(
    plan: Plan, jobs: Sequence[Job], n_processes: int
) -> Generator[tuple[Job, str | None]]:
    """Each job as it ends, and why if it failed."""
    # a process reads the data as this one did, so what this one has held is what each will hold
    each = peak()
    needs = {
        job: 0 if work.is_done(plan, job) else each + MODELS[job.model].needs(work.size(plan, job))
        for job in jobs
    }
    for job in jobs:
        if needs[job] > plan.memory:
            yield job, refusal(job.model, needs[job] - each, each, plan.memory)
    # the large ones first: later there would be idle processes, which keep their memory
    share = plan.memory // n_processes
    waiting = [job for job in jobs if needs[job] <= plan.memory]
    waiting.sort(key=lambda job: -max(needs[job], share))
    # a fresh interpreter each: threads and compiled code do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        running: dict[Future[str | None], Job] = {}
        while waiting or running:
            left = plan.memory - sum(needs[job] for job in running.values())
            while waiting and len(running) < n_processes and needs[waiting[0]] <= left:
                job = waiting.pop(0)
                left -= needs[job]
                running[pool.submit(_run, plan, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _run(plan: Plan, job: Job) -> str | None:
    """Do the job; why it failed, as text, since not every exception survives the way back."""
    try:
        with libraries_on_one_thread():
            work.run(plan, job)
    except MusketeersError as error:
        return str(error)
    except MemoryError:
        return "the memory did not suffice; run fewer processes at once"
    except Exception as error:  # noqa: BLE001 - one job's bug must not cost the others' hours
        return f"unexpected {type(error).__name__}: {error}; please report it"
    return None


def checked(
    models: Sequence[str], config: RunConfig, *, n_seeds: int, n_tries: int
) -> tuple[str, ...]:
    """The models to compare, the domain alone first; raises as `compare_models` does."""
    for what, number in (("seeds", n_seeds), ("tries", n_tries)):
        if number < 1:
            raise ConfigError(f"{what} is {number}; a comparison needs at least 1")
    check(models, n_domains=len(config.data.domains))
    if config.pretrain.given:
        raise ConfigError(
            f"pretrain.given has vectors of {', '.join(config.pretrain.given)}, but a comparison "
            "trains every model itself; set pretrain.method to bpr or ials"
        )
    # the domain alone is what everything is measured against
    return tuple(dict.fromkeys(["smf", *models]))
