"""From settings to a finished run folder, and from the folder back to what it found."""

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from musketeers import artifacts, run_files, sources
from musketeers import config as configuration
from musketeers.baselines.linear import Linear
from musketeers.baselines.popularity import popularity
from musketeers.budget.clock import Clock, in_seconds
from musketeers.budget.recipes import methods, recipes
from musketeers.budget.search import Search
from musketeers.config import RunConfig
from musketeers.costs import Cost, metered
from musketeers.data import readers
from musketeers.data.domains import Domains, Split
from musketeers.data.overlap import OverlapReport, overlap_report
from musketeers.data.readers import Reading
from musketeers.data.splits import split
from musketeers.device import gpu
from musketeers.errors import ConfigError
from musketeers.evaluation.evaluate import PerUser, evaluate
from musketeers.evaluation.sampled import measure
from musketeers.execution import HERE, Executor, Jobs, Renamed, Watched, Work, Workers
from musketeers.group import group, meet, total
from musketeers.heads.blend import with_history
from musketeers.memory import available, peak
from musketeers.models import registry
from musketeers.models.attempts import Attempts, attempt
from musketeers.models.model import Fitted, Made
from musketeers.models.needs import FACTORS, Size, check_fit, refusal
from musketeers.models.registry import MODELS
from musketeers.models.tuning import Try, Tuned, fitted, optuna
from musketeers.parallel import available_threads, libraries_on_one_thread
from musketeers.pipeline import Models, cat_art, choices, smf, validations
from musketeers.pretrain import given
from musketeers.pretrain.given import Given
from musketeers.pretrain.mf import Pretrained
from musketeers.progress import is_finished
from musketeers.protocols import Scorer, untold
from musketeers.recommender import DomainModel, Recommender
from musketeers.report.html import render
from musketeers.report.words import trial
from musketeers.results import WITH_HISTORY, Learning, Metrics, RunResult
from musketeers.run_files import open_run, read_back, scorers_of
from musketeers.run_folder import RunFolder, check_place
from musketeers.seeding import Seed
from musketeers.task import Task, unwatched
from musketeers.training import Epoch

STAGED = ("pop", "smf", "cat_art")
"""What a fit measures if it is told no model, beside what it chooses to recommend with."""

Found = TypeVar("Found")

_SEARCH = "search"
"""What an unfinished run remembers its search for a way to learn alone by."""


class Watch(Protocol):
    """Who is told what a training is doing."""

    def stage(
        self, stage: str, domain: str | None, *, samples: int, max_epochs: int
    ) -> AbstractContextManager[Callable[[Epoch], None]]:
        """One fit from its first epoch to its last; `samples` are seen in each epoch."""
        ...

    def rows(self, stage: str, domain: str) -> AbstractContextManager[Callable[[int], object]]:
        """A stage that passes once over a domain's rows or pairs, such as reading.

        Told, each time some are done, how many.
        """
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

    def rows(self, stage: str, domain: str) -> AbstractContextManager[Callable[[int], object]]:
        """See `Watch.rows`."""
        return untold(stage, domain)

    def say(self, line: str) -> None:
        """See `Watch.say`."""


def read_data(config: RunConfig, base: Path) -> tuple[Reading, OverlapReport]:
    """The configured files, and what they share; relative paths start at `base`.

    Vectors made elsewhere are read too, and refused like the data.
    """
    reading = readers.read(config.data, base=base)
    _vectors(config, reading.domains, base)
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
    n_tries: int = 1,
    budget: str | float | None = None,
    executor: Executor = HERE,
    command: Sequence[str] = (),
) -> RunResult:
    """Train, measure and save; the finished run.

    What recommends is chosen for each domain by validation (`heads.choice.choose`), and how all
    domains learn alone before, unless the settings say it (``pretrain.method``).  `only` names
    one model (of `models.registry.MODELS`) to train, measure and recommend with instead, with the
    best by validation of `n_tries` settings, the defaults first.  With `resume`, an interrupted run
    of the same settings, data and threads goes on to the same result, and a finished one is given
    back.

    With a `budget`, in seconds or such as ``"5m"``, more ways for the domains to learn alone are
    tried by successive halving (`budget.halving.halve`), as many as the time allows.  The run's
    `config` has the settings that were found: a fit by them is bitwise the same.

    On a GPU (`device.computing_on`) BPR, CAT and ART are trained and lists are made; such a run is
    resumed on one.

    What each domain learns in stages 1 and 3 is done by `executor`, here by default; where does not
    matter to the result, nor to whom may resume the run.

    Raises what reading, training and `RunFolder.create` raise, and `ConfigError` for a model
    that there is not, for more memory or room on the disk than there is, and for a budget that is
    not enough.
    """
    check_place(out, resume=resume)
    clock = _clock(budget, only)
    watch, n_threads = watch or Quiet(), thread_count(threads, out if resume else None)
    measured = models_to_measure(only, n_tries, n_domains=len(config.data.domains))
    finished = resume and is_finished(out)
    with (HERE if finished else executor).workers(out) as workers:
        with metered() as cost:
            reading = readers.read(config.data, base=base, told=watch.rows)
        data = Data.of(reading, config, base, watch, costs={"read": cost})
        del reading
        if {"smf", "cat_art"} & set(measured) and not finished:
            whole = Size.of(data.domains, list(data.splits), dim=config.dim)
            check_fit(whole, out, available() * 9 // 10, transfers="cat_art" in measured)
            workers.check(data.splits, n_threads=n_threads, dim=config.dim)
        inputs = {f"{name}, vectors": vectors.digest() for name, vectors in data.given.items()}
        if n_tries > 1:
            inputs["tries"] = str(n_tries)
        if clock:
            inputs["budget"] = f"{clock.seconds:g}s"
        if gpu():
            inputs["device"] = str(gpu())
        search = None
        if not finished:
            saved = RunFolder(out).remembered(_SEARCH) if resume else None
            found = Search.from_json(saved) if saved else None
            search = found or _search(clock, config, data, measured, n_threads, watch)
        fit_data(
            config, data, out, measured=measured, n_tries=n_tries, search=search, inputs=inputs,
            resume=resume, n_threads=n_threads, watch=watch, workers=workers, command=command,
        )  # fmt: skip
        del data, search
    return read_back(out)


def fit_data(
    config: RunConfig,
    data: "Data",
    out: Path,
    *,
    measured: Sequence[str],
    inputs: Mapping[str, str],
    resume: bool,
    n_threads: int,
    watch: Watch,
    command: Sequence[str],
    n_tries: int = 1,
    search: Search | None = None,
    workers: Workers = HERE,
    add: Callable[[RunResult], RunResult] | None = None,
) -> None:
    """Train, measure and save on data that are read and split; the run is then finished.

    `measured` is of `models_to_measure`; `search` finds other settings for stage 1 before.
    `inputs` are what the result depends on beside settings, data, threads and `measured`: a run is
    resumed with the same ones alone.  `add` puts into the result what else is to be saved and
    shown.
    """
    with (
        RunFolder.create(
            out, configuration.dump(config), threads=n_threads, command=command, resume=resume,
            data={**fingerprints(data.domains), "models": ",".join(measured), **inputs},
        ) as run,
        libraries_on_one_thread(),
    ):  # fmt: skip
        if not run.finished:
            for stage, cost in data.costs.items():
                run.add(stage, cost)
            _make(run, config, data, measured, n_tries, search, n_threads, watch, workers, add)


def _make(
    run: RunFolder,
    config: RunConfig,
    data: "Data",
    measured: Sequence[str],
    n_tries: int,
    search: Search | None,
    n_threads: int,
    watch: Watch,
    workers: Workers,
    add: Callable[[RunResult], RunResult] | None,
) -> None:
    jobs = _Jobs(run, data.splits, watch, n_threads, workers, keeps=n_tries == 1)
    if search:
        config = _settled(search, config, data, jobs, watch, run)
        run.settle(configuration.dump(config))
    fits = _train(config, data, measured, n_tries, jobs)
    with run.timed("evaluate"):
        result = _result(run.path, config, data, fits, n_threads, search)
        result = add(result) if add else result
    with run.timed("save"):
        run_files.save(run.path, result)
    report = render(replace(result, manifest=run.manifest()))
    artifacts.write_text(run.path / "report.html", report)
    # whoever has finished needs no other member (`group`) any more
    meet()
    run.finish()


def fit(
    frames: Mapping[str, object],
    *,
    only: str | None = None,
    n_tries: int = 1,
    budget: str | float | None = None,
    threads: int | None = None,
    watch: Watch | None = None,
    executor: Executor = HERE,
    **settings: Any,
) -> RunResult:
    """Train and measure in memory: domain name -> a pandas, polars or Arrow table.

    `settings` are those of a run's TOML file, a section as a mapping:
    ``fit(frames, seed=1, data={"user": "member"}, split={"method": "last"})``; `only`, `n_tries`,
    `budget` and `executor` are those of `fit_run`.  Nothing is written;
    ``result.recommender.save(...)`` keeps the model.  Raises `ConfigError`, `DataError` and
    `DivergedError`; the frames are not changed.
    """
    section = settings.pop("data", {})
    if not isinstance(section, Mapping) or "domains" in section:
        raise ConfigError(
            f"fit(): data is {section!r}; give a mapping of column names and limits, the domains "
            "are the tables"
        )
    domains, clock = dict.fromkeys(frames, "a table"), _clock(budget, only)
    config = configuration.parse({**settings, "data": {**section, "domains": domains}}, "fit()")
    watch, n_threads = watch or Quiet(), thread_count(threads)
    measured = models_to_measure(only, n_tries, n_domains=len(frames))
    data = Data.of(readers.from_frames(frames, config.data), config, Path(), watch)
    search = _search(clock, config, data, measured, n_threads, watch)
    with executor.workers(None) as workers, libraries_on_one_thread():
        workers.check(data.splits, n_threads=n_threads, dim=config.dim)
        jobs = _Jobs(None, data.splits, watch, n_threads, workers)
        if search:
            config = _settled(search, config, data, jobs, watch)
        fits = _train(config, data, measured, n_tries, jobs)
        return _result(None, config, data, fits, n_threads, search)


def evaluate_run(
    path: Path | str, *, threads: int | None = None, sampled: bool = False
) -> RunResult:
    """A finished run with its metrics computed anew from the saved models; nothing is written.

    With `sampled` each test item is also ranked among 99 random ones.
    """
    path, n_threads = Path(path), thread_count(threads)
    found = open_run(path)
    with libraries_on_one_thread():
        scorers = {model: scorers_of(found, model) for model in found.metrics}
        metrics = _measure(
            scorers, found.splits, Seed(found.config.seed), n_threads, sampled=sampled
        )
        cold = _measure_cold(found, scorers.get("cat_art", {}), n_threads)
    return replace(found, metrics=metrics, cold=cold)


def models_to_measure(
    only: str | None = None, n_tries: int = 1, *, n_domains: int
) -> tuple[str, ...]:
    """Those of a fit, the one that recommends last; `ConfigError` for what cannot be.

    Raises `MissingExtraError` if they are to be tuned and Optuna is not installed.
    """
    if n_tries < 1:
        raise ConfigError(f"tries is {n_tries}; train at least once")
    if only is None and n_tries > 1:
        raise ConfigError(f"tries is {n_tries}, but no model to tune is named; name one (--only)")
    if only is None:
        return (*(STAGED if n_domains > 1 else ("pop", "smf")), "chosen")
    registry.check([only], n_domains=n_domains)
    if n_tries > 1 and MODELS[only].space:
        optuna()  # better missed now than when data are read
    return (only,)


def thread_count(threads: int | None, resumed: Path | None = None) -> int:
    """As many as asked; by default as the run to be resumed had, or all.

    Raises `ConfigError` for less than 1.
    """
    if resumed and threads is None and (resumed / "manifest.json").exists():
        # the result depends on the threads, so going on means with as many as before
        threads = RunFolder(resumed).manifest()["threads"]
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; use 1 or more")
    return threads or available_threads()


def fingerprints(domains: Domains) -> dict[str, str]:
    """One digest for each domain of everything that training sees of it.

    Under names that no domain can have, so that other inputs can stand beside them.
    """
    digests: dict[str, str] = {}
    users = domains.users.to_bytes()
    for name, domain in domains.domains.items():
        digest = hashlib.sha256(users)
        digest.update(domain.items.to_bytes())
        for array in (domain.pairs.indptr, domain.pairs.items, domain.times):
            digest.update(b"none" if array is None else array.data)
        digests[f"{name}, pairs"] = digest.hexdigest()
    return digests


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What there is to learn from, and what to measure with."""

    domains: Domains
    overlap: OverlapReport
    splits: Mapping[str, Split]
    given: Mapping[str, Given] = field(default_factory=dict[str, Given])
    """Vectors made elsewhere, of the domains that bring theirs."""
    done: Models = field(default_factory=Models)
    """What need not be made anew."""
    costs: Mapping[str, Cost] = field(default_factory=dict[str, Cost])
    """What reading and splitting took."""

    @classmethod
    def of(
        cls,
        reading: Reading,
        config: RunConfig,
        base: Path,
        watch: Watch,
        *,
        costs: Mapping[str, Cost] | None = None,
    ) -> "Data":
        """All that was read, split anew; `watch` is told what looks wrong."""
        apart = bool(set(config.parties.domains) - set(reading.domains.domains))
        domains, overlap = reading.domains, overlap_report(reading, apart=apart)
        for warning in overlap.warnings:
            watch.say(f"warning: {warning}")
        vectors = _vectors(config, domains, base)
        for name, found in vectors.items():
            for what, missing in found.missing.items():
                if missing:
                    watch.say(
                        f"warning: {name}: {missing:,} {what} have no vector and get the mean of "
                        "the others"
                    )
        with metered() as cost:
            splits = split(domains, config.split, Seed(config.seed), told=watch.rows)
        return cls(domains, overlap, splits, vectors, costs={**(costs or {}), "split": cost})


def _vectors(config: RunConfig, domains: Domains, base: Path) -> dict[str, Given]:
    return {
        name: given.read(files, domains.domains[name], domains.users, base=base)
        for name, files in config.pretrain.given.items()
    }


def _clock(budget: str | float | None, only: str | None) -> Clock | None:
    """Running from now."""
    if budget is None:
        return None
    if only is not None:
        raise ConfigError(
            f"budget is {budget!r}, which is for a whole fit, but {only} alone is asked for; give "
            "it a number of tries instead (--tune)"
        )
    return Clock(in_seconds(budget))


def _search(
    clock: Clock | None,
    config: RunConfig,
    data: Data,
    measured: Sequence[str],
    n_threads: int,
    watch: Watch,
) -> Search | None:
    """What is to be tried before a whole fit; None for a fit that says how to learn alone."""
    if clock is None:
        whole = measured == models_to_measure(n_domains=len(data.splits))
        return Search.without_budget() if whole and config.pretrain.method == "auto" else None
    with libraries_on_one_thread(), watch.stage("estimate", None, samples=0, max_epochs=0):
        return Search.within(clock, _task(config, data, n_threads))


def _settled(
    search: Search,
    config: RunConfig,
    data: Data,
    jobs: "_Jobs",
    watch: Watch,
    run: RunFolder | None = None,
) -> RunConfig:
    """The settings that the search finds; `jobs` go on from what it trained."""
    task = _task(config, data, jobs.n_threads)
    whole = Size.of(data.domains, list(data.splits), dim=config.dim)
    to_try = methods(config)
    if math.isfinite(search.clock.seconds):
        to_try = recipes(config, lambda dim: FACTORS(replace(whole, dim=dim)) <= task.max_bytes)
    found = search.run(
        to_try, task, trial=jobs.trial, say=watch.say,
        keep=partial(run.remember, _SEARCH) if run else lambda _: None,
    )  # fmt: skip
    jobs.go_on_from(found.name)
    return found.of(config)


def _task(config: RunConfig, data: Data, n_threads: int) -> Task:
    """All domains at once."""
    looked_at = validations(data.splits, Seed(config.seed), n_threads=n_threads)
    return Task(
        data.splits, looked_at, config, {}, n_threads,
        max_bytes=available() * 9 // 10, given=data.given,
    )  # fmt: skip


class _Jobs:
    """Hands each fit its checkpoints, its watcher and its clock; of those done here one at a time.

    The `Jobs` of a run, and their `Keeper`.
    """

    def __init__(
        self,
        run: RunFolder | None,
        splits: Mapping[str, Split],
        watch: Watch,
        n_threads: int,
        workers: Workers,
        *,
        keeps: bool = True,
    ) -> None:
        self.splits, self.n_threads, self.say = splits, n_threads, watch.say
        self._run, self._watch, self._workers = run, watch, workers
        # tries of one model would take each other's checkpoints for their own
        self._keeps = run if keeps else None
        self._places: dict[str, str] = {}
        self._current = ExitStack()

    def __call__(self, stage: str, domain: str | None, max_epochs: int, /) -> Watched:
        """See `Jobs.__call__`.  The fit before is over when the next one starts."""
        self.close()
        if self._run is not None:
            self._current.enter_context(self._run.timed(f"{stage}/{domain or 'all'}"))
        on_epoch = self._current.enter_context(self.watched(stage, domain, max_epochs))
        return Watched(self.place(stage, domain), on_epoch)

    def each(
        self, stage: str, work: Mapping[str, Work[Found]], *, max_epochs: int, dim: int
    ) -> dict[str, Found]:
        """See `Jobs.each`."""
        self.close()
        return self._workers.each(self, stage, work, max_epochs=max_epochs, dim=dim)

    def place(self, stage: str, domain: str | None) -> Path | None:
        """See `Keeper.place`."""
        if self._keeps is None:
            return None
        return self._keeps.checkpoint(self._places.get(stage, stage), domain or "all").folder

    def watched(
        self, stage: str, domain: str | None, max_epochs: int
    ) -> AbstractContextManager[Callable[[Epoch], None]]:
        """See `Keeper.watched`."""
        trains = [split.train for name, split in self.splits.items() if domain in (name, None)]
        own = trains[0].n_users if stage == "cat" else sum(len(train) for train in trains)
        return self._watch.stage(stage, domain, samples=int(total(own)), max_epochs=max_epochs)

    def spent(self, stage: str, domain: str, cost: Cost) -> None:
        """See `Keeper.spent`."""
        if self._run is not None:
            self._run.add(f"{stage}/{domain}", cost)

    @contextmanager
    def trial(self, name: str, max_epochs: int) -> Generator[Jobs]:
        """See `budget.halving.Trial`."""
        try:
            if not max_epochs:
                self(name, None, 0)
            yield Renamed(self, name)
        finally:
            self.close()

    def go_on_from(self, trial: str) -> None:
        """Let stage 1 begin where this trial has ended."""
        self._places["pretrain"] = trial

    def tuned(self, model: str, task: Task, n_tries: int, memory: int) -> Tuned:
        """See `fitted`; a try takes so many bytes at most, wherever it is trained."""
        on_try = partial(self._tried, model, task.target, n_tries)
        if n_tries == 1 or not self._run or not MODELS[model].space:
            each = folder = None
        else:
            folder = self._run.checkpoint("tries", model, task.target or "all").folder.absolute()
            each = self._workers.spread(
                f"{model} {task.target or 'all domains'}",
                partial(attempt, folder, model, replace(task, jobs=unwatched)),
                n_threads=self.n_threads, memory=memory,
            )  # fmt: skip
        if not each or not folder:
            return fitted(model, MODELS[model], task, n_tries=n_tries, on_try=on_try)
        attempts = Attempts(folder)
        found = attempts.tuned(
            each, model, n_tries=n_tries, seed=task.seed, target=task.target, on_try=on_try
        )
        return attempts.made(model, task, found)

    def _tried(self, model: str, domain: str | None, n_tries: int, number: int, found: Try) -> None:
        """Say how a try of several ended."""
        self.close()
        if n_tries > 1:
            self._watch.say(
                f"{model:<8} {domain or 'all domains':<11}  try {number + 1} of {n_tries}  "
                + trial(found)
            )

    def close(self) -> None:
        """End the fit that is under way."""
        self._current.close()


@dataclass(frozen=True, slots=True, eq=False)
class _Fits:
    """What was trained."""

    stages: Models
    made: Mapping[str, Made]
    """By model, those to measure; what was chosen for some domains has these alone."""
    serves: Mapping[str, str]
    """Domain -> the model that recommends."""
    tuned: Mapping[str, Tuned] = field(default_factory=dict[str, Tuned])
    """Of the one model that was asked for: by domain, or ``all`` where they train together."""


def _train(
    config: RunConfig, data: Data, measured: Sequence[str], n_tries: int, jobs: _Jobs
) -> _Fits:
    """The models to measure, and the stages they need."""
    try:
        *staged, last = measured
        if n_tries > 1 or (not staged and last not in STAGED):
            return _one(last, config, data, n_tries, jobs)
        stages = Models()
        if "cat_art" in measured:
            stages = cat_art(
                data.splits, config, jobs, n_threads=jobs.n_threads, given=data.given,
                done=data.done,
            )  # fmt: skip
        elif "smf" in measured:
            alone = smf(data.splits, config, jobs, n_threads=jobs.n_threads, given=data.given)
            stages = Models(alone)
        made = {m: _staged(m, data.splits, stages) for m in measured if m in STAGED}
        if stages.alone and group().size > 1:
            # in a unit that is of all members' users, which one's own do not tell
            stages = replace(stages, shared=stages.told(data.splits))
        if last == "chosen":
            return _choose(stages, made, config, data, jobs)
        return _Fits(stages, made, dict.fromkeys(data.splits, last))
    finally:
        jobs.close()


def _staged(model: str, splits: Mapping[str, Split], stages: Models) -> Made:
    if model == "pop":
        return {name: Fitted(popularity(split.train)) for name, split in splits.items()}
    if model == "smf":
        return {name: Fitted(made.factors) for name, made in stages.alone.items()}
    return {
        name: Fitted(made.factors, transfers=made.kept) for name, made in stages.transferred.items()
    }


def _choose(
    stages: Models, made: dict[str, Made], config: RunConfig, data: Data, jobs: _Jobs
) -> _Fits:
    """To the models that all domains have, what each was given to recommend with."""
    found = choices(
        data.splits, stages, config, jobs,
        n_threads=jobs.n_threads, max_bytes=available() * 9 // 10,
    )  # fmt: skip
    serves = {name: one.verdict.chosen.kind for name, one in found.items()}
    for model in dict.fromkeys(serves.values()):
        its = {name: Fitted.of(found[name]) for name in serves if serves[name] == model}
        made[model] = {**made.get(model, {}), **its}
    return _Fits(stages, made, serves)


def _one(model: str, config: RunConfig, data: Data, n_tries: int, jobs: _Jobs) -> _Fits:
    """One model, tuned as in a comparison; what it starts from likewise."""
    looked_at = validations(data.splits, Seed(config.seed), n_threads=jobs.n_threads)
    memory = available() * 9 // 10
    alone: dict[str, Pretrained] = {}

    def tuned(name: str) -> dict[str, Tuned]:
        found: dict[str, Tuned] = {}
        for domain in [None] if MODELS[name].joint else list(data.splits):
            names = MODELS[name].sight(data.splits, domain)
            needed = MODELS[name].needs(Size.of(data.domains, names, dim=config.dim))
            if needed > memory:
                raise ConfigError(refusal(name, needed, peak(), memory))
            task = Task(
                {name: data.splits[name] for name in names},
                {name: looked_at[name] for name in names},
                config, alone, jobs.n_threads, jobs, memory, domain, data.given,
            )  # fmt: skip
            found[domain or "all"] = jobs.tuned(name, task, n_tries, needed + peak())
        return found

    if MODELS[model].starts_from_smf:
        alone |= _starts(_made(tuned("smf")))
    found = tuned(model)
    made = _made(found)
    serves = dict.fromkeys(made, model)
    return _Fits(Models(alone or _starts(made)), {model: made}, serves, found)


def _made(tuned: Mapping[str, Tuned]) -> Made:
    return {name: fit for one in tuned.values() for name, fit in one.made.items()}


def _starts(made: Made) -> dict[str, Pretrained]:
    return {name: fit.start for name, fit in made.items() if fit.start}


def _result(
    path: Path | None,
    config: RunConfig,
    data: Data,
    fits: _Fits,
    n_threads: int,
    search: Search | None,
) -> RunResult:
    """Measure the models, and let the last of them recommend."""
    scorers = {
        model: {name: fit.scorer for name, fit in made.items()} for model, made in fits.made.items()
    }
    metrics = _measure(scorers, data.splits, Seed(config.seed), n_threads)
    served = {name: fits.made[model][name] for name, model in fits.serves.items()}
    parts = {
        name: DomainModel.of(
            domain,
            served[name].scorer,
            train=data.splits[name].train,
            transfers=served[name].transfers,
            cold=served[name].cold,
            elsewhere=fits.stages.known_elsewhere(name),
        )
        for name, domain in data.domains.domains.items()
    }
    about: dict[str, Any] = {"model": dict(fits.serves), "seed": config.seed}
    if fits.tuned:
        about["settings"] = {name: dict(one.best.settings) for name, one in fits.tuned.items()}
    recommender = Recommender.of(data.domains.users, parts, about)
    learning = Learning.of(fits.stages, next(iter(fits.serves.values())), fits.tuned, served)
    if search:
        learning = replace(learning, rounds=tuple(search.rounds))
    found = RunResult(
        path, config, {}, data.overlap, data.splits, metrics, learning, recommender,
        stages=fits.stages,
    )  # fmt: skip
    return replace(
        found,
        cold=_measure_cold(found, scorers.get("cat_art", {}), n_threads),
        hidden=sources.measure(found, n_threads=n_threads),
    )


def _measure(
    scorers: Mapping[str, Mapping[str, Scorer]],
    splits: Mapping[str, Split],
    seed: Seed,
    n_threads: int,
    *,
    sampled: bool = False,
) -> Metrics:
    return {
        model: {
            name: measure(
                scorer, splits[name], seed.child("sampled", name),
                sampled=sampled, n_threads=n_threads,
            )
            for name, scorer in by_domain.items()
        }
        for model, by_domain in scorers.items()
    }  # fmt: skip


def _measure_cold(found: RunResult, cat_art: Mapping[str, Scorer], n_threads: int) -> Metrics:
    """What cold users are served, beside popularity, CAT-ART, and a list from their history."""
    metrics: dict[str, dict[str, PerUser]] = {}
    for name, model in found.serves_cold().items():
        split, part = found.splits[name], found.recommender.domains[name]
        if split.cold is None:
            continue
        scorers: dict[str, Scorer] = {"pop": popularity(split.train)}
        if name in cat_art:
            scorers["cat_art"] = cat_art[name]
        if model != "pop":
            scorers[model] = part.cold or part.scorer
        if isinstance(part.scorer, Linear):
            scorers[WITH_HISTORY] = with_history(part.scorer, split.cold.history)
        for kind, scorer in scorers.items():
            metrics.setdefault(kind, {})[name] = evaluate(
                scorer, split.cold.test, split.cold.history, n_threads=n_threads
            )
    # the ceiling last, whatever the domains are served by
    return {
        model: metrics[model] for model in sorted(metrics, key=lambda model: model == WITH_HISTORY)
    }
