"""Several domains over one user vocabulary, before and after the split."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from musketeers.data.interactions import Interactions
from musketeers.data.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """One domain as read: its items, its pairs, and when each pair was last seen."""

    items: Vocabulary
    pairs: Interactions
    times: Int64[np.ndarray, " pair"] | None = None
    """In the order of `pairs.items`; None if not configured.  Integers in the source's own
    unit, dates and float seconds in microseconds; the same in all domains."""


@dataclass(frozen=True, slots=True, eq=False)
class Domains:
    """All domains; a user has the same row number in every one, even where unknown."""

    users: Vocabulary
    domains: Mapping[str, Domain]


@dataclass(frozen=True, slots=True, eq=False)
class ColdUsers:
    """Users whom a domain must do without, though others know them; the tables are disjoint."""

    history: Interactions
    """What would have been train and valid."""
    test: Interactions


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One domain's pairs, apart by purpose; the tables are disjoint."""

    train: Interactions
    valid: Interactions
    test: Interactions
    cold: ColdUsers | None = None
    """Users who are in none of the three; None without such."""

    def seen(self) -> Interactions:
        """What a ranking for the test must skip: train and valid."""
        return self.train.union(self.valid)

    def moved(
        self,
        users: Int64[np.ndarray, " user"],
        items: Int64[np.ndarray, " item"],
        *,
        n_users: int,
        n_items: int,
    ) -> "Split":
        """Every table `Interactions.moved`."""

        def moved(table: Interactions) -> Interactions:
            return table.moved(users, items, n_users=n_users, n_items=n_items)

        cold = ColdUsers(moved(self.cold.history), moved(self.cold.test)) if self.cold else None
        return Split(moved(self.train), moved(self.valid), moved(self.test), cold)
