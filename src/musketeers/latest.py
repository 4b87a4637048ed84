"""What the domains tell each other of a few users, what these have done since included."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, Int64

from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings, lengths_of
from musketeers.heads.fold_in import Folding, unseen
from musketeers.ranking import Factors
from musketeers.results import RunResult

_TYPICAL = 200
"""Known users, spread evenly over all, whose vectors tell how long one is."""


@dataclass(frozen=True, slots=True, eq=False)
class Latest:
    """What is exchanged in a run, of whichever users are asked for; safe to use from threads.

    It holds the run's tables and no others, so one serves all domains of the run.
    """

    domains: tuple[str, ...]
    tables: Mapping[str, Float32[np.ndarray, "user dim"]]
    """Of the domains that are here, stage 1."""
    known: Mapping[str, Bool[np.ndarray, " user"]]
    """Whom they know."""
    lengths: Float32[np.ndarray, " domain"]
    given: UserEmbeddings | None
    """What the domains told each other, where some of them are not here."""
    foldings: Mapping[str, Folding]
    """Of the domains that are here: their models of stage 1."""
    stretches: Mapping[str, float]
    """How many times as long vectors are that were learned than those folded in from as much.

    Folding in holds a vector of few pairs back; to a list of the domain's own that is all the same,
    but who is told of the vector takes a short one for a weak taste.
    """

    @classmethod
    def of(cls, run: RunResult) -> "Latest":
        """In one pass over the users of each domain.

        Raises `ConfigError` for a run that does not keep what its domains learned alone.
        """
        alone, given = run.stages.alone, run.stages.shared
        if missing := sorted(run.recommender.domains.keys() - alone.keys()):
            raise ConfigError(
                f"the run keeps no stage 1 of {missing[0]}, so nothing can be told of what its "
                "users did; fit without --only, or with --only cat_art, linear or ials_head"
            )
        served = run.recommender.domains
        tables = {name: alone[name].factors.users for name in served}
        known = {name: served[name].known for name in served}
        foldings = {
            name: Folding.of(alone[name].factors, seen=model.seen, known=model.known)
            for name, model in served.items()
        }
        lengths = given.lengths if given else lengths_of(tables, known)
        domains = given.domains if given else tuple(served)
        stretches = {
            name: _stretch(folding, run.splits[name].train) for name, folding in foldings.items()
        }
        return cls(domains, tables, known, lengths, given, foldings, stretches)

    def told(self, rows: Int64[np.ndarray, " asked"]) -> UserEmbeddings:
        """What is exchanged of the users at `rows`, in this order, bit by bit as in training.

        Row -1 is a user whom no domain knows.
        """
        if self.given:
            found = self.given.of(rows.clip(0))
            there = (rows >= 0)[:, None]
            values = np.where(there[..., None], found.values, np.float32(0))
            return replace(found, values=values, known=found.known & there)
        known = {name: self.known[name][rows] & (rows >= 0) for name in self.domains}
        tables = {name: self.tables[name][rows] for name in self.domains}
        return UserEmbeddings.stacked(tables, known, self.lengths)

    def since(
        self, rows: Int64[np.ndarray, " asked"], recent: Mapping[str, Interactions]
    ) -> UserEmbeddings:
        """The same, had these users also done what is `recent`: source -> a row for each of them.

        A source's vector of a user who did anything there that it does not know is solved for
        against the source's items of stage 1, as they are (`Folding`), and the source knows that
        user then.  Of one whom it did not know it is stretched to the length of those it did.
        All else stays.  The sources are domains that are here.
        """
        found = self.told(rows)
        values, known = found.values.copy(), found.known.copy()
        for source, pairs in recent.items():
            place, folding = found.index(source), self.foldings[source]
            new = unseen(folding.seen, rows, pairs)
            some = np.flatnonzero(new.known_users())
            before = np.where(known[some, place], rows[some], -1)
            vectors = cast(Factors, folding.told(before, new.of_each(some))).users
            vectors[before < 0] *= np.float32(self.stretches[source])
            values[some, place] = vectors / self.lengths[place]
            known[some, place] = True
        return UserEmbeddings(found.domains, values, known, found.lengths)


def _stretch(folding: Folding, train: Interactions) -> float:
    users = np.flatnonzero(train.known_users())
    users = users[:: max(1, len(users) // _TYPICAL)]
    learned = cast(Factors, folding.model).users[users]
    folded = cast(Factors, folding.told(np.full(len(users), -1), train.of_each(users))).users
    long, short = (np.linalg.norm(table, axis=1).sum() for table in (learned, folded))
    return float(long / short) if short else 1.0
