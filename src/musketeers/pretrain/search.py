"""The search for the settings of stage 1: from one that is tried first, uphill by validation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from musketeers.config import PretrainConfig
from musketeers.training import History, Job, Trainable, fit

WEAKER, SLOWER = 0.5, 0.25
"""What a step of the search multiplies the strength, or the learning rate, by."""

Model = TypeVar("Model", bound=Trainable)
Setting = TypeVar("Setting")


@dataclass(frozen=True, slots=True, eq=False)
class Searched(Generic[Model, Setting]):
    """The model that validation chose, at its best epoch."""

    model: Model
    setting: Setting
    """What it was trained with."""
    history: tuple[History, ...]
    """One for each setting tried, in that order."""


def search(
    at: Callable[[PretrainConfig], Model], config: PretrainConfig, job: Job
) -> Searched[Model, PretrainConfig]:
    """The best of the models that `at` starts, at other strengths and rates, by validation.

    How much regularisation a data set needs differs tenfold between the ones tried, where items are
    rarely met a slower rate ranks up to a tenth better, and a wrong choice costs more than any
    transfer gains.  So a model is trained at the strength and the rate of `config`; then anew at
    half the strength as long as validation improves; then at a quarter of the rate as long as it
    does; and again at half the strength, until neither brings anything better or `config.tries`
    models have been trained.  (Going on from the stronger model instead costs less and ends worse:
    dimensions that strong regularisation has emptied do not come back.)
    """

    def train(model: Model, tried: PretrainConfig) -> History:
        return fit(
            model,
            max_epochs=config.max_epochs,
            patience=config.patience,
            every=config.validate_every,
            checkpoint=job.checkpoint(f"{tried.regularization:g}-{tried.learning_rate:g}"),
            on_epoch=job.on_epoch,
        )

    return climb(at, config, (_weaker, _slower), train, tries=config.tries)


def climb(
    at: Callable[[Setting], Model],
    start: Setting,
    moves: Sequence[Callable[[Setting], Setting]],
    train: Callable[[Model, Setting], History],
    *,
    tries: int,
) -> Searched[Model, Setting]:
    """The best of the models that `at` starts, from `start` by one move after the other.

    A move is made again from each better setting that it leads to, then the next one; the climb
    ends when no move leads from the best setting to a better one that was not tried, or after
    `tries` models.  `train` must keep progress by setting: with more epochs, the same number may be
    that of another.
    """
    seen: list[Setting] = []
    histories: list[History] = []

    def tried(setting: Setting) -> Searched[Model, Setting]:
        model = at(setting)
        history = train(model, setting)
        seen.append(setting)
        histories.append(history)
        return Searched(model, setting, (history,))

    best = tried(start)
    number, in_vain = 0, 0
    while in_vain < len(moves) and len(seen) < tries:
        setting = moves[number](best.setting)
        if setting not in seen:
            following = tried(setting)
            if following.history[0].best.valid > best.history[0].best.valid:
                best, in_vain = following, 0
                continue
        number, in_vain = (number + 1) % len(moves), in_vain + 1
    return Searched(best.model, best.setting, tuple(histories))


def _weaker(config: PretrainConfig) -> PretrainConfig:
    return config.model_copy(update={"regularization": WEAKER * config.regularization})


def _slower(config: PretrainConfig) -> PretrainConfig:
    return config.model_copy(update={"learning_rate": SLOWER * config.learning_rate})
