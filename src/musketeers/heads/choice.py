"""Which model a domain gets: its own best, or one told of the others if that is surely better."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from musketeers.training import Epoch, Job

LEVEL = 0.2
"""The risk of taking a told model where none is better than the domain's own best."""

MOST_WORK = 6_000_000_000_000
"""Cubes of the number of items that all inverses of a domain may take together: some minutes on
one processor.  Counted, not timed, so that the choice is the same on every machine."""

_START, _STEP, _LEAST, _MOST = 100.0, 3.0, 1.0, 10_000.0
"""Regularisation of the linear models: where the search starts, the factor between neighbours, and
the bounds beyond which it does not go."""

_SOURCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SHARES = (0.2, 0.4, 0.8, 1.6)
"""Weights of the second model of a blend, in units of `equal_weight`."""

_SPREAD_USERS, _RESAMPLINGS = 500, 1000
_MODELS = 5
"""Linear ones at the same time: of either kind the best and the best unblended, and the next."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the models that a domain could get."""

    kind: str
    """Its own ``smf``, ``ease``, ``ease+smf``; told ``cat_art``, ``linear``, ``linear+cat_art``."""
    name: str
    """With its settings: ``linear(100, 2) + 0.4 cat_art`` has regularisation 100, source weight 2,
    and .4 of the second model (`equal_weight`)."""
    valid: float
    """Validation NDCG@10."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation said of a domain's models."""

    own: Candidate
    """The best that is told nothing."""
    told: Candidate | None
    """The best that is told of other domains; None without any."""
    p: float
    """How likely the best told model looks so good by chance (`p_of_best`)."""

    @property
    def chosen(self) -> Candidate:
        """The told one where it is surely better, else the domain's own."""
        return self.told if self.told and self.transfers else self.own

    @property
    def transfers(self) -> bool:
        """Whether the domain is told of others."""
        return self.p < LEVEL

    @property
    def gain(self) -> float:
        """Of the best told model over the best own one, relative; NaN without either."""
        return self.told.valid / self.own.valid - 1 if self.told and self.own.valid else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The model of one domain, and what else there was to choose from."""

    scorer: Linear | Factors
    verdict: Verdict
    tried: Mapping[str, float]
    """Name -> validation NDCG@10 of every candidate."""


def choose(
    target: str,
    validation: Validation,
    shared: UserEmbeddings,
    *,
    alone: Factors,
    transferred: Factors | None,
    seed: Seed,
    job: Job,
    max_bytes: int,
) -> Chosen:
    """The best model of a domain by validation; its own, unless a told one is surely better.

    Its own are SMF (`alone`), EASE, and the two blended; told are CAT-ART (`transferred`), the
    linear head, and these two blended, each of which has one of its own as a special case.  The
    linear models are tried at a regularisation of 100 and at neighbours threefold apart, until the
    best of either kind has worse ones on both sides.  The best told model is taken where its gain
    over the best own one is more than the best of as many candidates gains by chance, at a risk of
    `LEVEL`.  A domain without others (`transferred` is None) gets the best of its own.

    Where linear models need more than `max_bytes`, or one inverse takes more than `MOST_WORK`, SMF
    and CAT-ART are all there is; the search ends before its inverses together take more.
    """
    own = _Field(validation, "smf", alone, "ease", (0.0,))
    told = (
        _Field(validation, "cat_art", transferred, "linear", _SOURCE_WEIGHTS)
        if transferred
        else None
    )
    fields = [field for field in (own, told) if field]
    train = validation.split.train
    width = (len(shared.domains) - 1) * alone.items.shape[1]
    needed = bytes_needed(train.n_users, train.n_items, width, n_models=_MODELS)
    most = MOST_WORK // train.n_items**3
    if needed <= max_bytes and most:

        def at(regularization: float) -> Callable[[float], Linear]:
            return linear_by_weight(
                target, train, shared, regularization=regularization, max_bytes=max_bytes
            )

        _search(at, fields, most, job)
        for field in fields:
            field.enter_blends()
    p = p_of_best(told.gains_over(own), seed) if told else 1.0
    verdict = Verdict(own.best, told.best if told else None, p)
    tried = {name: value for field in fields for name, value in field.means().items()}
    return Chosen((told if told and verdict.transfers else own).scorer, verdict, tried)


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
    """Candidates of one sort: what each gave each user; of models, only those that still count."""

    def __init__(
        self,
        validation: Validation,
        name: str,
        vectors: Factors,
        linear: str,
        weights: tuple[float, ...],
    ) -> None:
        self._validation, self._vectors, self._linear = validation, (name, vectors), linear
        self._weights = weights
        self._values = {name: validation.by_user(vectors)}
        self.best = Candidate(name, name, float(self._values[name].mean()))
        self.scorer: Linear | Factors = vectors
        self._best_linear: tuple[Candidate, Linear] | None = None

    def enter_linear(self, strength: float, by_weight: Callable[[float], Linear]) -> float:
        """The linear models at one regularisation; the mean of the best."""
        return max(
            self._enter(self._linear, _name(self._linear, strength, weight), by_weight(weight))
            for weight in self._weights
        )

    def enter_blends(self) -> None:
        """The best linear model with more and more of the model of vectors."""
        if self._best_linear is None:
            return
        (start, first), (name, second) = self._best_linear, self._vectors
        equal = equal_weight(first, second, self._validation.users[:_SPREAD_USERS])
        for share in _SHARES:
            made = blend(first, second, share * equal)
            self._enter(f"{self._linear}+{name}", f"{start.name} + {share:g} {name}", made)

    def means(self) -> dict[str, float]:
        """By name."""
        return {name: float(values.mean()) for name, values in self._values.items()}

    def gains_over(self, other: "_Field") -> Float64[np.ndarray, "candidate user"]:
        """Of each candidate over the best of the other field."""
        return np.stack(list(self._values.values())) - other._values[other.best.name]

    def _enter(self, kind: str, name: str, model: Linear) -> float:
        """Its mean; among equal candidates the first stays the best."""
        self._values[name] = self._validation.by_user(model)
        entered = Candidate(kind, name, float(self._values[name].mean()))
        if entered.valid > self.best.valid:
            self.best, self.scorer = entered, model
        if kind == self._linear and (
            self._best_linear is None or entered.valid > self._best_linear[0].valid
        ):
            self._best_linear = entered, model
        return entered.valid


def _name(kind: str, strength: float, weight: float) -> str:
    told = f", {weight:g}" if weight else ""
    return f"{kind}({strength:.3g}{told})"


def _search(
    at: Callable[[float], Callable[[float], Linear]], fields: Sequence[_Field], most: int, job: Job
) -> None:
    """Enter linear models at one regularisation after the other, at most so many.

    Whoever watches hears of each as of an epoch.
    """
    peaks: dict[float, list[float]] = {}
    waiting = [_START]
    while waiting and len(peaks) < most:
        strength, start = waiting.pop(), time.perf_counter()
        by_weight = at(strength)
        solved = time.perf_counter()
        peaks[strength] = [field.enter_linear(strength, by_weight) for field in fields]
        best = max(field.best.valid for field in fields)
        job.on_epoch(Epoch(len(peaks), None, best, solved - start, time.perf_counter() - solved))
        if not waiting:
            weakest, strongest = min(peaks), max(peaks)
            bests = {max(peaks, key=lambda one: peaks[one][kind]) for kind in range(len(fields))}
            # the first has one neighbour here, the stronger: the weaker comes if that is no better
            beyond = {weakest: weakest / _STEP, strongest: strongest * _STEP}
            waiting = [beyond[edge] for edge in beyond if edge in bests]
            waiting = [one for one in waiting if _LEAST <= one <= _MOST]
