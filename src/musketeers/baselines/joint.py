"""What models that train all domains together take and give."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.evaluation.validation import Validation
from musketeers.ranking import Factors
from musketeers.training import History


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Domains that learned together, at the setting and epoch that validation chose."""

    factors: Mapping[str, Factors]
    """One model per domain."""
    regularization: float
    histories: tuple[History, ...]
    """One for each setting tried, in that order."""

    @property
    def history(self) -> History:
        """Of the setting that was chosen."""
        return max(self.histories, key=lambda history: history.best.valid)


def trains(
    splits: Mapping[str, Split], validations: Mapping[str, Validation]
) -> dict[str, Interactions]:
    """The one table of every domain that is learned from.

    Raises `DataError` where domains and validations do not match, or domains differ in users.
    """
    if not splits or set(splits) != set(validations):
        raise DataError(
            f"splits are of {list(splits)}, validations of {list(validations)}; "
            "give one of each for at least one domain"
        )
    found = {name: split.train for name, split in splits.items()}
    sizes = {name: train.n_users for name, train in found.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"domains have different numbers of users ({sizes}); a user needs the same row in all"
        )
    return found


def mean_ndcg(validations: Mapping[str, Validation], factors: Mapping[str, Factors]) -> float:
    """Validation NDCG@10, every domain counting the same however large it is."""
    return float(np.mean([validations[name].ndcg(factors[name]) for name in validations]))


def n_threads(validations: Mapping[str, Validation]) -> int:
    """The threads that all of them may use."""
    return max(validation.n_threads for validation in validations.values())
