"""What early stopping looks at: NDCG@10 of validation items over a fixed sample of users."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from musketeers.data.domains import Split
from musketeers.errors import DataError
from musketeers.evaluation.evaluate import validation_ndcg
from musketeers.group import of_all, own, total
from musketeers.protocols import Scorer
from musketeers.seeding import Seed

MOST_USERS = 10_000
"""Users looked at after each epoch; their mean then has a standard error near 0.003."""


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """One domain's validation, the same users at every epoch and in every stage."""

    split: Split
    users: Int64[np.ndarray, " user"]
    n_threads: int

    @classmethod
    def of(cls, split: Split, seed: Seed, *, n_threads: int) -> "Validation":
        """At most `MOST_USERS` users with both training and validation items.

        Of several members each looks at its share.  Raises `DataError` if there is none.
        """
        users = np.flatnonzero(split.train.known_users() & split.valid.known_users())
        n_users = int(total(len(users)))
        if not n_users:
            raise DataError(
                "no user has both a training and a validation item, so nothing can tell when to "
                "stop; raise split.valid, or keep only users with more items (data.min_user)"
            )
        if n_users > MOST_USERS:
            n = MOST_USERS * len(users) // n_users
            users = np.sort(own(seed).numpy().choice(users, n, replace=False))
        return cls(split, users, n_threads)

    def ndcg(self, scorer: Scorer) -> float:
        """Mean NDCG@10 with the training items skipped, in 0..1."""
        return float(self.by_user(scorer).mean())

    def is_better(self, scorer: Scorer, other: Scorer) -> bool:
        """Whether the mean gain over `other` exceeds one standard error of itself.

        The rule of one standard error (Breiman et al., Classification and Regression Trees, 1984,
        section 3.4.3): of two models that validation cannot tell apart, take the simpler.
        """
        gains = self.by_user(scorer) - self.by_user(other)
        return float(gains.mean()) > float(gains.std()) / math.sqrt(len(gains))

    def by_user(self, scorer: Scorer) -> Float64[np.ndarray, " counted"]:
        """NDCG@10 of each user, in 0..1, the users in the same order for every scorer.

        Of all members' users, one member's after the other's.
        """
        values = np.empty(0)
        if len(self.users):
            values = validation_ndcg(
                scorer, self.split.valid, self.split.train,
                users=self.users, n_threads=self.n_threads,
            )  # fmt: skip
        return of_all(values)
