"""How far a domain's data have moved away from those of the last full fit."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from musketeers.data.vocabulary import Vocabulary

MOST_NEW_ITEMS = 0.2
"""Items that came later are in no pair that was held out then: beyond a fifth, what is measured and
chosen by says little of the catalogue."""

MOST_NEW_USERS = 0.2
"""Of users who came later no other domain's vectors know anything, whatever those domains have seen
of them by now: beyond a fifth, much of what could be transferred is left lying."""

MOST_WITHOUT_HISTORY = 0.3
"""Users without a training pair then are not among those whose lists are compared with before:
beyond three in ten, the comparison is of too few."""

MOST_MOVED = 0.1
"""Beyond what chance moves: a tenth of all interactions, one in a list of ten, is elsewhere."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a domain was when all domains were last fitted together, or when it was added."""

    items: Vocabulary
    popularity: Int64[np.ndarray, " item"]
    """Users of each item."""
    users: Vocabulary
    """Of all domains."""
    trained: Bool[np.ndarray, " user"]
    """Whether this domain had training pairs of the user."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A domain's data now against its `Reference`; shares in 0..1."""

    items: float
    """Of its items, those that were not there."""
    users: float
    """Of its users, those whom no domain knew."""
    without_history: float
    """Of its users, those of whom it had no training pair; `users` included."""
    moved: float
    """Total variation distance between then and now of the items' shares of all interactions: how
    much of them went to other items."""
    chance: float
    """About how far two independent samples of one popularity, as large as these, lie apart.  Data
    that hold the old ones lie closer, so what exceeds it is no chance."""

    def summary(self) -> str:
        """The numbers in one line."""
        return "; ".join(said for said, _ in self._findings())

    def alarms(self) -> list[str]:
        """Those that passed their thresholds, with these; empty if a full fit can wait."""
        return [said for said, passed in self._findings() if passed]

    def _findings(self) -> list[tuple[str, bool]]:
        shares = (
            (self.items, MOST_NEW_ITEMS, "of its items are new"),
            (self.users, MOST_NEW_USERS, "of its users are new"),
            (self.without_history, MOST_WITHOUT_HISTORY, "of its users had no history there"),
        )
        most = self.chance + MOST_MOVED
        return [
            *(
                (f"{x:.0%} {what} (full fit above {most:.0%})", x > most)
                for x, most, what in shares
            ),
            (
                f"{self.moved:.0%} of its interactions moved to other items "
                f"(full fit above {most:.0%}, of which {self.chance:.0%} may be chance)",
                self.moved > most,
            ),
        ]


def drift(
    reference: Reference,
    items: Vocabulary,
    popularity: Int64[np.ndarray, " item"],
    user_ids: pl.Series,
) -> Drift:
    r"""The drift of a domain that now has these items, with so many users each, and these users.

    With n and m interactions then and now, and $p_i$ the share of item i in both together, two
    samples of one popularity have an expected distance of about
    $\sum_i \sqrt{p_i (1/n + 1/m) / 2\pi}$ (half the mean size of a normal difference, summed).
    """
    rows = reference.users.rows(user_ids)
    trained = reference.trained[rows] & (rows >= 0)
    place = items.rows(reference.items.values)
    then = np.zeros(len(items), np.int64)
    then[place[place >= 0]] = reference.popularity[place >= 0]
    gone = reference.popularity[place < 0]
    n, m = int(reference.popularity.sum()), int(popularity.sum())
    moved = np.abs(then / n - popularity / m).sum() + gone.sum() / n
    together = np.concatenate([then + popularity, gone]) / (n + m)
    chance = np.sqrt(together * (1 / n + 1 / m) / (2 * np.pi)).sum()
    return Drift(
        items=float((reference.items.rows(items.values) < 0).mean()),
        users=float((rows < 0).mean()),
        without_history=float((~trained).mean()),
        moved=float(moved / 2),
        chance=float(min(chance, 1)),
    )
