r"""Which of a user's own items moved the list: the list with each of them left out in turn.

Nothing is trained anew.  In a linear model the item's input becomes 0, which is exact.  In a model
of vectors the user's changes as that of a stranger would who is folded in: with u the vector, H the
user's items in training and $f(S)$ that of a stranger who did S (`heads.fold_in`),

$$u_{-i} = u + \frac{\|u\|}{\|f(H)\|} \bigl(f(H \setminus \{i\}) - f(H)\bigr).$$

The factor is there because folding in holds a vector of few items back, where training did not.  Of
a vector that was folded in the formula is exact; of one that was trained it is an approximation, as
training without the item could have moved all vectors.  In a blend both models change.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import polars as pl
from jaxtyping import Float32, Int32, Int64
from scipy.sparse import csr_array, hstack

from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.heads.candidates import Candidate
from musketeers.heads.fold_in import Folding
from musketeers.heads.gate import Gated, Model
from musketeers.ranking import Factors, top_k
from musketeers.recommender import STRATEGIES
from musketeers.results import RunResult
from musketeers.sources import change, rows_of
from musketeers.told import PERSONALISED


@dataclass(frozen=True, slots=True, eq=False)
class OwnItems:
    """Which own items moved a user's list in one domain, whatever serves it; safe from threads.

    It holds the run's tables and no others, and computes for the asked users alone.
    """

    run: RunResult
    domain: str
    sides: tuple["_Side", ...]
    """The model that serves the domain; of a gate the told one and the domain's own."""
    counts: Int64[np.ndarray, " item"]
    """Of training: how many users have each item."""

    @classmethod
    def of(cls, run: RunResult, domain: str) -> "OwnItems":
        """For a run in a folder or in memory, the same.

        Raises `UnknownNameError` for an unknown domain, and `ConfigError` where the domain is
        served by a blend whose second model the run does not keep.
        """
        scorer = run.recommender.model(domain).scorer
        verdict = run.learning.verdicts.get(domain)
        if isinstance(scorer, Gated):
            models = (scorer.told, verdict and verdict.told), (scorer.own, verdict and verdict.own)
        else:
            models = ((scorer, verdict and verdict.chosen),)
        sides = tuple(_Side.of(run, domain, model, kind) for model, kind in models)
        return cls(run, domain, sides, run.splits[domain].train.item_counts())

    def explain(
        self, user_ids: object, k: int = 10, *, most: int = 50, n_threads: int | None = None
    ) -> pl.DataFrame:
        """What each own item does to the users' lists of `k`: a row for each user and item.

        Columns: `user_id` (type as fitted; each user once, as asked), `strategy` (as
        `Recommender.recommend` has it), `item_id`, `kept` (the share of the list that stays with
        the item left out), `leaves` and `enters` (lists of the items that then go and come, best
        first).  A user's items stand by `kept`, those that moved most first.

        An own item is one that the model learned from.  Of users with more than `most` these are
        the ones that the fewest users have, which tell most of a taste.  Own items enter no list.
        A user without any here has one row, whose item and all further are null.

        Raises `UnknownNameError` for an id that no domain knows, `DataError` for what is no
        column of ids, and `ConfigError` for a `most` below 1 and as `recommend` does.
        """
        if most < 1:
            raise ConfigError(f"most is {most}; leave out at least 1 item")
        served = self.run.recommender
        model, rows = served.model(self.domain), rows_of(user_ids, served.users)
        whole, strategies = served.ranked(self.domain, rows, k, n_threads=n_threads)
        found: list[dict[str, Any]] = []
        for n, row in enumerate(rows.tolist()):
            strategy = STRATEGIES[strategies[n]]
            user = {"user_id": served.users.values[row], "strategy": strategy}
            if strategy != PERSONALISED:
                found.append(user)
                continue
            items = self._own(row, most)
            lists = self._lists(row, items, k=whole.items.shape[1])
            changes = [change(model.items, whole.items[n], less) for less in lists]
            named = zip(model.items.ids(items).to_list(), changes, strict=True)
            its: list[dict[str, Any]] = [{**user, "item_id": item, **one} for item, one in named]
            # whoever has seen all has an empty list, of which nothing is kept or lost
            found += sorted(its, key=lambda one: one["kept"] or 0.0)
        kind = model.items.values.dtype
        schema = {
            "user_id": served.users.values.dtype, "strategy": pl.Enum(STRATEGIES),
            "item_id": kind, "kept": pl.Float64, "leaves": pl.List(kind), "enters": pl.List(kind),
        }  # fmt: skip
        return pl.DataFrame(found, schema=schema)

    def _own(self, row: int, most: int) -> Int32[np.ndarray, " item"]:
        """Those to leave out, ascending."""
        items = self.run.splits[self.domain].train.of(row)
        rarest = np.argsort(self.counts[items], kind="stable")[:most]
        return items[np.sort(rarest)]

    def _lists(
        self, row: int, items: Int32[np.ndarray, " item"], *, k: int
    ) -> Iterator[Int32[np.ndarray, " k"]]:
        """The user's list without each of the items."""
        model, side = self.run.recommender.model(self.domain), self.sides[0]
        if isinstance(model.scorer, Gated):
            side = self.sides[0 if model.scorer.takes[row] else 1]
        scorer = side.without_each(row, self.run.splits[self.domain].train.of(row), items)
        seen = model.seen.of_each(np.full(len(items), row))
        return iter(top_k(scorer, np.arange(len(items)), k=k, seen=seen, n_threads=1).items)


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """A model, and what a user's vector in it is solved for with."""

    model: Model
    folding: Folding | None
    """Of its vectors: all of it, or the second model of a blend; None where there are none."""
    weight: float
    """What these are multiplied by."""

    @classmethod
    def of(cls, run: RunResult, domain: str, model: Model, kind: Candidate | None) -> "_Side":
        here, vectors, weight = run.recommender.model(domain), None, 1.0
        if isinstance(model, Factors):
            vectors = model
        elif kind and kind.weight is not None:
            vectors, weight = _second(run, domain, kind), kind.weight
        folding = Folding.of(vectors, seen=here.seen, known=here.known) if vectors else None
        return cls(model, folding, weight)

    def without_each(
        self, row: int, history: Int32[np.ndarray, " own"], items: Int32[np.ndarray, " item"]
    ) -> Model:
        """The model of as many users as `items`: the one at `row`, less one of them each."""
        moved = self._moved(row, history, items) if self.folding else None
        if isinstance(self.model, Factors):
            return replace(self.model, users=self.model.users[row] + cast(np.ndarray, moved))
        inputs = csr_array(self.model.inputs[np.full(len(items), row)])
        inputs.data[inputs.indices == np.repeat(items, np.diff(inputs.indptr))] = 0
        if moved is not None:
            dim = moved.shape[1]
            vectors = inputs[:, -dim:].toarray() + np.float32(self.weight) * moved
            inputs = csr_array(hstack([inputs[:, :-dim], csr_array(vectors)]))
        return replace(self.model, inputs=inputs)

    def _moved(
        self, row: int, history: Int32[np.ndarray, " own"], items: Int32[np.ndarray, " item"]
    ) -> Float32[np.ndarray, "item dim"]:
        """By how much the user's vector moves without each item."""
        folding = cast(Folding, self.folding)
        learned = cast(Factors, folding.model).users[row]
        users, given = np.divmod(np.arange((len(items) + 1) * len(history)), len(history))
        given = history[given]
        # the first of them did all
        kept = np.append(-1, items)[users] != given
        pairs = Interactions.from_pairs(
            users[kept], given[kept], n_users=len(items) + 1, n_items=folding.model.n_items
        )
        folded = cast(Factors, folding.told(np.full(len(items) + 1, -1), pairs)).users
        long, short = np.linalg.norm(learned), np.linalg.norm(folded[0])
        return np.float32(long / short if short else 1.0) * (folded[1:] - folded[0])


def _second(run: RunResult, domain: str, kind: Candidate) -> Factors:
    """The model of vectors in a blend."""
    name = kind.kind.split("+")[-1]
    made = run.stages.transferred if name == "cat_art" else run.stages.alone
    if domain not in made or run.recommender.about["model"][domain] == "chosen":
        raise ConfigError(
            f"{domain} is served by {kind.kind}, whose stages are not kept; fit without --only"
        )
    return made[domain].factors
