"""What a tuning has until it is done: how its tries went, and how far the running ones are."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

from musketeers import artifacts
from musketeers.execution import InTurn, Jobs, Watched
from musketeers.models.model import Made, Model, Settings
from musketeers.models.tuning import Train, Trainer, Try, best_of, measured
from musketeers.task import Task
from musketeers.training import ignore


@dataclass(frozen=True, slots=True)
class Attempts:
    """The tries of one model in a folder, each under its number and what it was to try.

    Whoever begins a try again, in this process or on another machine, goes on from its last epoch
    and ends with the same; one that has ended is not trained again.
    """

    folder: Path

    def trainer(self, model: Model, task: Task) -> Trainer[Made]:
        """Trains the model's tries, each of which keeps its progress here."""

        def fit(number: int, settings: Settings) -> Made:
            return model.fit(replace(task, jobs=self.jobs(number, settings)), settings)

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

    def tidy(self, found: Sequence[Try]) -> None:
        """Remove the progress of whichever try lost now that the last of these has ended.

        How it went is remembered.
        """
        last = len(found) - 1
        lost = best_of(found[:-1]) if best_of(found) == last else last
        if lost is not None:
            # what cannot be removed costs room alone, until all goes in the end
            shutil.rmtree(self._place(lost, found[lost].settings), ignore_errors=True)

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, number: int, settings: Settings) -> Path:
        return self.folder / _name(number, settings)

    def _record(self, number: int, settings: Settings) -> Path:
        return self.folder / f"{_name(number, settings)}.json"


def _name(number: int, settings: Mapping[str, Any]) -> str:
    """Another version of Optuna may propose something else as the same number."""
    text = json.dumps(settings, sort_keys=True)
    return f"try-{number}-{sha256(text.encode()).hexdigest()[:16]}"
