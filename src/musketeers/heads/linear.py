"""The linear head: the best linear model of the target's items, told the shared embeddings too."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy.linalg import solve
from scipy.sparse import csr_array, hstack

from musketeers.baselines.ease import MAX_BYTES, inverse_of, products
from musketeers.baselines.linear import Linear, history
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings
from musketeers.group import group

_BLOCK = 256
"""Rows of weights that are made at once."""


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """How strongly weights are held back, and how much the shared embeddings count."""

    regularization: float = 100.0
    """L2 penalty of the weights, in units of users; above 0."""
    source_weight: float = 2.0
    """What the shared embeddings are multiplied by; 0 leaves them out, and EASE remains."""
    max_bytes: int = MAX_BYTES
    """What needs more memory than this is refused before it starts."""

    def __post_init__(self) -> None:
        if not 0 < self.regularization < np.inf:
            raise ConfigError(
                f"regularization is {self.regularization}; it must be above 0 and finite"
            )
        if not 0 <= self.source_weight < np.inf:
            raise ConfigError(f"source_weight is {self.source_weight}; it must be >= 0 and finite")


def linear(
    target: str, train: Interactions, shared: UserEmbeddings, settings: LinearSettings
) -> Linear:
    r"""EASE of the target's items on the user's history and on what other domains know of the user.

    With R the target's training pairs (user x item), E the other domains' user embeddings side by
    side (`UserEmbeddings.values`; zeros where a domain does not know the user) and w
    `source_weight`, B and C minimise

    $$\|R - RB - w E C\|^2 + \lambda (\|B\|^2 + \|C\|^2), \quad diag(B) = 0$$

    over all users, those unknown to the target included, in closed form (Steck, WWW 2019, with
    columns of side information as in Jeunen et al., RecSys 2020).  A weight is the same as a
    penalty of $\lambda / w^2$ on C.  A user without history in the target is scored from E alone;
    one known nowhere scores 0 everywhere.

    Of the other domains it sees what leaves them, user embeddings, and nothing else.

    Memory: `bytes_needed`, most of it 8 bytes for each pair of items.  Raises `DataError`
    for a target that is none of the domains, `ConfigError` where memory exceeds `max_bytes`.
    """
    told = shared.without(target)
    n_items, width = train.n_items, told.values[0].size
    needed = bytes_needed(train.n_users, n_items, width)
    if needed > settings.max_bytes:
        raise ConfigError(
            f"the linear head of {n_items:,} items and {width:,} columns of embeddings needs "
            f"{needed:,} bytes, more than max_bytes = {settings.max_bytes:,}; raise it, or keep "
            "fewer items (a larger data.min_item)"
        )
    return linear_solved(train, settings.regularization)(told)(settings.source_weight)


def linear_solved(
    train: Interactions, regularization: float
) -> Callable[[UserEmbeddings], Callable[[float], Linear]]:
    r"""`linear` as a function of what the other domains tell, and then of its weight.

    All share what costs most, $A = (R^\top R + \lambda I)^{-1}$, items x items.  With
    $Y = A R^\top E$ and $S = w^2 (E^\top E - E^\top R Y) + \lambda I$, no larger than what is told
    is wide, the inverse of all products has the blocks $A + w^2 Y S^{-1} Y^\top$ between items and
    $-w S^{-1} Y^\top$ from embeddings to items (inversion by blocks).
    """
    own = history(train)
    summed = products(own)
    group().add(summed)
    inverse = inverse_of(summed, regularization)

    def of(told: UserEmbeddings) -> Callable[[float], Linear]:
        columns = told.values.reshape(train.n_users, -1)
        wide = columns.astype(np.float64)
        across, among = own.T @ wide, wide.T @ wide
        group().add(across, among)
        explained = inverse @ across
        left = among - across.T @ explained

        def at(weight: float) -> Linear:
            shrunk = weight**2 * left + regularization * np.eye(columns.shape[1])
            pull = weight * solve(shrunk, explained.T, assume_a="pos")
            weights = _weights(inverse, weight * explained, pull)
            return Linear.of(inputs(own, told, weight), weights)

        return at

    return of


def inputs(own: csr_array, told: UserEmbeddings, weight: float) -> csr_array:
    """What the head is told of users: what they did, then the others' embeddings, weighted."""
    columns = told.values.reshape(len(told.values), -1)
    return csr_array(hstack([own, csr_array(np.float32(weight) * columns)]))


def bytes_needed(n_users: int, n_items: int, width: int, *, n_models: int = 1) -> int:
    """What models of so many items and columns of embeddings take: one inverse, inputs, weights.

    Inputs are sparse rows, though full ones where other domains are told of; two more are made on
    the way.
    """
    inputs = 12 * n_users * width * (n_models + 2)
    weights = 4 * n_models * (n_items + width) * n_items
    return 8 * n_items**2 + 16 * width * n_items + inputs + weights


def _weights(
    inverse: Float64[np.ndarray, "item item"],
    explained: Float64[np.ndarray, "item column"],
    pull: Float64[np.ndarray, "column item"],
) -> Float32[np.ndarray, "input item"]:
    """Those of the items, then those of the embeddings' columns."""
    n_items = len(inverse)
    weights = np.empty((n_items + len(pull), n_items), np.float32)
    diagonal = inverse.diagonal() + np.einsum("ic,ci->i", explained, pull)
    for first in range(0, n_items, _BLOCK):
        rows = slice(first, min(first + _BLOCK, n_items))
        weights[rows] = (inverse[rows] + explained[rows] @ pull) / -diagonal
    weights[np.diag_indices(n_items)] = 0
    weights[n_items:] = pull / diagonal
    return weights
