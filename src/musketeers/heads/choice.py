"""Which model a domain gets: its own best, or one told of the others if that is surely better."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from threadpoolctl import threadpool_limits

from musketeers.baselines.linear import Linear
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.heads.candidates import LEVEL, Candidate, Candidates
from musketeers.heads.cold import choose_cold
from musketeers.heads.ials import IalsHeadSettings, ials_by_setting
from musketeers.heads.ials import bytes_needed as ials_bytes
from musketeers.heads.ials import work as ials_work
from musketeers.heads.linear import bytes_needed as linear_bytes
from musketeers.heads.linear import linear_by_weight
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import Epoch, Job

MOST_WORK = 6_000_000_000_000
"""Multiplications of the search in a domain: of linear models the cube of the items for each
inverse, of the iALS head `heads.ials.work`; some minutes on one processor.  Counted, not timed, so
that the choice is the same on every machine."""

_STEP = 3.0
"""Between neighbouring regularisations."""

_SOURCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
_MODELS = 5
"""Linear ones at the same time: the best and the best unblended, own and told, and the next."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation said of a domain's models."""

    own: Candidate
    """The best that is told nothing."""
    told: Candidate | None
    """The best that is told of other domains; None without any."""
    p: float
    """How likely the best told model looks so good by chance (`p_of_best`)."""
    cold: Candidate | None = None
    """What scores users without a history here whom other domains know, the best on validation with
    histories hidden; None where nothing is surely better than what is popular."""
    popular: float | None = None
    """Validation NDCG@10 of popularity for the same users; None where there are no such users."""

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
    """The models of one domain, and what else there was to choose from."""

    scorer: Linear | Factors
    cold: Factors | None
    """Scores users without a history here whom other domains know, whatever `scorer` is."""
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
    hidden: Factors | None,
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
    `LEVEL`.  Users without a history here are a choice of their own (`choose_cold`; `hidden` is
    CAT-ART as it serves them).  A domain without others, for which both are None, gets the best of
    its own.

    Where linear models need more than `max_bytes`, or one inverse takes more than `MOST_WORK`, the
    iALS head, told and untold, takes their place; where that too needs more, SMF and CAT-ART are
    all there is.  The search ends before it takes more.
    """
    own = Candidates(validation)
    own.enter("smf", "smf", alone)
    told = Candidates(validation) if transferred else None
    if told and transferred:
        told.enter("cat_art", "cat_art", transferred)
    if ladder := _ladder(target, validation, shared, max_bytes):
        _search(ladder, own, told, job)
        own.enter_blends(ladder.own, "smf")
        if told:
            told.enter_blends(ladder.told, "cat_art")
    p = told.p_over(own.values[own.best.name], seed) if told else 1.0
    cold = (
        choose_cold(
            target, validation, shared, hidden, seed=seed.child("cold"), max_bytes=max_bytes
        )
        if hidden
        else None
    )
    verdict = Verdict(
        own.best, told.best if told else None, p,
        cold.best if cold else None, cold.popular if cold else None,
    )  # fmt: skip
    tried = {**own.values, **(told.values if told else {})}
    return Chosen(
        (told if told and verdict.transfers else own).model,
        cold.scorer if cold else None,
        verdict,
        {name: float(values.mean()) for name, values in tried.items()},
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Ladder:
    """Models of the domain's items at any regularisation, told of others with any weight."""

    own: str
    """What they are called at weight 0."""
    told: str
    at: Callable[[float], Callable[[float], Linear | Factors]]
    """Regularisation -> weight -> the model."""
    start: float
    """The regularisation where the search begins."""
    least: float
    most: float
    """Bounds beyond which it does not go."""
    n: int
    """How many the work allows."""


def _ladder(
    target: str, validation: Validation, shared: UserEmbeddings, max_bytes: int
) -> _Ladder | None:
    """The linear models where they can be had, else the iALS head's; None if neither."""
    train, n_threads = validation.split.train, validation.n_threads
    size = train.n_users, train.n_items
    dim = shared.values.shape[2]
    width = len(shared.domains) * dim

    def linear_at(regularization: float) -> Callable[[float], Linear]:
        # one inverse at a time, which BLAS shares out best; ranking has threads of its own
        with threadpool_limits(n_threads, user_api="blas"):
            return linear_by_weight(
                target, train, shared, regularization=regularization, max_bytes=max_bytes
            )

    n = MOST_WORK // train.n_items**3
    if n and linear_bytes(*size, width - dim, n_models=_MODELS) <= max_bytes:
        return _Ladder("ease", "linear", linear_at, 100.0, 1.0, 10_000.0, n)

    by_setting = ials_by_setting(target, train, shared, n_threads=n_threads)

    def ials_at(regularization: float) -> Callable[[float], Factors]:
        return lambda weight: by_setting(
            IalsHeadSettings(regularization=regularization, source_weight=weight)
        )

    n = MOST_WORK // ials_work(train, width, n_weights=len(_SOURCE_WEIGHTS) + 1)
    if n and ials_bytes(*size, width, n_models=_MODELS) <= max_bytes:
        return _Ladder("smf_ials", "ials_head", ials_at, 0.03, 1e-3, 1.0, n)
    return None


def _search(ladder: _Ladder, own: Candidates, told: Candidates | None, job: Job) -> None:
    """Enter models, own and told, at one regularisation after the other.

    Whoever watches hears of each as of an epoch.
    """
    peaks: dict[float, list[float]] = {}
    waiting = [ladder.start]
    while waiting and len(peaks) < ladder.n:
        strength, start = waiting.pop(), time.perf_counter()
        by_weight = ladder.at(strength)
        solved = time.perf_counter()
        name = f"{ladder.own}({strength:.3g})"
        peaks[strength] = [own.enter(ladder.own, name, by_weight(0.0))]
        if told:
            heads = [
                told.enter(
                    ladder.told, f"{ladder.told}({strength:.3g}, {weight:g})", by_weight(weight)
                )
                for weight in _SOURCE_WEIGHTS
            ]
            peaks[strength].append(max(heads))
        best = max(side.best.valid for side in (own, told) if side)
        job.on_epoch(Epoch(len(peaks), None, best, solved - start, time.perf_counter() - solved))
        if not waiting:
            weakest, strongest = min(peaks), max(peaks)
            sides = range(len(peaks[strength]))
            bests = {max(peaks, key=lambda one: peaks[one][side]) for side in sides}
            # the first has one neighbour here, the stronger: the weaker comes if that is no better
            beyond = {weakest: weakest / _STEP, strongest: strongest * _STEP}
            waiting = [beyond[edge] for edge in beyond if edge in bests]
            waiting = [one for one in waiting if ladder.least <= one <= ladder.most]
