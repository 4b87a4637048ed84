"""How long a fit will take: its stages for two epochs each, and what they usually need."""

import time
from dataclasses import dataclass
from typing import Any

from musketeers.config import changed
from musketeers.execution import InTurn
from musketeers.heads.ladder import ladder
from musketeers.pipeline import Models, cat_art, exchanged, smf
from musketeers.task import Task
from musketeers.training import Epoch

_LOOKS = {"pretrain": 102, "cat": 37, "art": 23}
"""Looks at validation that a stage takes in a domain, all settings tried together: means over the
ten domains of two data sets, by default settings (docs/experiments.md)."""

_INVERSES, _RANKINGS = 4, 40
"""Of the choice, likewise."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Expected seconds of a fit, by stage."""

    pretrain: float
    cat: float
    art: float
    choice: float
    ranking: float
    """Of one model's lists for the validation users of all domains; part of the others."""

    @property
    def fit(self) -> float:
        """All stages."""
        return self.pretrain + self.cat + self.art + self.choice

    def at_width(self, ratio: float) -> "Costs":
        """With vectors so many times as wide: CAT's layers grow both ways, all else one."""
        return Costs(
            ratio * self.pretrain, ratio**2 * self.cat, ratio * self.art,
            ratio * self.choice, self.ranking,
        )  # fmt: skip


def estimate(task: Task) -> Costs:
    """What a fit by the task's settings will about take on this machine, as busy as it is now.

    Each stage runs for two looks, of which the second counts: the first may compile.
    """
    looks: dict[tuple[str, str | None], Epoch] = {}

    def jobs(stage: str, domain: str | None, _: int) -> _LastLook:
        return _LastLook(looks, (stage, domain))

    every = task.config.pretrain.validate_every
    short: dict[str, Any] = {
        "pretrain.tries": 1, "pretrain.max_epochs": 2 * every, "cat.max_epochs": 2,
        "art.max_epochs": 2,
    }  # fmt: skip
    brief, threads = changed(task.config, short), task.n_threads
    if len(task.splits) > 1:
        made = cat_art(task.splits, brief, InTurn(jobs), n_threads=threads, given=task.given)
    else:
        made = Models(smf(task.splits, brief, InTurn(jobs), n_threads=threads, given=task.given))
    inverses, ranking = _heads(task, made)
    by_stage = {
        stage: n * sum(_seconds(look) for (of, _), look in looks.items() if of == stage)
        for stage, n in _LOOKS.items()
    }
    choice = _INVERSES * inverses + _RANKINGS * ranking
    return Costs(**by_stage, choice=choice, ranking=ranking)


@dataclass(frozen=True, slots=True)
class _LastLook:
    """A `Job` that keeps the last look."""

    looks: dict[tuple[str, str | None], Epoch]
    name: tuple[str, str | None]

    def checkpoint(self, part: str) -> None:
        """See `Job.checkpoint`; there is none."""

    def on_epoch(self, epoch: Epoch, /) -> None:
        """See `Job.on_epoch`."""
        self.looks[self.name] = epoch


def _seconds(look: Epoch) -> float:
    return look.seconds + look.valid_seconds


def _heads(task: Task, made: Models) -> tuple[float, float]:
    """Seconds of one step up the ladder in each domain, and of ranking for all."""
    shared = exchanged(task.splits, made.alone)
    _, n_domains, dim = shared.values.shape
    inverses, rankings = 0.0, 0.0
    for name, validation in task.validations.items():
        models = ladder(name, validation, n_domains=n_domains, dim=dim, max_bytes=task.max_bytes)
        start = time.perf_counter()
        model = models.at(models.start)(shared)(1.0) if models else made.alone[name].factors
        solved = time.perf_counter()
        validation.ndcg(model)
        inverses += solved - start
        rankings += time.perf_counter() - solved
    return inverses, rankings
