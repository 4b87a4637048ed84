"""One model in one domain (or all at once) with one seed: tuned, measured, written down."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.config import RunConfig
from musketeers.data import readers
from musketeers.data.domains import Split
from musketeers.data.readers import Reading
from musketeers.data.splits import split
from musketeers.evaluation.evaluate import PerUser, evaluate
from musketeers.evaluation.sampled import measure
from musketeers.models import attempts
from musketeers.models.attempts import Attempts
from musketeers.models.model import Made, Settings, valid_ndcg
from musketeers.models.needs import Size
from musketeers.models.registry import MODELS
from musketeers.models.tuning import Each, Try, Tuned
from musketeers.pipeline import validations
from musketeers.pretrain.mf import Pretrained
from musketeers.protocols import Scorer
from musketeers.ranking import Factors
from musketeers.run_folder import CHECKPOINTS
from musketeers.seeding import Seed
from musketeers.task import Task

_KIND = "comparison"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every job of a comparison must know."""

    config_text: str
    base: Path
    """What the settings' relative paths start at."""
    out: Path
    n_tries: int
    n_threads: int
    memory: int
    """Bytes that the processes may take together."""
    sampled: bool = False
    """Whether test items are also ranked among 99 random ones."""


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """What is trained and tuned as one."""

    seed: int
    model: str
    domain: str | None
    """None for all domains together."""

    @property
    def name(self) -> str:
        """Such as ``seed 0, ease, tv``."""
        return f"seed {self.seed}, {self.model}, {self.domain or 'all domains'}"

    def place(self, out: Path) -> Path:
        """The folder of what it found."""
        return out / "jobs" / self._path

    def progress(self, out: Path) -> Path:
        """The folder of what it has so far, gone when it is done."""
        return out / CHECKPOINTS / self._path

    @property
    def _path(self) -> Path:
        return Path(str(self.seed), self.model, self.domain or "all")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a job found."""

    metrics: Mapping[str, PerUser]
    """By domain, on test."""
    valid: Mapping[str, float]
    """NDCG@10 of the chosen tries, by domain."""
    about: Mapping[str, Any]
    """The chosen settings, all tries, seconds."""
    curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]] = field(
        default_factory=dict[str, Any]
    )
    """Domain -> for each training of the chosen try, epochs and their validation NDCG@10.

    Of domains that learn together the same, by their mean; empty without epochs.
    """
    attention: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Any])
    """Domain -> source -> mean weight; empty where nothing was kept."""
    hidden: Mapping[str, Mapping[str, Float64[np.ndarray, " user"]]] = field(
        default_factory=dict[str, Any]
    )
    """Domain -> source -> NDCG@10 of the test users, ranked with that source hidden."""


Splits = Mapping[str, Split]
"""Every domain's, of the job's seed."""


def run(plan: Plan, job: Job, splits: Splits) -> None:
    """Do the whole job here, its tries one after the other, unless it is done already.

    A job that was cut off goes on from the last epoch of the try that it was at.
    """
    if not is_done(plan, job):
        task, kept = _task(plan, job, splits), _attempts(plan, job)
        trainer = kept.trainer(job.model, task)
        found = tuned(plan, job, partial(map, kept.once(trainer)))
        _write(plan, job, task, kept.made(job.model, task, found, trainer.best))


def tuned(plan: Plan, job: Job, each: Each) -> tuple[Try, ...]:
    """The tries of the job, trained wherever `each` does so; needs no data here."""
    return _attempts(plan, job).tuned(
        each, job.model, n_tries=plan.n_tries, seed=Seed(job.seed), target=job.domain
    )


def attempt(plan: Plan, job: Job, splits: Splits, number: int, settings: Settings) -> Try:
    """One try of the job, which goes on where it was cut off; recalled if it went well before."""
    return attempts.attempt(
        job.progress(plan.out), job.model, _task(plan, job, splits), number, settings
    )


def finish(plan: Plan, job: Job, splits: Splits, found: Sequence[Try]) -> None:
    """Measure the best of the job's tries and write it down, unless it is done already."""
    if not is_done(plan, job):
        task = _task(plan, job, splits)
        _write(plan, job, task, _attempts(plan, job).made(job.model, task, found))


def n_tries(plan: Plan, job: Job) -> int:
    """How often the job trains; once if there is nothing to tune."""
    return plan.n_tries if MODELS[job.model].space else 1


def is_done(plan: Plan, job: Job) -> bool:
    """Whether what the job finds is there already."""
    return job.place(plan.out).exists()


def found(out: Path, job: Job) -> Found:
    """What the job wrote, checked."""
    saved = artifacts.load(job.place(out), _KIND)
    metrics = {
        domain: PerUser(
            saved.tensors[f"users_{n}"],
            dict(zip(saved.about["metrics"], saved.tensors[f"values_{n}"], strict=True)),
        )
        for n, domain in enumerate(saved.about["domains"])
    }
    hidden = {
        domain: dict(zip(saved.about["hidden"][domain], saved.tensors[f"hidden_{n}"], strict=True))
        for n, domain in enumerate(saved.about["domains"])
        if f"hidden_{n}" in saved.tensors
    }
    about = saved.about
    return Found(metrics, about["valid"], about, about["curves"], about["attention"], hidden)


def jobs_of(models: Sequence[str], domains: Sequence[str], n_seeds: int) -> list[list[Job]]:
    """All jobs in waves; a wave needs what the waves before it found."""
    every = [
        Job(seed, name, domain)
        for seed in range(n_seeds)
        for name in models
        for domain in ([None] if MODELS[name].joint else domains)
    ]
    late = [job for job in every if MODELS[job.model].starts_from_smf]
    return [[job for job in every if job not in late], late]


def splits_of(plan: Plan, seed: int) -> Splits:
    """The data, split by that seed; the latest are kept in this process."""
    return _splits(plan.config_text, plan.base, seed)


def size(plan: Plan, job: Job) -> Size:
    """How much the job is about."""
    everything = reading(plan.config_text, plan.base).domains
    names = MODELS[job.model].sight(everything.domains, job.domain)
    return Size.of(everything, names, dim=_config(plan.config_text).dim)


def _write(plan: Plan, job: Job, task: Task, chosen: Tuned) -> None:
    """Measure the best try's model and write it down."""
    made: Made = chosen.made
    metrics = {
        name: measure(
            one.scorer, task.splits[name], task.seed.child("sampled", name),
            sampled=plan.sampled, n_threads=plan.n_threads,
        )
        for name, one in made.items()
    }  # fmt: skip
    about = {
        "domains": list(metrics),
        "metrics": list(next(iter(metrics.values())).values),
        "valid": valid_ndcg(made, task),
        "settings": dict(chosen.best.settings),
        "tries": [asdict(tried) for tried in chosen.tries],
        **_described(made),
    }
    place = job.place(plan.out)
    with artifacts.writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    artifacts.save(place, _KIND, _tensors(task, made, metrics), about)
    _attempts(plan, job).clear()


def _attempts(plan: Plan, job: Job) -> Attempts:
    return Attempts(job.progress(plan.out))


def _task(plan: Plan, job: Job, splits: Splits) -> Task:
    config = _config(plan.config_text)
    looked_at = validations(splits, Seed(job.seed), n_threads=plan.n_threads)
    names = MODELS[job.model].sight(splits, job.domain)
    starts = MODELS[job.model].starts_from_smf
    return Task(
        {name: splits[name] for name in names},
        {name: looked_at[name] for name in names},
        configuration.changed(config, {"seed": job.seed}),
        {name: _alone(plan.out, job.seed, name) for name in names} if starts else {},
        plan.n_threads,
        max_bytes=plan.memory,
        target=job.domain,
    )


def _alone(out: Path, seed: int, domain: str) -> Pretrained:
    saved = artifacts.load(Job(seed, "smf", domain).place(out), _KIND)
    factors = Factors(saved.tensors["user_vectors"], saved.tensors["item_vectors"])
    squares, about = saved.tensors["item_squares"], saved.about
    return Pretrained(factors, squares, about["regularization"], about["learning_rate"], ())


def _described(made: Made) -> dict[str, Any]:
    return {
        **next((_steps(one.start) for one in made.values() if one.start), {}),
        "curves": {
            name: [[(epoch.number, epoch.valid) for epoch in fit.epochs] for fit in one.history]
            for name, one in made.items()
        },
        "parts": {name: one.verdict.chosen.name for name, one in made.items() if one.verdict},
        "attention": {name: dict(one.attention) for name, one in made.items()},
        "hidden": {name: list(one.without) for name, one in made.items()},
    }


def _steps(start: Pretrained) -> dict[str, float]:
    return {"regularization": start.regularization, "learning_rate": start.learning_rate}


def _tensors(task: Task, made: Made, metrics: Mapping[str, PerUser]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for n, (name, one) in enumerate(made.items()):
        tensors[f"users_{n}"] = metrics[name].users
        tensors[f"values_{n}"] = np.stack(list(metrics[name].values.values()))
        if hidden := [_ndcg(task, name, hide()) for hide in one.without.values()]:
            tensors[f"hidden_{n}"] = np.stack(hidden)
        if start := one.start:  # of one domain alone
            tensors["user_vectors"] = start.factors.users
            tensors["item_vectors"] = start.factors.items
            tensors["item_squares"] = start.item_squares
    return tensors


def _ndcg(task: Task, name: str, scorer: Scorer) -> Float64[np.ndarray, " user"]:
    split = task.splits[name]
    found = evaluate(scorer, split.test, split.seen(), ks=(10,), n_threads=task.n_threads)
    return found.values["ndcg@10"]


def _config(text: str) -> RunConfig:
    return configuration.parse(tomllib.loads(text), "settings")


@lru_cache(maxsize=1)
def reading(config_text: str, base: Path) -> Reading:
    """The data of these settings, read once in a process."""
    return readers.read(_config(config_text).data, base=base)


@lru_cache(maxsize=2)
def _splits(config_text: str, base: Path, seed: int) -> dict[str, Split]:
    return split(reading(config_text, base).domains, _config(config_text).split, Seed(seed))
