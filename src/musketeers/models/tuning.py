"""Every model gets the same number of tries, and validation alone says which was best."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar, cast

from musketeers.errors import MissingExtraError, MusketeersError
from musketeers.models.model import Model, Settings, valid_ndcg
from musketeers.models.space import Choice, Range, Space
from musketeers.seeding import Seed
from musketeers.task import Task

Fit = TypeVar("Fit")


@dataclass(frozen=True, slots=True)
class Try:
    """One training with one choice of settings."""

    settings: Settings
    valid: float | None
    """Mean validation NDCG@10; None where training failed."""
    seconds: float
    failure: str | None = None


def quiet(_number: int, _tried: Try) -> None:
    """An `on_try` that does nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The best of some tries."""

    made: Any
    """What was trained."""
    best: Try
    tries: tuple[Try, ...]
    """In the order in which they ran; the first has the defaults."""


def fitted(
    name: str, model: Model, task: Task, *, n_tries: int, on_try: Callable[[int, Try], None] = quiet
) -> Tuned:
    """The model `name`, tuned on the mean over the task's targets of validation NDCG@10.

    The same for the same seed wherever it is called: what a comparison found can be fitted again.
    """
    return tune(
        lambda settings: model.fit(task, settings),
        lambda made: fmean(valid_ndcg(made, task).values()),
        model.space,
        n_tries=n_tries,
        seed=task.seed.child("tuning", name, task.target or "all"),
        on_try=on_try,
    )


def tune(
    fit: Callable[[Settings], Fit],
    measure: Callable[[Fit], float],
    space: Space,
    *,
    n_tries: int,
    seed: Seed,
    on_try: Callable[[int, Try], None] = quiet,
) -> Tuned:
    """The best of `n_tries` trainings by `measure`, the earliest of equal ones.

    The first try has the defaults, so tuning never ends below them on validation.  The others are
    proposed by the tree-structured Parzen estimator (Bergstra et al., NIPS 2011) of Optuna, which
    a single try does not need.  A model without anything to tune is trained once.  A try that
    fails counts as a try; if all fail, the first failure is raised.

    Raises `MissingExtraError` if Optuna is needed and not installed.
    """
    n_tries = n_tries if space else 1
    propose = _proposals(seed) if n_tries > 1 else None
    tries: list[Try] = []
    best: tuple[Try, Fit] | None = None
    failure: MusketeersError | None = None
    for number in range(n_tries):
        trial = propose.ask() if propose and number else None
        settings = _suggested(trial, space) if trial else {}
        start = time.perf_counter()
        try:
            made = fit(settings)
            valid = measure(made)
        except MusketeersError as error:
            failure = failure or error
            tries.append(Try(settings, None, time.perf_counter() - start, str(error)))
        else:
            tries.append(Try(settings, valid, time.perf_counter() - start))
            if best is None or valid > (best[0].valid or 0):
                best = tries[-1], made
            # a model that lost does not take memory while the next one trains
            del made
        on_try(number, tries[-1])
        if propose and trial:
            _tell(propose, trial, tries[-1])
    if best is None:
        raise cast(MusketeersError, failure)
    return Tuned(best[1], best[0], tuple(tries))


def _proposals(seed: Seed) -> Any:
    """An Optuna study that proposes settings to be tried."""
    try:
        import optuna
    except ImportError:
        raise MissingExtraError(
            "tuning needs optuna; install it with pip install 'musketeers[compare]', or ask for "
            "one try to use the defaults"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed.integer() % 2**32, n_startup_trials=8)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _suggested(trial: Any, space: Space) -> dict[str, Any]:
    return {name: _suggestion(trial, name, bounds) for name, bounds in space.items()}


def _suggestion(trial: Any, name: str, bounds: Range | Choice) -> Any:
    if isinstance(bounds, Choice):
        return trial.suggest_categorical(name, list(bounds.values))
    if isinstance(bounds.low, int) and isinstance(bounds.high, int):
        return trial.suggest_int(name, bounds.low, bounds.high, log=bounds.log)
    return trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)


def _tell(study: Any, trial: Any, tried: Try) -> None:
    if tried.valid is None:
        from optuna.trial import TrialState

        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, tried.valid)
