"""What a training is about, and what it may use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from musketeers.baselines.ease import MAX_BYTES
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.execution import InTurn, Jobs
from musketeers.pretrain.given import Given
from musketeers.pretrain.mf import Pretrained
from musketeers.seeding import Seed
from musketeers.training import Unwatched


def _unwatched(_stage: str, _domain: str | None, _max_epochs: int) -> Unwatched:
    return Unwatched()


unwatched = InTurn(_unwatched)
"""`Jobs` that keep nothing and tell nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one training gets."""

    splits: Mapping[str, Split]
    """The domains that it gets to see (`models.model.Model.sight`)."""
    validations: Mapping[str, Validation]
    config: RunConfig
    """With the seed of this job; settings that are not tuned stay as they are here."""
    alone: Mapping[str, Pretrained]
    """The tuned SMF of every domain, for models that start from it; else empty."""
    n_threads: int
    jobs: Jobs = unwatched
    max_bytes: int = MAX_BYTES
    """What a training may take, for models that refuse to take more."""
    target: str | None = None
    """The domain to train; None for all of `splits`."""
    given: Mapping[str, Given] = field(default_factory=dict[str, Given])
    """Vectors made elsewhere, of the domains that bring theirs."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The domains to train."""
        return tuple(self.splits) if self.target is None else (self.target,)

    @property
    def seed(self) -> Seed:
        """The root of all random streams of the job."""
        return Seed(self.config.seed)
