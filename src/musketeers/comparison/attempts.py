"""What a job has until it is done: how its tries went, and how far the running ones are."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

from musketeers import artifacts
from musketeers.execution import InTurn, Jobs, Watched
from musketeers.models.model import Settings
from musketeers.models.tuning import Train, Try
from musketeers.training import ignore


@dataclass(frozen=True, slots=True)
class Attempts:
    """The tries of one job in a folder, each under its number and what it was to try.

    Whoever begins a try again, in this process or on another machine, goes on from its last epoch
    and ends with the same; one that has ended is not trained again.
    """

    folder: Path

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

    def forget(self, number: int, settings: Settings) -> None:
        """Remove the progress of a try that lost; how it went is remembered."""
        # what cannot be removed costs room alone, until all goes when the comparison is finished
        shutil.rmtree(self._place(number, settings), ignore_errors=True)

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
