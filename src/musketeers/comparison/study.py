"""All jobs of a comparison, and what they found together."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from musketeers import config as configuration
from musketeers.comparison import jobs as work
from musketeers.comparison.jobs import Found, Job, Plan
from musketeers.comparison.workers import Ended, Workers, failure_of
from musketeers.config import RunConfig
from musketeers.errors import ConfigError
from musketeers.memory import peak
from musketeers.models.registry import MODELS, check
from musketeers.models.tuning import optuna

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
    workers: Workers,
    sampled: bool = False,
    on_done: OnDone = lambda _job, _done, _all: None,
) -> Study:
    """Train, tune and measure every model with every seed; what is done already is kept.

    Each job is on one thread, so results do not depend on the `workers`.  A job that needs more
    memory than they have fails before it starts, with the number.  A job that fails leaves the
    others', and is named in `Study.failed`.  With `sampled` all are also measured among random
    items.

    Raises `ConfigError` for an unknown model or a number below 1, and `MissingExtraError` where
    Optuna is not installed and there are several tries.
    """
    names = checked(models, config, n_seeds=n_seeds, n_tries=n_tries)
    plan = Plan(configuration.dump(config), base, out, n_tries, 1, workers.memory, sampled)
    waves = work.jobs_of(names, list(config.data.domains), n_seeds)
    every = [job for wave in waves for job in wave]
    failed: dict[Job, str] = {}
    done = 0
    for wave in waves:
        for job, failure in _together(plan, wave, workers):
            done += 1
            if failure:
                failed[job] = failure
            on_done(job, done, len(every))
    found = {job: work.found(out, job) for job in every if job not in failed}
    return Study(config, names, n_seeds, n_tries, found, failed)


def _together(plan: Plan, jobs: Sequence[Job], workers: Workers) -> Generator[Ended]:
    """Each job as it ends; those that were done before at once."""
    # whoever does a job has the data as this process did, so holds what this one has held
    held = peak()
    needs: dict[Job, int] = {}
    for job in jobs:
        if work.is_done(plan, job):
            yield job, None
            continue
        needed = held + MODELS[job.model].needs(work.size(plan, job))
        if refused := failure_of(partial(workers.check, job, needed, held)):
            yield job, refused
        else:
            needs[job] = needed
    yield from workers.each(plan, needs)


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
    if n_tries > 1:
        optuna()  # better missed now than by each model
    # the domain alone is what everything is measured against
    return tuple(dict.fromkeys(["smf", *models]))
