"""The search for a strength of regularisation: strong first, then half as much."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from musketeers.config import PretrainConfig
from musketeers.training import History, Job, Trainable, fit

Model = TypeVar("Model", bound=Trainable)


@dataclass(frozen=True, slots=True, eq=False)
class Halved(Generic[Model]):
    """The model that validation chose, at its best epoch."""

    model: Model
    regularization: float
    history: tuple[History, ...]
    """One for each strength tried, in that order."""


def by_halving(at: Callable[[float], Model], config: PretrainConfig, job: Job) -> Halved[Model]:
    """The best of the models that `at` starts, by validation.

    How much regularisation a data set needs differs tenfold between the ones tried, and a wrong
    strength costs more than any transfer gains.  So a model is trained at
    `config.regularization`, then anew at half of it, until a halving brings nothing better.
    (Going on from the stronger model instead costs less and ends worse: dimensions that
    strong regularisation has emptied do not come back.)
    """
    histories: list[History] = []

    def tried(halving: int) -> tuple[Model, float]:
        strength = config.regularization / 2**halving
        model = at(strength)
        history = fit(
            model,
            max_epochs=config.max_epochs,
            patience=config.patience,
            checkpoint=job.checkpoint(f"regularization-{halving}"),
            on_epoch=job.on_epoch,
        )
        histories.append(history)
        return model, strength

    best = tried(0)
    for halving in range(1, config.halvings + 1):
        following = tried(halving)
        if histories[-1].best.valid <= histories[-2].best.valid:
            break
        best = following
    return Halved(*best, tuple(histories))
