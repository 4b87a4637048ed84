"""A gate inside a domain: users in groups, each of which may be told of others or not."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int64

from musketeers.baselines.linear import Linear
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.group import of_all
from musketeers.ranking import Factors

Model = Linear | Factors


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """Two models of a domain as one `Scorer`; each user is scored by one of them."""

    told: Model
    own: Model
    takes: Bool[np.ndarray, " user"]
    """Who is scored by `told`."""

    @property
    def n_items(self) -> int:
        """See `Scorer.n_items`."""
        return self.own.n_items

    def score(self, users: Int[np.ndarray, " batch"]) -> Float32[np.ndarray, "batch item"]:
        """See `Scorer.score`."""
        scores = np.empty((len(users), self.n_items), np.float32)
        for model, chosen in self._sides(users):
            scores[chosen] = model.score(users[chosen])
        return scores

    def exact(
        self, users: Int[np.ndarray, " batch"], items: Int[np.ndarray, "batch k"]
    ) -> Float64[np.ndarray, "batch k"]:
        """See `Scorer.exact`."""
        scores = np.empty(items.shape)
        for model, chosen in self._sides(users):
            scores[chosen] = model.exact(users[chosen], items[chosen])
        return scores

    def error(self, users: Int[np.ndarray, " batch"]) -> Float64[np.ndarray, " batch"]:
        """See `Scorer.error`."""
        bounds = np.empty(len(users))
        for model, chosen in self._sides(users):
            bounds[chosen] = model.error(users[chosen])
        return bounds

    def _sides(
        self, users: Int[np.ndarray, " batch"]
    ) -> Iterator[tuple[Model, Bool[np.ndarray, " batch"]]]:
        takes = self.takes[users]
        for model, chosen in ((self.told, takes), (self.own, ~takes)):
            if chosen.any():
                yield model, chosen


By = Literal["domain", "activity", "domains"]
"""What makes users a group: nothing, how much they did, or how many domains know them."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Users of a domain by group."""

    names: tuple[str, ...]
    of: Int64[np.ndarray, " user"]
    """Each user's place in `names`."""


def groups(by: By, validation: Validation, shared: UserEmbeddings) -> Groups:
    """All users, by thirds of the validation users' activity or by how many domains know them.

    Users with as much are in one group, so there can be fewer than three.
    """
    if by == "domain":
        return Groups(("all",), np.zeros(len(shared.known), np.int64))
    if by == "activity":
        counts, what = validation.split.train.counts(), "pairs"
        of_users = of_all(counts[validation.users])
        starts = np.quantile(of_users, (0, 1 / 3, 2 / 3), method="higher")
    else:
        counts, what = shared.known.sum(axis=1), "known domains"
        starts = of_all(counts[validation.users])
    starts = np.unique(starts)
    ranges = [(first, then - 1) for first, then in pairwise(starts.tolist())]
    names = [f"{one}" if one == last else f"{one}..{last}" for one, last in ranges]
    names.append(f"{starts[-1]} or more")
    of = np.searchsorted(starts[1:], counts, side="right")
    return Groups(tuple(f"{name} {what}" for name in names), of)
