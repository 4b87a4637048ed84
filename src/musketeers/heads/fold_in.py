r"""A trained model told more of its users: nothing is trained, and nothing in the model changes.

A linear model takes the new pairs as inputs.  In a model of vectors the items stay, and the user's
vector is solved for.  With H the user's new items, n the number of pairs that the model knows of
the user, $u_0$ the vector so far (0 of a stranger), N items with mean $\bar v$ and covariance C, it
is the u that minimises

$$\sum_{i \in H} \frac{1}{N} \sum_{j=1}^N (m - u (v_i - v_j))^2
  + (u - u_0)^\top (2 n C + \lambda I) (u - u_0).$$

A new item is to stand above the others by the margin m, as in BPR, but with squares (as RankALS has
it; Takács and Tikk, RecSys 2012); n pairs that were learned from hold $u_0$ as n new ones would
pull at it.  m is the mean margin of what known users have; to a stranger's list it is all the same.
$\lambda$ is `HOLD` times the mean of the diagonal of C.  With $d_i = v_i - \bar v$,

$$u = \Bigl(\sum_H d_i d_i^\top + (|H| + 2n) C + \lambda I\Bigr)^{-1}
      \Bigl(m \sum_H d_i + (2 n C + \lambda I) u_0\Bigr).$$
"""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.linalg import solve
from scipy.sparse import csr_array

from musketeers.baselines.linear import Linear
from musketeers.data.interactions import Interactions
from musketeers.heads.blend import with_history
from musketeers.heads.gate import Gated, Model
from musketeers.ranking import Factors

HOLD = 30
"""How many pairs' worth holds every vector back.  On planted data strangers told of their training
pairs are served as well as by vectors learned from these; at a tenth of it worse, and at tenfold
those whom only other domains know no longer follow their history."""

_TYPICAL = 1000
"""Known users, spread evenly over all, who stand for all."""


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """A model, prepared to be told more of a few users at a time; safe to use from threads.

    It holds no table beside the model's.
    """

    model: Model | Gated
    seen: Interactions
    """What the model knows of all its users."""
    pulls: tuple["_Pull | None", ...]
    """Of the model, or of those on the sides of a gate; a linear one needs none."""

    @classmethod
    def of(
        cls, model: Model | Gated, *, seen: Interactions, known: Bool[np.ndarray, " user"]
    ) -> "Folding":
        """In one pass over the items; `known` are the users whom the model learned from."""
        pulls = (
            _Pull.of(side, seen, known) if isinstance(side, Factors) else None
            for side in _sides(model)
        )
        return cls(model, seen, tuple(pulls))

    def told(
        self,
        rows: Int64[np.ndarray, " asked"],
        pairs: Interactions,
        start: Model | Gated | None = None,
    ) -> Model | Gated:
        """The model of the users at `rows`, in this order, who have also done `pairs`.

        Row -1 is a user whom the model does not know.  `pairs` has a row for each of the asked,
        none of which is in `seen`.  `start` is the model of the asked users, one row each, who are
        told of the pairs, where it is no longer what the tables have of them; else `of_rows`.

        Who has no pairs keeps the start's vector, bit by bit.  Where the known users are all
        alike, as in popularity, so are the asked.
        """
        start = start or of_rows(self.model, rows)
        counts = self.seen.of_each(rows).counts()
        sides = [
            pull.told(cast(Factors, side), pairs, counts)
            if pull
            else with_history(cast(Linear, side), pairs)
            for side, pull in zip(_sides(start), self.pulls, strict=True)
        ]
        return Gated(sides[0], sides[1], start.takes) if isinstance(start, Gated) else sides[0]


def of_rows(model: Model | Gated, rows: Int64[np.ndarray, " asked"]) -> Model | Gated:
    """The same model of the users at `rows` alone, in this order; items are not copied.

    Of row -1, a user whom the model does not know, it is told nothing: no inputs, or a vector of 0.
    Behind a gate such a user is served by the domain's own model.
    """
    if isinstance(model, Gated):
        told, own = (cast(Model, of_rows(side, rows)) for side in _sides(model))
        return Gated(told, own, model.takes[rows] & (rows >= 0))
    there = (rows >= 0).astype(np.float32)
    if isinstance(model, Linear):
        inputs = csr_array(model.inputs[rows.clip(0)])
        inputs.data *= np.repeat(there, np.diff(inputs.indptr))
        return replace(model, inputs=inputs)
    users = model.users[rows.clip(0)]
    users[rows < 0] = 0
    return replace(model, users=users)


def unseen(
    seen: Interactions, rows: Int64[np.ndarray, " asked"], pairs: Interactions
) -> Interactions:
    """The pairs of the users at `rows` that are not among those `seen` already."""
    return pairs.only(~pairs.held_by(seen.of_each(rows)))


@dataclass(frozen=True, slots=True, eq=False)
class _Pull:
    """What the vectors of a model's users are solved for with."""

    mean: Float64[np.ndarray, " dim"]
    """Of the items."""
    covariance: Float64[np.ndarray, "dim dim"]
    hold: Float64[np.ndarray, "dim dim"]
    margin: float
    """By how much what known users have stands above the mean item."""
    same: Float32[np.ndarray, " dim"] | None
    """The vector of all known users, if they are alike."""

    @classmethod
    def of(cls, model: Factors, seen: Interactions, known: Bool[np.ndarray, " user"]) -> "_Pull":
        typical = np.flatnonzero(known)
        typical = typical[:: max(1, len(typical) // _TYPICAL)]
        first = (
            model.users[typical[0]] if len(typical) else np.zeros(model.items.shape[1], np.float32)
        )
        same = first if (model.users[typical] == first).all() else None
        apart = model.items.astype(np.float64)
        mean = apart.mean(axis=0)
        apart -= mean
        covariance = apart.T @ apart / len(apart)
        dim = len(covariance)
        hold = (HOLD * np.trace(covariance) / dim or 1.0) * np.eye(dim)
        margins = [(apart[seen.of(u)] @ model.users[u]).mean() for u in typical.tolist()]
        return cls(mean, covariance, hold, float(np.mean(margins or [0.0])), same)

    def told(
        self, start: Factors, pairs: Interactions, counts: Int64[np.ndarray, " asked"]
    ) -> Factors:
        """The users of `start`, of whom the model knows so many pairs, with these too."""
        if self.same is not None:
            return replace(start, users=np.tile(self.same, (len(counts), 1)))
        users = start.users.copy()
        for place in np.flatnonzero(pairs.known_users()).tolist():
            new = start.items[pairs.of(place)].astype(np.float64) - self.mean
            prior = self.hold + 2 * counts[place] * self.covariance
            left = new.T @ new + len(new) * self.covariance + prior
            right = self.margin * new.sum(axis=0) + prior @ start.users[place]
            users[place] = solve(left, right, assume_a="pos")
        return replace(start, users=users)


def _sides(model: Model | Gated) -> tuple[Model, ...]:
    return (model.told, model.own) if isinstance(model, Gated) else (model,)
