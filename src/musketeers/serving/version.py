"""One version of the model, as it is served: read, checked, made ready, and never changed."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from musketeers.data.pseudonyms import Secret
from musketeers.errors import ArtifactError
from musketeers.heads.fold_in import Folding
from musketeers.heads.gate import Gated
from musketeers.ranking import Factors
from musketeers.recommender import Recommender, version_of
from musketeers.run_folder import RunFolder
from musketeers.serving.ids import Id, Ids

if TYPE_CHECKING:
    from musketeers.serving.stages import Stages  # brings torch


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A run's model, and what answers need of it worked out once."""

    name: str
    """See `recommender.version_of`."""
    place: Path
    """The folder that it was read from, which may be gone by now."""
    loaded_at: datetime
    recommender: Recommender
    users: Ids
    items: Mapping[str, Ids]
    foldings: Mapping[str, Folding]
    n_known: Mapping[str, int]
    """Users with a history in each domain."""
    cosines: Mapping[str, Factors]
    """The items' vectors at length 1, of the domains that are served by vectors."""
    stages: "Future[Stages] | None"
    """What the run's stages made, once it is there; None where nobody asked for it."""

    @classmethod
    def load(
        cls,
        place: Path,
        secret: Secret | None,
        later: Callable[[Path, Recommender], "Future[Stages] | None"],
    ) -> "Version":
        """The version in the folder of a finished run, or of a saved recommender.

        `later` begins to read the stages of a run.  Raises `RunError` or `ArtifactError` for a
        folder that is neither, or damaged, or changed while it was read.
        """
        place = place.resolve()
        folder = model_folder(place)
        if is_run := folder != place:
            RunFolder.open(place)
        name = version_of(folder)
        recommender = Recommender.load(folder).made_ready()
        if version_of(folder) != name:
            raise ArtifactError(
                f"{place}: changed while it was read; write each version to a folder of its own"
            )
        return cls(
            name,
            place,
            datetime.now(UTC),
            recommender,
            Ids.of(recommender.users, secret),
            {name: Ids.of(model.items) for name, model in recommender.domains.items()},
            {
                name: Folding.of(model.scorer, seen=model.seen, known=model.known)
                for name, model in recommender.domains.items()
            },
            {name: int(model.known.sum()) for name, model in recommender.domains.items()},
            _cosines(recommender),
            later(place, recommender) if is_run else None,
        )

    @property
    def run(self) -> str:
        """The name of the run's folder."""
        return self.place.name

    def history(self, row: int, domains: Iterable[str]) -> dict[str, list[Id]]:
        """What these domains know that the user in that row has, by domain."""
        seen = {name: self.recommender.domains[name].seen.of(row) for name in domains}
        return {name: self.items[name].ids(rows) for name, rows in seen.items()}

    def report(self) -> bytes | None:
        """The page that the fit wrote, if it is there."""
        try:
            return (self.place / "report.html").read_bytes()
        except OSError:
            return None

    def stages_now(self) -> "Stages | None":
        """What the stages made; None while it is being read, and where it cannot be had."""
        there = self.stages and self.stages.done() and not self.stages.cancelled()
        return (
            self.stages.result() if self.stages and there and not self.stages.exception() else None
        )

    def check_replaces(self, old: "Version") -> None:
        """Raise `ArtifactError` if callers of the `old` one would get errors from this one."""
        if gone := sorted(old.items.keys() - self.items.keys()):
            raise ArtifactError(
                f"{self.run}: has no domain {gone[0]!r}, which is being served; fit it with all "
                "domains, or start the server anew with this run"
            )
        kinds = {"users": (old.users, self.users)}
        kinds |= {f"items of {name}": (old.items[name], self.items[name]) for name in old.items}
        for what, (was, now) in kinds.items():
            if was.kind != now.kind:
                raise ArtifactError(
                    f"{self.run}: {what} have ids of {now.kind}, {was.kind} are being served; fit "
                    "it from data with the same type of ids, or start the server anew with it"
                )


def model_folder(place: Path) -> Path:
    """Where the model is in the folder of a run, or of a saved recommender."""
    return place / "model" if (place / "model").is_dir() else place


def _cosines(recommender: Recommender) -> dict[str, Factors]:
    found: dict[str, Factors] = {}
    for name, model in recommender.domains.items():
        scorer = model.scorer.told if isinstance(model.scorer, Gated) else model.scorer
        if isinstance(scorer, Factors):
            lengths = np.linalg.norm(scorer.items, axis=1, keepdims=True)
            unit = np.divide(
                scorer.items, lengths, where=lengths > 0, out=np.zeros_like(scorer.items)
            )
            found[name] = Factors(unit, unit).made_ready()
    return found
