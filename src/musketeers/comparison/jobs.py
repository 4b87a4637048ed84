"""One model in one domain (or all at once) with one seed: tuned, measured, written down."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.comparison.models import MODELS, Size, Task
from musketeers.comparison.tuning import tune
from musketeers.config import RunConfig
from musketeers.data import readers
from musketeers.data.domains import Domains, Split
from musketeers.data.splits import split
from musketeers.evaluation.evaluate import PerUser
from musketeers.evaluation.sampled import measure
from musketeers.pipeline import validations
from musketeers.pretrain.mf import Pretrained
from musketeers.protocols import Scorer
from musketeers.ranking import Factors
from musketeers.seeding import Seed

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
        return out / "jobs" / str(self.seed) / self.model / (self.domain or "all")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a job found."""

    metrics: Mapping[str, PerUser]
    """By domain, on test."""
    valid: Mapping[str, float]
    """NDCG@10 of the chosen tries, by domain."""
    about: Mapping[str, Any]
    """The chosen settings, all tries, seconds."""


def run(plan: Plan, job: Job) -> None:
    """Do the job, unless it is done already."""
    if is_done(plan, job):
        return
    place = job.place(plan.out)
    model, task = MODELS[job.model], _task(plan, job)
    tuned = tune(
        lambda settings: model.fit(task, settings),
        lambda made: _mean(_valid(task, made)),
        model.space,
        n_tries=plan.n_tries,
        seed=task.seed.child("tuning", job.model, job.domain or "all"),
    )
    metrics = {
        name: measure(
            _scorer(made), task.splits[name], task.seed.child("sampled", name),
            sampled=plan.sampled, n_threads=plan.n_threads,
        )
        for name, made in tuned.made.items()
    }  # fmt: skip
    tensors = _tensors(metrics)
    if job.model == "smf":
        (made,) = tuned.made.values()
        tensors |= {
            "user_vectors": made.factors.users,
            "item_vectors": made.factors.items,
            "item_squares": made.item_squares,
        }
    about = {
        "domains": list(metrics),
        "metrics": list(next(iter(metrics.values())).values),
        "valid": _valid(task, tuned.made),
        "settings": dict(tuned.best.settings),
        "tries": [asdict(tried) for tried in tuned.tries],
        "regularization": getattr(next(iter(tuned.made.values())), "regularization", None),
    }
    with artifacts.writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    artifacts.save(place, _KIND, tensors, about)


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
    return Found(metrics, saved.about["valid"], saved.about)


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


def size(plan: Plan, job: Job) -> Size:
    """How much the job is about."""
    everything = domains(plan.config_text, plan.base)
    names = list(everything.domains) if job.domain is None else [job.domain]
    return Size(
        len(everything.users),
        tuple(len(everything.domains[name].items) for name in names),
        sum(len(everything.domains[name].pairs) for name in names),
        _config(plan.config_text).dim,
        len(everything.domains),
    )


def _task(plan: Plan, job: Job) -> Task:
    config, splits = _config(plan.config_text), _splits(plan.config_text, plan.base, job.seed)
    looked_at = validations(splits, Seed(job.seed), n_threads=plan.n_threads)
    names = list(splits) if job.domain is None else [job.domain]
    starts = MODELS[job.model].starts_from_smf
    return Task(
        {name: splits[name] for name in names},
        {name: looked_at[name] for name in names},
        configuration.changed(config, {"seed": job.seed}),
        {name: _alone(plan.out, job.seed, name) for name in names} if starts else {},
        plan.n_threads,
        plan.memory,
    )


def _alone(out: Path, seed: int, domain: str) -> Pretrained:
    saved = artifacts.load(Job(seed, "smf", domain).place(out), _KIND)
    factors = Factors(saved.tensors["user_vectors"], saved.tensors["item_vectors"])
    return Pretrained(factors, saved.tensors["item_squares"], saved.about["regularization"], ())


def _valid(task: Task, made: Mapping[str, Any]) -> dict[str, float]:
    return {name: task.validations[name].ndcg(_scorer(one)) for name, one in made.items()}


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _scorer(made: Pretrained | Scorer) -> Scorer:
    return made.factors if isinstance(made, Pretrained) else made


def _tensors(metrics: Mapping[str, PerUser]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for n, measured in enumerate(metrics.values()):
        tensors[f"users_{n}"] = measured.users
        tensors[f"values_{n}"] = np.stack(list(measured.values.values()))
    return tensors


def _config(text: str) -> RunConfig:
    return configuration.parse(tomllib.loads(text), "settings")


@lru_cache(maxsize=1)
def domains(config_text: str, base: Path) -> Domains:
    """The data of these settings, read once in a process."""
    return readers.read(_config(config_text).data, base=base).domains


@lru_cache(maxsize=2)
def _splits(config_text: str, base: Path, seed: int) -> dict[str, Split]:
    return split(domains(config_text, base), _config(config_text).split, Seed(seed))
