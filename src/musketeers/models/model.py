"""What is asked of a model, and what it gives back."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from musketeers.heads.choice import Chosen, Verdict
from musketeers.models.needs import FACTORS, Needs
from musketeers.models.space import Choice, Range, Space
from musketeers.pretrain.mf import Pretrained
from musketeers.protocols import Scorer
from musketeers.ranking import Factors
from musketeers.scorers import Trained
from musketeers.task import Task
from musketeers.training import History

Sees = Literal["own data", "user embeddings", "all raw data"]
Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What one training made of one domain."""

    scorer: Trained
    history: tuple[History, ...] = ()
    """One for each setting tried; of domains that learn together the same, by their mean."""
    start: Pretrained | None = None
    """What other models start from."""
    verdict: Verdict | None = None
    """Of a model that was chosen: by what."""
    transfers: bool = False
    """Whether a user whom the domain does not know is scored by what others know."""
    cold: Factors | None = None
    """What scores such a user in the scorer's place."""
    attention: Mapping[str, float] = field(default_factory=dict[str, float])
    """Source -> mean weight, see `Transferred.attention`."""
    without: Mapping[str, Callable[[], Scorer]] = field(
        default_factory=dict[str, Callable[[], Scorer]]
    )
    """Source -> the same trained model with that source hidden from it."""

    @classmethod
    def of(cls, made: Chosen) -> "Fitted":
        """What was chosen, as any other model."""
        return cls(made.scorer, verdict=made.verdict, cold=made.cold)


Made = Mapping[str, Fitted]
"""By domain."""


def valid_ndcg(made: Made, task: Task) -> dict[str, float]:
    """Validation NDCG@10 of each domain."""
    return {name: task.validations[name].ndcg(one.scorer) for name, one in made.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One row of the comparison."""

    sees: Sees
    """What of the domains it learns from: one alone, user embeddings of all, or everything."""
    fit: Callable[[Task, Settings], Made]
    space: Space = field(default_factory=dict[str, Range | Choice])
    """What is tuned: dotted names are settings of the run, others of the model."""
    joint: bool = False
    """Whether all domains are trained together; they are then tuned on their mean.  Else each is a
    training of its own, whatever it sees of the others."""
    starts_from_smf: bool = False
    control: bool = False
    """Whether it is there to explain others' gains, and never the best of its kind."""
    needs: Needs = FACTORS

    def sight(self, domains: Iterable[str], target: str | None) -> list[str]:
        """Which of the domains a training of the target gets to see; None trains them all."""
        alone = target is not None and self.sees == "own data"
        return [name for name in domains if not alone or name == target]
