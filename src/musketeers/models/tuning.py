"""Every model gets the same number of tries, and validation alone says which was best."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from statistics import fmean
from typing import Any, Generic, TypeVar, cast

from musketeers.errors import ArtifactError, MissingExtraError, MusketeersError
from musketeers.models.model import Model, Settings, valid_ndcg
from musketeers.models.space import Choice, Range, Space
from musketeers.seeding import Seed
from musketeers.task import Task

Fit = TypeVar("Fit")

_DRAWN = 8
"""Proposals that are drawn at random, whatever was found before."""


@dataclass(frozen=True, slots=True)
class Try:
    """One training with one choice of settings."""

    settings: Settings
    valid: float | None
    """Mean validation NDCG@10; None where training failed."""
    seconds: float
    failure: str | None = None


Train = Callable[[int, Settings], Try]
"""(number, settings) -> how the try went."""
Each = Callable[[Sequence[int], Sequence[Settings]], Iterable[Try]]
"""`Train` of several that do not depend on each other; how they went, in their order."""


def quiet(_number: int, _tried: Try) -> None:
    """An `on_try` that does nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The best of some tries."""

    made: Any
    """What was trained."""
    best: Try
    tries: tuple[Try, ...]
    """In the order in which they were proposed; the first has the defaults."""


@dataclass(slots=True, eq=False)
class Trainer(Generic[Fit]):
    """Trains and measures in this process; keeps the best model that it made, and no other."""

    fit: Callable[[int, Settings], Fit]
    measure: Callable[[Fit], float]
    best: tuple[Try, Fit] | None = field(default=None, init=False)
    failure: MusketeersError | None = field(default=None, init=False)
    """The first."""

    def __call__(self, number: int, settings: Settings) -> Try:
        """One try; a training that fails is one too, but not a disk that refuses."""
        start = time.perf_counter()
        try:
            made = self.fit(number, settings)
            valid = self.measure(made)
        except ArtifactError:
            raise
        except MusketeersError as error:
            self.failure = self.failure or error
            return Try(settings, None, time.perf_counter() - start, str(error))
        tried = Try(settings, valid, time.perf_counter() - start)
        if self.best is None or valid > (self.best[0].valid or 0):
            self.best = tried, made
        return tried


def fitted(
    name: str, model: Model, task: Task, *, n_tries: int, on_try: Callable[[int, Try], None] = quiet
) -> Tuned:
    """The model `name`, tuned on the mean over the task's targets of validation NDCG@10.

    The same for the same seed wherever it is called: what a comparison found can be fitted again.
    """
    return tune(
        lambda settings: model.fit(task, settings),
        lambda made: measured(made, task),
        model.space,
        n_tries=n_tries,
        seed=stream(name, task.seed, task.target),
        on_try=on_try,
    )


def measured(made: Any, task: Task) -> float:
    """What a model is tuned on."""
    return fmean(valid_ndcg(made, task).values())


def stream(name: str, seed: Seed, target: str | None) -> Seed:
    """Where the proposals for a model come from; `target` is None for all domains together."""
    return seed.child("tuning", name, target or "all")


def tune(
    fit: Callable[[Settings], Fit],
    measure: Callable[[Fit], float],
    space: Space,
    *,
    n_tries: int,
    seed: Seed,
    on_try: Callable[[int, Try], None] = quiet,
) -> Tuned:
    """The best of `tries`, trained here one after the other.

    If all fail, the first failure is raised.
    """
    trainer = Trainer(lambda _, settings: fit(settings), measure)
    found = tries(partial(map, trainer), space, n_tries=n_tries, seed=seed, on_try=on_try)
    if trainer.best is None:
        raise cast(MusketeersError, trainer.failure)
    return Tuned(trainer.best[1], trainer.best[0], found)


def tries(
    each: Each,
    space: Space,
    *,
    n_tries: int,
    seed: Seed,
    on_try: Callable[[int, Try], None] = quiet,
) -> tuple[Try, ...]:
    """So many trainings, each with other settings; `best_of` tells the best.

    The first has the defaults, so tuning never ends below them on validation.  The others are
    proposed by the tree-structured Parzen estimator (Bergstra et al., NIPS 2011) of Optuna, which
    a single try does not need.  A model without anything to tune is trained once.  A try that
    fails counts as a try.

    The first nine do not depend on each other and are handed to `each` together, which may train
    them side by side; each later one needs all before it.  What is proposed is the same
    wherever they are trained, and `on_try` hears of them in their order.

    Raises `MissingExtraError` if Optuna is needed and not installed.
    """
    n_tries = n_tries if space else 1
    study = _study(seed) if n_tries > 1 else None
    found: list[Try] = []
    while len(found) < n_tries:
        numbers = range(len(found), min(max(len(found) + 1, 1 + _DRAWN), n_tries))
        proposed = [_proposal(study if number else None, space) for number in numbers]
        done = each(numbers, [settings for _, settings in proposed])
        for number, (trial, _), tried in zip(numbers, proposed, done, strict=True):
            found.append(tried)
            on_try(number, tried)
            if trial:
                _tell(study, trial, tried)
    return tuple(found)


def best_of(found: Sequence[Try]) -> int | None:
    """The number of the try with the largest value, the first of equal ones; None if all failed."""
    valid = {n: tried.valid for n, tried in enumerate(found) if tried.valid is not None}
    return max(valid, key=valid.__getitem__, default=None)


def optuna() -> Any:
    """The package that proposes settings; `MissingExtraError` where it is not installed."""
    try:
        return import_module("optuna")
    except ImportError:
        raise MissingExtraError(
            "tuning needs optuna; install it with pip install 'musketeers[compare]', or ask for "
            "one try to use the defaults"
        ) from None


def _study(seed: Seed) -> Any:
    """An Optuna study that proposes settings to be tried."""
    package = optuna()
    package.logging.set_verbosity(package.logging.WARNING)
    sampler = package.samplers.TPESampler(seed=seed.integer() % 2**32, n_startup_trials=_DRAWN)
    return package.create_study(direction="maximize", sampler=sampler)


def _proposal(study: Any, space: Space) -> tuple[Any, dict[str, Any]]:
    """A trial of the study and its settings; without a study the defaults."""
    if study is None:
        return None, {}
    trial = study.ask()
    return trial, {name: _suggestion(trial, name, bounds) for name, bounds in space.items()}


def _suggestion(trial: Any, name: str, bounds: Range | Choice) -> Any:
    if isinstance(bounds, Choice):
        return trial.suggest_categorical(name, list(bounds.values))
    if isinstance(bounds.low, int) and isinstance(bounds.high, int):
        return trial.suggest_int(name, bounds.low, bounds.high, log=bounds.log)
    return trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)


def _tell(study: Any, trial: Any, tried: Try) -> None:
    if tried.valid is None:
        study.tell(trial, state=optuna().trial.TrialState.FAIL)
    else:
        study.tell(trial, tried.valid)
