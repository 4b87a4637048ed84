"""The iALS head: items by least squares on a user's own vector and those of the other domains."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings
from musketeers.pretrain.ials import IalsSettings, solve, transposed
from musketeers.ranking import Factors

_SLOWER = 4


@dataclass(frozen=True, slots=True)
class IalsHeadSettings:
    """How much what was not observed counts, how strongly items are held back, who is heard."""

    unobserved_weight: float = 0.1
    """Weight of a pair's squared score where observed ones have 1; above 0."""
    regularization: float = 0.03
    """L2 strength for each unit of weight that an item sees; above 0."""
    source_weight: float = 1.0
    """What the other domains' embeddings are multiplied by; 0 leaves them out."""

    def __post_init__(self) -> None:
        if not 0 <= self.source_weight < np.inf:
            raise ConfigError(f"source_weight is {self.source_weight}; it must be >= 0 and finite")


def ials_head(
    target: str,
    train: Interactions,
    shared: UserEmbeddings,
    settings: IalsHeadSettings,
    *,
    n_threads: int,
) -> Factors:
    r"""Every item's vector is half an epoch of iALS on what is shared of the users.

    With $f_u = [e_u, w\,e_u^1, w\,e_u^2, \dots]$ the target's own user embedding and, w
    `source_weight`, the other domains' (`UserEmbeddings.values`: in units of their mean lengths,
    zeros where a domain does not know the user), each item's q minimises over the users whom the
    target knows

    $$\sum_{u \in S_i} (f_u \cdot q - 1)^2 + w_0 \sum_u (f_u \cdot q)^2
      + \lambda (c_i + w_0 |U|) |q|^2$$

    in closed form, with S_i the item's c_i users and $w_0$ `unobserved_weight` (the items' half of
    `pretrain.ials`, with users of any origin).  A weight of 0 is the domain by itself.  It does
    what the linear head does where the square of the catalogue is too large: cost and memory are
    linear in interactions and items, and grow with the width of all embeddings together, by its
    square for an interaction and its cube for an item.

    A user without history in the target is scored by what others tell; one known nowhere scores 0
    everywhere.  Bitwise the same on any number of threads.

    Raises `DataError` for a target that is none of the domains, `ConfigError` for settings out of
    bounds.
    """
    return ials_solved(target, train, n_threads=n_threads)(shared)(settings)


def ials_solved(
    target: str, train: Interactions, *, n_threads: int
) -> Callable[[UserEmbeddings], Callable[[IalsHeadSettings], Factors]]:
    """`ials_head` as a function of what is shared, then of the settings; all share who has what."""
    by_item, known = transposed(train), train.known_users()

    def of(shared: UserEmbeddings) -> Callable[[IalsHeadSettings], Factors]:
        index = shared.index(target)

        def at(settings: IalsHeadSettings) -> Factors:
            users = inputs(shared, index, settings.source_weight)
            items = np.zeros((train.n_items, users.shape[1]), np.float32)
            how = IalsSettings(settings.unobserved_weight, settings.regularization)
            # whom the target does not know has not passed its items by
            solve(by_item, users * known[:, None], items, how, n_threads=n_threads)
            return Factors(users, items)

        return at

    return of


def bytes_needed(n_users: int, n_items: int, width: int, *, n_models: int = 1) -> int:
    """What so many models take whose embeddings have `width` columns; one more is being made."""
    return 4 * width * ((n_models + 2) * n_users + (n_models + 1) * n_items)


def work(train: Interactions, width: int, *, n_weights: int) -> int:
    """Multiplications of so many models, in units of those of a matrix product.

    A loop over an item's users takes `_SLOWER` times as long for one.
    """
    each = len(train) * width**2 // 2 + train.n_items * width**3 // 3
    return _SLOWER * n_weights * each


def inputs(shared: UserEmbeddings, index: int, weight: float) -> Float32[np.ndarray, "user column"]:
    """What the head is told of users: the target's slice, then the others' times the weight.

    Without weight the first alone.
    """
    own, others = shared.values[:, index], np.delete(shared.values, index, axis=1)
    if not weight:
        return own
    return np.hstack([own, np.float32(weight) * others.reshape(len(own), -1)])
