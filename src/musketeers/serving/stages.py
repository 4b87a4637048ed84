"""What the stages of a served run made: needed to fold in what was done elsewhere, and to explain.

It is read after the model, with which a server can answer before.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from musketeers import run_files
from musketeers.recommender import Recommender
from musketeers.results import RunResult
from musketeers.sources import Explainer
from musketeers.told import Told, fault, latest_of


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """A run whose domains can be told more, or less, of a few users."""

    run: RunResult
    told: Mapping[str, Told]
    """Of the domains that can be told anew."""
    explainers: Mapping[str, Explainer]

    @classmethod
    def read(cls, place: Path, recommender: Recommender) -> "Stages":
        """Those beside the model `recommender` of the run in the folder `place`.

        Raises `ArtifactError` if any of it is damaged.
        """
