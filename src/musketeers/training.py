"""The one training loop, shared by all stages: best epoch, early stopping, exact resumption."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from musketeers.errors import DivergedError

_LAST, _BEST = "last/", "best/"


@runtime_checkable
class Trainable(Protocol):
    """What a stage supplies; the loop knows nothing more about it."""

    def epoch(self, number: int) -> float:
        """One pass over the training data, giving its mean loss.

        All its randomness depends on `number`, never on the passes before.
        """
        ...

    def validate(self) -> float:
        """How good the model is now; larger is better."""
        ...

    def state(self) -> Mapping[str, np.ndarray]:
        """All that is needed to go on exactly: weights and optimiser.  May be live memory."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave; the arrays stay the caller's, so copy them."""
        ...


@runtime_checkable
class Checkpoint(Protocol):
    """A place that holds the latest progress of one fit."""

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What was saved last, or None."""
        ...

    def save(self, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Replace what is there; a killed process leaves the old or the new."""
        ...


@runtime_checkable
class Job(Protocol):
    """Where one fit keeps its progress and who watches it."""

    def checkpoint(self, part: str) -> Checkpoint | None:
        """The place for the progress of one part of the job; None keeps none."""
        ...

    def on_epoch(self, epoch: "Epoch", /) -> None:
        """Called after every epoch."""
        ...


class Unwatched:
    """A `Job` that keeps nothing and tells nobody."""

    def checkpoint(self, part: str) -> None:
        """See `Job.checkpoint`."""

    def on_epoch(self, epoch: "Epoch", /) -> None:
        """See `Job.on_epoch`."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Where one pass over the data, or several without a look between them, ended."""

    number: int
    """0 is the model as it was handed in."""
    train_loss: float | None
    """Mean over its pass; None for epoch 0, which trains nothing."""
    valid: float
    """Validation value; larger is better."""
    seconds: float
    """Wall time of training since the look before."""
    valid_seconds: float
    """Wall time of the validation."""
    passes: int = 1
    """Passes over the training data since the look before; without meaning for epoch 0."""


@dataclass(frozen=True, slots=True)
class History:
    """Every epoch of a fit that validation looked at, in order; at least epoch 0.

    >>> start, better, equal = (Epoch(n, None, v, 2, 0.1) for n, v in enumerate((0.1, 0.3, 0.3)))
    >>> History((start, better, equal)).best
    Epoch(number=1, train_loss=None, valid=0.3, seconds=2, valid_seconds=0.1, passes=1)
    """

    epochs: tuple[Epoch, ...]

    @property
    def best(self) -> Epoch:
        """The epoch with the largest validation value, the earliest of equal ones."""
        return max(self.epochs, key=lambda epoch: epoch.valid)

    @property
    def last(self) -> Epoch:
        """The latest epoch."""
        return self.epochs[-1]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values, one mapping per epoch; `from_json` reads them back."""
        return [asdict(e) for e in self.epochs]

    @classmethod
    def from_json(cls, epochs: list[dict[str, Any]]) -> "History":
        """The history that `to_json` wrote."""
        return cls(tuple(Epoch(**epoch) for epoch in epochs))


def ignore(_: Epoch) -> None:
    """An `on_epoch` that does nothing."""


def fit(
    model: Trainable,
    *,
    max_epochs: int,
    patience: int,
    every: int = 1,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] = ignore,
    remedy: str = "learning_rate is probably too large, start again with a smaller one",
) -> History:
    """Train until `patience` epochs in a row brought nothing better; leave `model` at its best.

    Validation looks at each `every`-th epoch and at the last; the history holds those.  Epoch 0,
    the model as handed in, counts: training that never improves validation returns the start
    unchanged.  With a `checkpoint`, progress is saved with every look, and a later call with an
    equal model and settings goes on from there, bitwise as if never interrupted; a fit that was
    complete returns at once.  `on_epoch` hears of the looks of this call only.

    Raises `DivergedError` if a loss or validation value is not finite, with the `remedy`, which
    names settings that the model has; the checkpoint then still holds the epoch before.
    """
    progress = _Progress(model, checkpoint)
    progress.load()
    while not progress.is_complete(max_epochs, patience):
        epoch = _run(model, progress.following(every, max_epochs), remedy)
        progress.record(epoch)
        on_epoch(epoch)
    model.restore(progress.best)
    return History(tuple(progress.epochs))


def _run(model: Trainable, numbers: range, remedy: str) -> Epoch:
    """Train these epochs and look; the number 0 trains nothing."""
    start, loss = time.perf_counter(), None
    for number in numbers:
        loss = _finite(model.epoch(number), number, "training loss", remedy) if number else None
    trained = time.perf_counter()
    last = numbers[-1]
    valid = _finite(model.validate(), last, "validation value", remedy)
    looked = time.perf_counter() - trained
    return Epoch(last, loss, valid, trained - start, looked, len(numbers))


def _finite(value: float, number: int, what: str, remedy: str) -> float:
    if math.isfinite(value):
        return float(value)
    if number == 0:
        raise DivergedError(
            f"before training: {what} is {value}; the starting weights are not usable, "
            "train the stage before again with a smaller learning_rate"
        )
    raise DivergedError(f"epoch {number}: {what} is {value}; {remedy}")


@dataclass(slots=True)
class _Progress:
    """All that the loop remembers between epochs."""

    model: Trainable
    checkpoint: Checkpoint | None
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    best: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])

    def load(self) -> None:
        saved = self.checkpoint.load() if self.checkpoint else None
        if saved is None:
            return
        tensors, about = saved
        self.epochs = list(History.from_json(about["epochs"]).epochs)
        last = _part(tensors, _LAST)
        self.model.restore(last)
        self.best = _part(tensors, _BEST) if self.is_stale() else last

    def following(self, every: int, max_epochs: int) -> range:
        """The epochs before the next look, that one included."""
        if not self.epochs:
            return range(1)
        number = self.epochs[-1].number
        return range(number + 1, min(number + every, max_epochs) + 1)

    def is_complete(self, max_epochs: int, patience: int) -> bool:
        if not self.epochs:
            return False
        number = self.epochs[-1].number
        return number >= max_epochs or number - self._best_number() >= patience

    def is_stale(self) -> bool:
        """Whether the latest epoch is not the best."""
        return self._best_number() != self.epochs[-1].number

    def record(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)
        state = self.model.state()
        if not self.is_stale():
            self.best = {name: _copied(value, self.best.get(name)) for name, value in state.items()}
        if self.checkpoint:
            tensors = {_LAST + name: value for name, value in state.items()}
            # while the last is the best, one copy on disk is enough
            if self.is_stale():
                tensors |= {_BEST + name: value for name, value in self.best.items()}
            self.checkpoint.save(tensors, {"epochs": History(tuple(self.epochs)).to_json()})

    def _best_number(self) -> int:
        return History(tuple(self.epochs)).best.number


def _copied(value: np.ndarray, old: np.ndarray | None) -> np.ndarray:
    """A copy of `value`, in the memory of `old` where that fits."""
    if old is None or old.shape != value.shape or old.dtype != value.dtype:
        return value.copy()
    np.copyto(old, value)
    return old


def _part(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
