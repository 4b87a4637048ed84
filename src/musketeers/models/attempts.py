"""What a tuning has until it is done: how its tries went, and how far the running ones are."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

from musketeers import artifacts
from musketeers.errors import RunError
from musketeers.execution import InTurn, Jobs, Watched
from musketeers.models.model import Made, Settings
from musketeers.models.registry import MODELS
from musketeers.models.tuning import (
    Each,
    Train,
    Trainer,
    Try,
    Tuned,
    best_of,
    measured,
    quiet,
    stream,
    tries,
)
from musketeers.seeding import Seed
from musketeers.task import Task
from musketeers.training import ignore


@dataclass(frozen=True, slots=True)
class Attempts:
    """The tries of one model in a folder, each under its number and what it was to try.

    Whoever begins a try again, in this process or on another machine, goes on from its last epoch
    and ends with the same; one that has ended is not trained again.
    """

    folder: Path

    def trainer(self, name: str, task: Task) -> Trainer[Made]:
        """Trains tries of the model `name`, each of which keeps its progress here."""

        def fit(number: int, settings: Settings) -> Made:
            return MODELS[name].fit(replace(task, jobs=self.jobs(number, settings)), settings)

        return Trainer(fit, partial(measured, task=task))

    def once(self, train: Train) -> Train:
        """`train`, but for tries that went well before: those are recalled."""

        def train_once(number: int, settings: Settings) -> Try:
            kept = self._record(number, settings)
            if kept.exists():
                return Try(**json.loads(kept.read_text(encoding="utf-8")))
            tried = train(number, settings)
            # what failed may do so for want of memory, so it is tried again
            if tried.valid is not None:
                artifacts.write_text(kept, json.dumps(asdict(tried)) + "\n")
            return tried

        return train_once

    def jobs(self, number: int, settings: Settings) -> Jobs:
        """Where the trainings of a try keep their progress."""
        place, writer = self._place(number, settings), token_hex(8)
        return InTurn(
            lambda stage, domain, _: Watched(place / stage / (domain or "all"), ignore, writer)
        )

    def tuned(
        self,
        each: Each,
        name: str,
        *,
        n_tries: int,
        seed: Seed,
        target: str | None,
        on_try: Callable[[int, Try], None] = quiet,
    ) -> tuple[Try, ...]:
        """`tries` of the model `name`, trained by `each`; needs no data.

        Of what their trainings left here, that of the best is kept.
        """
        ended: list[Try] = []

        def on_end(number: int, tried: Try) -> None:
            ended.append(tried)
            lost = best_of(ended[:-1]) if best_of(ended) == number else number
            if lost is not None:
                # what cannot be removed costs room alone, until all goes in the end
                shutil.rmtree(self._place(lost, ended[lost].settings), ignore_errors=True)
            on_try(number, tried)

        space, stream_of = MODELS[name].space, stream(name, seed, target)
        return tries(each, space, n_tries=n_tries, seed=stream_of, on_try=on_end)

    def made(
        self, name: str, task: Task, found: Sequence[Try], kept: tuple[Try, Made] | None = None
    ) -> Tuned:
        """The best of the tries; unless it was `kept`, it is made again, bitwise the same.

        That goes on from what its trainings left.  Raises `RunError` with the first failure if all
        failed.
        """
        number = best_of(found)
        if number is None:
            raise RunError(found[0].failure)
        best = found[number]
        if kept and kept[0] is best:
            return Tuned(kept[1], best, tuple(found))
        return Tuned(self.trainer(name, task).fit(number, best.settings), best, tuple(found))

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, number: int, settings: Settings) -> Path:
        return self.folder / _name(number, settings)

    def _record(self, number: int, settings: Settings) -> Path:
        return self.folder / f"{_name(number, settings)}.json"


def attempt(folder: Path, name: str, task: Task, number: int, settings: Settings) -> Try:
    """One try of the model `name` that keeps its progress in the folder, as `Attempts` does."""
    attempts = Attempts(folder)
    return attempts.once(attempts.trainer(name, task))(number, settings)


def _name(number: int, settings: Mapping[str, Any]) -> str:
    """Another version of Optuna may propose something else as the same number."""
    text = json.dumps(settings, sort_keys=True)
    return f"try-{number}-{sha256(text.encode()).hexdigest()[:16]}"
