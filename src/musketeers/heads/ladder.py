"""Models of a domain's items at any regularisation, told of the others with any weight."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from threadpoolctl import threadpool_limits

from musketeers.baselines.linear import Linear
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.group import everywhere, group
from musketeers.heads.ials import IalsHeadSettings, ials_solved
from musketeers.heads.ials import bytes_needed as ials_bytes
from musketeers.heads.ials import work as ials_work
from musketeers.heads.linear import bytes_needed as linear_bytes
from musketeers.heads.linear import linear_solved
from musketeers.ranking import Factors

MOST_WORK = 6_000_000_000_000
"""Multiplications of the search in a domain: of linear models the cube of the items for each
inverse, of the iALS head `heads.ials.work`; some minutes on one processor.  Counted, not timed, so
that the choice is the same on every machine."""

SOURCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Those that are tried, beside 0."""

_MODELS = 5
"""Linear ones at the same time: the best and the best unblended, own and told, and the next."""

ByWeight = Callable[[float], Linear | Factors]
"""Weight of what the others tell -> the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """The models of one domain, by regularisation."""

    own: str
    """What they are called at weight 0."""
    told: str
    at: Callable[[float], Callable[[UserEmbeddings], ByWeight]]
    """Regularisation -> what is shared -> weight -> the model."""
    start: float
    """The regularisation where a search begins."""
    least: float
    most: float
    """Bounds beyond which it does not go."""
    n: int
    """How many the work allows."""


def ladder(
    target: str, validation: Validation, *, n_domains: int, dim: int, max_bytes: int
) -> Ladder | None:
    """The linear models where they can be had, else the iALS head's; None if neither.

    Where linear models need more than `max_bytes`, or one inverse takes more than `MOST_WORK`, they
    cannot; so it is with the iALS head, whose memory and work are linear in items.
    """
    train, n_threads = validation.split.train, validation.n_threads
    size, width = (train.n_users, train.n_items), n_domains * dim
    n = MOST_WORK // train.n_items**3
    if n and everywhere(linear_bytes(*size, width - dim, n_models=_MODELS) <= max_bytes):
        at = partial(_linear_at, target, validation)
        return Ladder("ease", "linear", at, 100.0, 1.0, 10_000.0, n)
    n = MOST_WORK // ials_work(train, width, n_weights=len(SOURCE_WEIGHTS) + 1)
    # its items are solved from all users at once
    if group().size == 1 and n and ials_bytes(*size, width, n_models=_MODELS) <= max_bytes:
        solved = ials_solved(target, train, n_threads=n_threads)
        return Ladder("smf_ials", "ials_head", partial(_ials_at, solved), 0.03, 1e-3, 1.0, n)
    return None


def _linear_at(
    target: str, validation: Validation, regularization: float
) -> Callable[[UserEmbeddings], ByWeight]:
    # one inverse at a time, which BLAS shares out best; ranking has threads of its own
    with threadpool_limits(validation.n_threads, user_api="blas"):
        solved = linear_solved(validation.split.train, regularization)

    def of(shared: UserEmbeddings) -> Callable[[float], Linear]:
        with threadpool_limits(validation.n_threads, user_api="blas"):
            return solved(shared.without(target))

    return of


def _ials_at(
    solved: Callable[[UserEmbeddings], Callable[[IalsHeadSettings], Factors]],
    regularization: float,
) -> Callable[[UserEmbeddings], ByWeight]:
    def of(shared: UserEmbeddings) -> Callable[[float], Factors]:
        by_setting = solved(shared)
        return lambda weight: by_setting(
            IalsHeadSettings(regularization=regularization, source_weight=weight)
        )

    return of
