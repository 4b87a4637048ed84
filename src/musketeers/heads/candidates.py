"""Models that a domain could get, side by side, and whether the best of them is surely better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Bool, Float64

from musketeers.baselines.linear import Linear
from musketeers.evaluation.validation import Validation
from musketeers.heads.blend import blend, equal_weight
from musketeers.ranking import Factors
from musketeers.seeding import Seed

LEVEL = 0.2
"""The risk of taking a told model where none is better than what there is without."""

_SHARES = (0.2, 0.4, 0.8, 1.6)
"""Weights of the second model of a blend, in units of `equal_weight`."""

_SPREAD_USERS, _RESAMPLINGS = 500, 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the models that a domain could get."""

    kind: str
    """Its own ``smf``, ``ease``, ``ease+smf``; told ``cat_art``, ``linear``, ``linear+cat_art``; of
    a large catalogue ``smf_ials`` and ``ials_head`` in place of ``ease`` and ``linear``."""
    name: str
    """With its settings: ``linear(100, 2) + 0.4 cat_art`` has regularisation 100, source weight 2,
    and .4 of the second model (`equal_weight`)."""
    valid: float
    """Validation NDCG@10."""
    weight: float | None = None
    """What the second model's scores are multiplied by; None for a model that is no blend."""
    source_weight: float = 0.0
    """What the others' embeddings are multiplied by in a head."""


class Candidates:
    """What each of some models gave each validation user; the best model of each kind is kept."""

    def __init__(self, validation: Validation) -> None:
        self._validation = validation
        self._values: dict[str, Float64[np.ndarray, " user"]] = {}
        self._kept: dict[str, tuple[Candidate, Linear | Factors]] = {}

    def enter(
        self,
        kind: str,
        name: str,
        model: Linear | Factors,
        *,
        weight: float | None = None,
        source_weight: float = 0.0,
    ) -> float:
        """Its mean; among equal models of a kind the first stays the best."""
        self._values[name] = self._validation.by_user(model)
        valid = float(self._values[name].mean())
        entered = Candidate(kind, name, valid, weight, source_weight)
        if kind not in self._kept or entered.valid > self._kept[kind][0].valid:
            self._kept[kind] = entered, model
        return entered.valid

    def enter_blends(self, first: str, second: str) -> None:
        """The best of one kind with more and more of the only one of another, which has vectors."""
        if first not in self._kept:
            return
        (start, one), (_, vectors) = self._kept[first], self._kept[second]
        other = cast(Factors, vectors)
        equal = equal_weight(one, other, self._validation.users[:_SPREAD_USERS])
        for share in _SHARES:
            weight, name = share * equal, f"{start.name} + {share:g} {second}"
            self.enter(
                f"{first}+{second}", name, blend(one, other, weight),
                weight=weight, source_weight=start.source_weight,
            )  # fmt: skip

    @property
    def best(self) -> Candidate:
        """The one with the largest mean, among equal ones the first kind."""
        return max((kept for kept, _ in self._kept.values()), key=lambda kept: kept.valid)

    @property
    def model(self) -> Linear | Factors:
        """The best one's."""
        return self._kept[self.best.kind][1]

    @property
    def values(self) -> Mapping[str, Float64[np.ndarray, " user"]]:
        """Name -> NDCG@10 of each validation user."""
        return self._values

    def p_over(
        self,
        reference: Float64[np.ndarray, " user"],
        seed: Seed,
        *,
        among: Bool[np.ndarray, " user"] | None = None,
    ) -> float:
        """`p_of_best` of the candidates' gains over what each user, or some of them, had."""
        gains = np.stack(list(self._values.values())) - reference
        return p_of_best(gains if among is None else gains[:, among], seed)


def p_of_best(gains: Float64[np.ndarray, "candidate user"], seed: Seed) -> float:
    """How likely the best of candidates without any true gain looks as good as the best of these.

    One-sided.  The statistic is the largest mean in units of its standard error; its distribution
    that of the multiplier bootstrap, which draws one normal number per user for all candidates and
    so keeps what they have in common (Chernozhukov, Chetverikov and Kato, Annals of Statistics
    2013).  Candidates that equal the reference for all users take no part; without others it is 1.
    """
    n_users = gains.shape[1]
    deviations = gains.std(axis=1)
    gains, deviations = gains[deviations > 0], deviations[deviations > 0, None]
    if not len(gains):
        return 1.0
    means = gains.mean(axis=1, keepdims=True)
    best = (means / deviations).max() * n_users
    noise, make, as_good = ((gains - means) / deviations).T, seed.numpy(), 0
    for _ in range(_RESAMPLINGS):
        as_good += int((make.standard_normal(n_users) @ noise).max() >= best)
    return (1 + as_good) / (1 + _RESAMPLINGS)
