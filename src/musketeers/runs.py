"""From settings to a finished run folder, and from the folder back to what it found."""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits

from musketeers import artifacts, run_files
from musketeers import config as configuration
from musketeers.baselines.popularity import popularity
from musketeers.config import RunConfig
from musketeers.data import readers
from musketeers.data.domains import Domains, Split
from musketeers.data.overlap import OverlapReport, overlap_report
from musketeers.data.readers import Reading
from musketeers.data.splits import split
from musketeers.errors import ConfigError
from musketeers.evaluation.sampled import measure
from musketeers.parallel import available_threads
from musketeers.pipeline import Models, cat_art, smf
from musketeers.ranking import Factors
from musketeers.recommender import DomainModel, Recommender
from musketeers.report.html import render
from musketeers.results import Learning, Metrics, RunResult
from musketeers.run_files import load_factors, open_run
from musketeers.run_folder import FolderCheckpoint, RunFolder, check_place
from musketeers.seeding import Seed
from musketeers.training import Epoch

MODELS = ("pop", "smf", "cat_art")
"""What a fit measures; the best one that was trained is the one that recommends."""


class Watch(Protocol):
    """Who is told what a training is doing."""

    def stage(
        self, stage: str, domain: str | None, *, samples: int, max_epochs: int
    ) -> AbstractContextManager[Callable[[Epoch], None]]:
        """One fit from its first epoch to its last; `samples` are seen in each epoch."""
        ...

    def say(self, line: str) -> None:
        """Something a person should know."""
        ...


class Quiet:
    """A `Watch` that tells nobody."""

    @contextmanager
    def stage(
        self,
        stage: str,  # noqa: ARG002
        domain: str | None,  # noqa: ARG002
        *,
        samples: int,  # noqa: ARG002
        max_epochs: int,  # noqa: ARG002
    ) -> Generator[Callable[[Epoch], None]]:
        """See `Watch.stage`."""
        yield lambda epoch: None  # noqa: ARG005

    def say(self, line: str) -> None:
        """See `Watch.say`."""


def read_data(config: RunConfig, base: Path) -> tuple[Reading, OverlapReport]:
    """The configured files, and what they share; relative paths start at `base`."""
    reading = readers.read(config.data, base=base)
    return reading, overlap_report(reading)


def fit_run(
    config: RunConfig,
    base: Path,
    out: Path,
    *,
    resume: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    only: str | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """Train, measure and save; the finished run.

    `only` names the one model of `MODELS` to train and measure.  With `resume`, an interrupted
    run of the same settings, data and threads goes on to the same result, and a finished one is
    given back.  Raises what reading, training and `RunFolder.create` raise.
    """
    check_place(out, resume=resume)
    if resume and threads is None and (out / "manifest.json").exists():
        # the result depends on the threads, so going on means with as many as before
        threads = RunFolder(out).manifest()["threads"]
    watch, n_threads = watch or Quiet(), _thread_count(threads)
    measured = _models_to_measure(only, len(config.data.domains))
    data = _Data.of(readers.read(config.data, base=base), config, watch)
    inputs = {**fingerprints(data.domains), "models": ",".join(measured)}
    with (
        RunFolder.create(
            out, configuration.dump(config), data=inputs, threads=n_threads,
            command=command, resume=resume,
        ) as run,
        libraries_on_one_thread(),
    ):  # fmt: skip
        if not run.finished:
            models = _train(
                config, data, measured, _Jobs(run, config, data.splits, watch, n_threads)
            )
            with run.timed("evaluate"):
                result = _result(out, config, data, models, measured, n_threads)
            with run.timed("save"):
                run_files.save(out, result, models)
            report = render(replace(result, manifest=run.manifest()))
            artifacts.write_text(out / "report.html", report)
            run.finish()
    return open_run(out)


def fit(
    frames: Mapping[str, object],
    *,
    threads: int | None = None,
    watch: Watch | None = None,
    **settings: Any,
) -> RunResult:
    """Train and measure in memory: domain name -> a pandas, polars or Arrow table.

    `settings` are those of a run's TOML file, a section as a mapping:
    ``fit(frames, seed=1, data={"user": "member"}, split={"method": "last"})``.  Nothing is
    written; ``result.recommender.save(...)`` keeps the model.  Raises `ConfigError`,
    `DataError` and `DivergedError`; the frames are not changed.
    """
    section = settings.pop("data", {})
    if not isinstance(section, Mapping) or "domains" in section:
        raise ConfigError(
            f"fit(): data is {section!r}; give a mapping of column names and limits, the domains "
            "are the tables"
        )
    domains = dict.fromkeys(frames, "a table")
    config = configuration.parse({**settings, "data": {**section, "domains": domains}}, "fit()")
    watch, n_threads = watch or Quiet(), _thread_count(threads)
    measured = _models_to_measure(None, len(frames))
    data = _Data.of(readers.from_frames(frames, config.data), config, watch)
    with libraries_on_one_thread():
        models = _train(config, data, measured, _Jobs(None, config, data.splits, watch, n_threads))
        return _result(None, config, data, models, measured, n_threads)


def evaluate_run(
    path: Path | str, *, threads: int | None = None, sampled: bool = False
) -> RunResult:
    """A finished run with its metrics computed anew from the saved models; nothing is written.

    With `sampled` each test item is also ranked among 99 random ones.
    """
    path, n_threads = Path(path), _thread_count(threads)
    found = open_run(path)
    with libraries_on_one_thread():
        factors = {model: load_factors(path, found, model) for model in found.metrics}
        metrics = _measure(
            factors, found.splits, Seed(found.config.seed), n_threads, sampled=sampled
        )
    return replace(found, metrics=metrics)


def _models_to_measure(only: str | None, n_domains: int) -> tuple[str, ...]:
    if only is not None and only not in MODELS:
        raise ConfigError(f"there is no model {only!r}; choose one of {', '.join(MODELS)}")
    if only == "cat_art" and n_domains < 2:
        raise ConfigError("cat_art needs at least two domains; this run has one, fit smf instead")
    if only is not None:
        return (only,)
    return MODELS if n_domains > 1 else ("pop", "smf")


def _thread_count(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; use 1 or more")
    return threads or available_threads()


@contextmanager
def libraries_on_one_thread() -> Generator[None]:
    """Hold BLAS and torch to one thread, since the work is shared out here already.

    Two pools on the same processors wait for each other: BLAS's goes on spinning after a product
    and takes the time from whatever comes next, and torch's needs up to a hundred times as long
    for a small step on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def fingerprints(domains: Domains) -> dict[str, str]:
    """One digest for each domain of everything that training sees of it."""
    digests: dict[str, str] = {}
    for name, domain in domains.domains.items():
        digest = hashlib.sha256()
        for ids in (domains.users, domain.items):
            digest.update(ids.to_bytes())
        for array in (domain.pairs.indptr, domain.pairs.items, domain.times):
            digest.update(b"none" if array is None else array.data)
        digests[name] = digest.hexdigest()
    return digests


@dataclass(frozen=True, slots=True, eq=False)
class _Data:
    """What there is to learn from, and what to measure with."""

    domains: Domains
    overlap: OverlapReport
    splits: Mapping[str, Split]

    @classmethod
    def of(cls, reading: Reading, config: RunConfig, watch: Watch) -> "_Data":
        overlap = overlap_report(reading)
        for warning in overlap.warnings:
            watch.say(f"warning: {warning}")
        splits = split(reading.domains, config.split, Seed(config.seed))
        return cls(reading.domains, overlap, splits)


class _Jobs:
    """Hands each fit its checkpoints, its watcher and its clock; one fit at a time."""

    def __init__(
        self,
        run: RunFolder | None,
        config: RunConfig,
        splits: Mapping[str, Split],
        watch: Watch,
        n_threads: int,
    ) -> None:
        self.n_threads = n_threads
        self._run, self._config, self._splits, self._watch = run, config, splits, watch
        self._current = ExitStack()

    def __call__(self, stage: str, domain: str | None) -> "_Job":
        """See `pipeline.Jobs`.  The fit before is over when the next one starts."""
        self.close()
        everyone = next(iter(self._splits.values())).train.n_users
        samples = everyone if domain is None else len(self._splits[domain].train)
        max_epochs: int = getattr(self._config, stage).max_epochs
        if self._run is not None:
            self._current.enter_context(self._run.timed(f"{stage}/{domain or 'all'}"))
        on_epoch = self._current.enter_context(
            self._watch.stage(stage, domain, samples=samples, max_epochs=max_epochs)
        )
        return _Job(self._run, (stage, domain or "all"), on_epoch)

    def close(self) -> None:
        """End the fit that is under way."""
        self._current.close()


@dataclass(frozen=True, slots=True)
class _Job:
    run: RunFolder | None
    name: tuple[str, str]
    on_epoch: Callable[[Epoch], None]

    def checkpoint(self, part: str) -> FolderCheckpoint | None:
        """See `training.Job.checkpoint`; none outside a run folder."""
        return self.run.checkpoint(*self.name, part) if self.run else None


def _train(config: RunConfig, data: _Data, measured: Sequence[str], jobs: "_Jobs") -> Models:
    """The stages that the models to measure need."""
    try:
        if "cat_art" in measured:
            return cat_art(data.splits, config, jobs, n_threads=jobs.n_threads)
        if "smf" in measured:
            return Models(smf(data.splits, config, jobs, n_threads=jobs.n_threads))
        return Models({})
    finally:
        jobs.close()


def _result(
    path: Path | None,
    config: RunConfig,
    data: _Data,
    models: Models,
    measured: Sequence[str],
    n_threads: int,
) -> RunResult:
    """Measure the models, and let the last of them recommend."""
    factors: dict[str, Mapping[str, Factors]] = {
        "pop": {name: popularity(split.train) for name, split in data.splits.items()},
        "smf": {name: made.factors for name, made in models.alone.items()},
        "cat_art": {name: made.factors for name, made in models.transferred.items()},
    }
    chosen = {name: factors[name] for name in measured}
    metrics = _measure(chosen, data.splits, Seed(config.seed), n_threads)
    best = measured[-1]
    parts = {
        name: DomainModel.of(
            domain,
            factors[best][name],
            train=data.splits[name].train,
            transfers=best == "cat_art" and models.transferred[name].kept,
        )
        for name, domain in data.domains.domains.items()
    }
    about = {"model": dict.fromkeys(parts, best), "seed": config.seed}
    recommender = Recommender.of(data.domains.users, parts, about)
    return RunResult(
        path, config, {}, data.overlap, data.splits, metrics, Learning.of(models), recommender
    )


def _measure(
    factors: Mapping[str, Mapping[str, Factors]],
    splits: Mapping[str, Split],
    seed: Seed,
    n_threads: int,
    *,
    sampled: bool = False,
) -> Metrics:
    return {
        model: {
            name: measure(
                by_domain[name], split, seed.child("sampled", name),
                sampled=sampled, n_threads=n_threads,
            )
            for name, split in splits.items()
        }
        for model, by_domain in factors.items()
    }  # fmt: skip
