"""What a finished run found, as its report shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.data.overlap import OverlapReport
from musketeers.evaluation.compare import Cell, Difference, compare
from musketeers.evaluation.evaluate import PerUser
from musketeers.pipeline import Models
from musketeers.recommender import Recommender
from musketeers.training import History

Metrics = Mapping[str, Mapping[str, PerUser]]
"""Model name -> domain -> the metrics of every test user."""


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """How the models came to be."""

    regularization: Mapping[str, float]
    """Stage 1, by domain: the strength that validation chose."""
    histories: Mapping[str, Mapping[str, tuple[History, ...]]]
    """Stage (``pretrain``, ``cat``, ``art``) -> domain (``all`` for cat) -> its fits in order."""
    kept: Mapping[str, bool]
    """Stage 3, by domain: whether its transfer was kept; if not, it is the domain alone."""
    attention: Mapping[str, Mapping[str, float]]
    """Target -> source -> mean weight; empty where nothing was kept, or no source asked."""

    @classmethod
    def of(cls, models: Models) -> "Learning":
        """What the stages' results say of it."""
        histories: dict[str, Mapping[str, tuple[History, ...]]] = {}
        if models.alone:
            histories["pretrain"] = {name: made.history for name, made in models.alone.items()}
        if models.aligned:
            histories["cat"] = {"all": (models.aligned.history,)}
            art = models.transferred
            histories["art"] = {name: (made.history,) for name, made in art.items()}
        return cls(
            {name: made.regularization for name, made in models.alone.items()},
            histories,
            {name: made.kept for name, made in models.transferred.items()},
            {name: made.attention for name, made in models.transferred.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """A finished run, in a folder or in memory alone."""

    path: Path | None
    config: RunConfig
    manifest: Mapping[str, Any]
    """What the folder's `manifest.json` says; empty without a folder."""
    overlap: OverlapReport
    splits: Mapping[str, Split]
    metrics: Metrics
    learning: Learning
    recommender: Recommender

    def differences(self) -> dict[Cell, Difference]:
        """CAT-ART against each domain alone (SMF); empty if the run does not have both."""
        if not {"cat_art", "smf"} <= set(self.metrics):
            return {}
        return compare(self.metrics["cat_art"], self.metrics["smf"])
