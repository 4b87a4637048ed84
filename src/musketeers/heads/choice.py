"""Which model a domain gets: its own best, or one told of the others if that is surely better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from musketeers.baselines.linear import Linear
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.heads.blend import blend, equal_weight
from musketeers.heads.linear import bytes_needed, linear_by_weight
from musketeers.ranking import Factors
from musketeers.seeding import Seed

LEVEL = 0.2
"""The risk of taking a told model where none is better than the domain's own best."""

_START, _STEP, _LEAST, _MOST = 100.0, 3.0, 1.0, 10_000.0
"""Regularisation of the linear models: where the search starts, the factor between neighbours, and
the bounds beyond which it does not go."""

_SOURCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SHARES = (0.2, 0.4, 0.8, 1.6)
"""Weights of the second model of a blend, in units of `equal_weight`."""

_SPREAD_USERS, _RESAMPLINGS = 500, 1000
_MODELS = 5
"""Linear ones at the same time: of either kind the best and the best unblended, and the next."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The model of one domain, and what else there was to choose from."""

    name: str
    """Such as ``linear(100, 2) + 0.4 cat_art``: regularisation, source weight, share."""
    scorer: Linear | Factors
    transfers: bool
    """Whether it is told of other domains."""
    p: float
    """How likely the best told model looks so good by chance (`p_of_best`)."""
    tried: Mapping[str, float]
    """Validation NDCG@10 of every candidate."""


def choose(
    target: str,
    validation: Validation,
    shared: UserEmbeddings,
    *,
    alone: Factors,
    transferred: Factors,
    seed: Seed,
    max_bytes: int,
) -> Choice:
    """The best model of a domain by validation; its own, unless a told one is surely better.

    Its own are SMF (`alone`), EASE, and the two blended; told are CAT-ART (`transferred`), the
    linear head, and these two blended, each of which has one of its own as a special case.  The
    linear models are tried at a regularisation of 100 and at neighbours threefold apart, until the
    best of either kind has worse ones on both sides.  The best told model is taken where its gain
    over the best own one is more than the best of as many candidates gains by chance, at a risk of
    `LEVEL`.

    Where linear models need more than `max_bytes`, SMF and CAT-ART are all there is.
    """
    own = _Field(validation, "smf", alone)
    told = _Field(validation, "cat_art", transferred)
    train = validation.split.train
    width = (len(shared.domains) - 1) * alone.items.shape[1]
    if bytes_needed(train.n_items, width, n_models=_MODELS) <= max_bytes:

        def at(regularization: float) -> Callable[[float], Linear]:
            return linear_by_weight(
                target, train, shared, regularization=regularization, max_bytes=max_bytes
            )

        _search(at, own, told)
        own.enter_blends()
        told.enter_blends()
    gains = np.stack(list(told.values.values())) - own.values[own.best[0]]
    p = p_of_best(gains, seed)
    name, scorer = (told if p < LEVEL else own).best
    tried = {name: float(values.mean()) for name, values in (own.values | told.values).items()}
    return Choice(name, scorer, p < LEVEL, p, tried)


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


class _Field:
    """Candidates of one kind: what each gave each user; of models, only those that still count."""

    def __init__(self, validation: Validation, name: str, vectors: Factors) -> None:
        self._validation = validation
        self._vectors = name, vectors
        self._linear: tuple[str, Linear] | None = None
        self.values = {name: validation.by_user(vectors)}
        self.best: tuple[str, Linear | Factors] = self._vectors

    def enter(self, name: str, model: Linear) -> float:
        """Its mean; among equal candidates the first stays the best."""
        self.values[name] = self._validation.by_user(model)
        self.best = max(self.best, (name, model), key=self._mean)
        self._linear = max(self._linear or (name, model), (name, model), key=self._mean)
        return self._mean((name, model))

    def enter_blends(self) -> None:
        """The best linear model with more and more of the model of vectors."""
        if self._linear is None:
            return
        (start, first), (name, second) = self._linear, self._vectors
        equal = equal_weight(first, second, self._validation.users[:_SPREAD_USERS])
        for share in _SHARES:
            self.enter(f"{start} + {share:g} {name}", blend(first, second, share * equal))

    def _mean(self, candidate: tuple[str, Linear | Factors]) -> float:
        return float(self.values[candidate[0]].mean())


def _search(at: Callable[[float], Callable[[float], Linear]], own: _Field, told: _Field) -> None:
    """Enter EASE and the linear head at one regularisation after the other."""
    peaks: dict[float, tuple[float, float]] = {}
    waiting = [_START]
    while waiting:
        strength = waiting.pop()
        by_weight = at(strength)
        peaks[strength] = (
            own.enter(f"ease({strength:.3g})", by_weight(0.0)),
            max(
                told.enter(f"linear({strength:.3g}, {weight:g})", by_weight(weight))
                for weight in _SOURCE_WEIGHTS
            ),
        )
        if not waiting:
            weakest, strongest = min(peaks), max(peaks)
            bests = {max(peaks, key=lambda one: peaks[one][kind]) for kind in (0, 1)}
            # the first has one neighbour here, the stronger: the weaker comes if that is no better
            beyond = {weakest: weakest / _STEP, strongest: strongest * _STEP}
            waiting = [beyond[edge] for edge in beyond if edge in bests]
            waiting = [one for one in waiting if _LEAST <= one <= _MOST]
