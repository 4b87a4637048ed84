"""The search for a strength of regularisation and a learning rate: strong and fast first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from musketeers.config import PretrainConfig
from musketeers.training import History, Job, Trainable, fit

WEAKER, SLOWER = 0.5, 0.25
"""What a step of the search multiplies the strength, or the learning rate, by."""

Model = TypeVar("Model", bound=Trainable)


@dataclass(frozen=True, slots=True, eq=False)
class Searched(Generic[Model]):
    """The model that validation chose, at its best epoch."""

    model: Model
    config: PretrainConfig
    """With the strength and the rate that it was trained with."""
    history: tuple[History, ...]
    """One for each pair tried, in that order."""


def search(
    at: Callable[[PretrainConfig], Model], config: PretrainConfig, job: Job
) -> Searched[Model]:
    """The best of the models that `at` starts, by validation.

    How much regularisation a data set needs differs tenfold between the ones tried, where items are
    rarely met a slower rate ranks up to a tenth better, and a wrong choice costs more than any
    transfer gains.  So a model is trained at the strength and the rate of `config`; then anew at
    half the strength as long as validation improves; then at a quarter of the rate as long as it
    does; and again at half the strength, until neither brings anything better or `config.tries`
    models have been trained.  (Going on from the stronger model instead costs less and ends worse:
    dimensions that strong regularisation has emptied do not come back.)
    """
    histories: list[History] = []

    def tried(setting: PretrainConfig) -> Searched[Model]:
        model = at(setting)
        history = fit(
            model,
            max_epochs=config.max_epochs,
            patience=config.patience,
            every=config.validate_every,
            checkpoint=job.checkpoint(f"try-{len(histories)}"),
            on_epoch=job.on_epoch,
        )
        histories.append(history)
        return Searched(model, setting, (history,))

    best = tried(config)
    weaker, in_vain = True, 0
    while in_vain < 2 and len(histories) < config.tries:
        following = tried(_weaker(best.config) if weaker else _slower(best.config))
        if following.history[0].best.valid > best.history[0].best.valid:
            best, in_vain = following, 0
        else:
            weaker, in_vain = not weaker, in_vain + 1
    return Searched(best.model, best.config, tuple(histories))


def _weaker(config: PretrainConfig) -> PretrainConfig:
    return config.model_copy(update={"regularization": WEAKER * config.regularization})


def _slower(config: PretrainConfig) -> PretrainConfig:
    return config.model_copy(update={"learning_rate": SLOWER * config.learning_rate})
