"""The best linear model of items by items in closed form (EASE), of one domain or of all pooled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64
from numba import njit
from scipy.linalg import get_lapack_funcs
from scipy.sparse import csr_array, hstack

from musketeers.baselines.linear import Linear, history, shape
from musketeers.data.domains import Split
from musketeers.errors import ConfigError

MAX_BYTES = 8 * 2**30
"""Memory that a model may take unless its settings say otherwise: about 26,000 items."""

_BLOCK = 64
"""Items whose weights are made at once where the inverse is between users."""


@dataclass(frozen=True, slots=True)
class EaseSettings:
    """How strongly weights are held back, and the memory to stay within."""

    regularization: float = 100.0
    """L2 penalty of the weights, in units of users; above 0."""
    max_bytes: int = MAX_BYTES
    """What needs more memory than this is refused before it starts."""

    def __post_init__(self) -> None:
        _check(self.regularization)


@dataclass(frozen=True, slots=True)
class PooledEaseSettings:
    """The same, and how much each source domain counts."""

    regularization: float = 200.0
    """L2 penalty of the weights, in units of users; above 0."""
    source_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """What a pair of a source domain counts beside the target's 1; a source that is not named
    counts 0.5, one of 0 is left out."""
    max_bytes: int = MAX_BYTES
    """What needs more memory than this is refused before it starts."""

    def __post_init__(self) -> None:
        _check(self.regularization)
        for source, weight in self.source_weights.items():
            if not 0 <= weight < np.inf:
                raise ConfigError(f"the weight of source {source!r} is {weight}; it must be >= 0")


def ease(split: Split, settings: EaseSettings) -> Linear:
    r"""The history times the B that minimises $\|R - RB\|^2 + \lambda \|B\|^2$, diag(B) = 0.

    R is the matrix of training pairs (Steck, Embarrassingly Shallow Autoencoders for Sparse
    Data, WWW 2019).  Raises `ConfigError` where the square of items exceeds `max_bytes`.
    """
    return item_regression(
        history(split.train),
        split.train.n_items,
        regularization=settings.regularization,
        max_bytes=settings.max_bytes,
    )


def pooled_ease(splits: Mapping[str, Split], target: str, settings: PooledEaseSettings) -> Linear:
    r"""EASE of the target's items on what its users did in all domains: the upper reference.

    Minimises $\|R - RB - \sum_s w_s R_s C_s\|^2 + \lambda (\|B\|^2 + \sum_s \|C_s\|^2)$ with
    diag(B) = 0 over all users, those unknown to the target included.  A weight w is the same as
    a penalty of $\lambda / w^2$ on the unscaled block, so sources have no penalty of their own.
    It breaks the rule that histories stay at home, and tells what that rule costs.

    Raises `ConfigError` for a weight of what is no source, and where the square of all
    inputs exceeds `max_bytes`.
    """
    sources = [name for name in splits if name != target]
    if unknown := sorted(settings.source_weights.keys() - set(sources)):
        raise ConfigError(
            f"source_weights names {', '.join(unknown)}, but the sources of {target} are "
            f"{', '.join(sources)}; remove or rename it"
        )
    weights = {name: np.float32(settings.source_weights.get(name, 0.5)) for name in sources}
    scaled = (history(splits[name].train) * weight for name, weight in weights.items() if weight)
    return item_regression(
        csr_array(hstack([history(splits[target].train), *scaled])),
        splits[target].train.n_items,
        regularization=settings.regularization,
        max_bytes=settings.max_bytes,
    )


def item_regression(
    inputs: csr_array, n_items: int, *, regularization: float, max_bytes: int
) -> Linear:
    r"""The first `n_items` columns of X (user x input), predicted by all but themselves.

    With $P = (X^\top X + \lambda I)^{-1}$ the weights are $-P_{ji} / P_{ii}$, and 0 for an item on
    itself (Steck 2019, equation 8; further columns as in Jeunen et al., Closed-Form Models for
    Collaborative Filtering with Side-Information, RecSys 2020).  Where there are fewer users than
    inputs, $P = (I - X^\top (X X^\top + \lambda I)^{-1} X) / \lambda$, the same by Woodbury's
    identity, takes the inverse of a smaller matrix.  It is taken in float64: rounding counts times
    the condition of the matrix, which grows with users / λ, and float32 has no digits to spare for
    that.

    Memory: 8 bytes for each pair of inputs, or of users if they are fewer (the inverse takes the
    place of the products), 4 for each weight, and little else.  Raises `ConfigError` where that
    exceeds `max_bytes`.  Bitwise repeatable for one number of BLAS threads.
    """
    n_users, n_inputs = int((np.diff(inputs.indptr) > 0).sum()), shape(inputs)[1]
    by_user = n_users < n_inputs
    inverse = 8 * n_users**2 + 16 * _BLOCK * (n_users + n_inputs) if by_user else 8 * n_inputs**2
    needed = inverse + 4 * n_inputs * n_items
    if needed > max_bytes:
        raise ConfigError(
            f"EASE of {n_items:,} items on {n_inputs:,} inputs needs {needed:,} bytes, more than "
            f"max_bytes = {max_bytes:,}; raise it, or keep fewer items (a larger data.min_item)"
        )
    if by_user:
        known = csr_array(inputs[np.flatnonzero(np.diff(inputs.indptr))])
        between_users = inverse_of(products(csr_array(known.T)), regularization)
        return Linear.of(inputs, _weights_by_user(between_users, known, n_items))
    between_inputs = inverse_of(products(inputs), regularization)
    return Linear.of(inputs, _weights(between_inputs, n_items))


def products(inputs: csr_array) -> Float64[np.ndarray, "input input"]:
    r"""$X^\top X$, summed in the order of the users; 8 bytes for each pair of inputs."""
    n_inputs = shape(inputs)[1]
    summed = np.zeros((n_inputs, n_inputs))
    by_input = inputs.T.tocsr()
    _add_products(
        (by_input.indptr, by_input.indices, by_input.data),
        (inputs.indptr, inputs.indices, inputs.data),
        summed,
    )
    return summed


def inverse_of(
    products: Float64[np.ndarray, "input input"], regularization: float
) -> Float64[np.ndarray, "input input"]:
    r"""$(X^\top X + \lambda I)^{-1}$ in the memory of the `products`, symmetric to the bit.

    Raises `ConfigError` where rounding swallows λ and nothing can be inverted.
    """
    inverse = _inverse(products, regularization)
    for row in range(len(inverse)):
        inverse[row, row + 1 :] = inverse[row + 1 :, row]
    return inverse


def _check(regularization: float) -> None:
    if not 0 < regularization < np.inf:
        raise ConfigError(f"regularization is {regularization}; it must be above 0 and finite")


def _inverse(
    products: Float64[np.ndarray, "input input"], regularization: float
) -> Float64[np.ndarray, "input input"]:
    """The inverse of products + λI, in the same memory; only its lower triangle is meant."""
    products[np.diag_indices(len(products))] += regularization
    # LAPACK counts by columns: it reads the transpose, whose upper triangle is our lower one.
    factorize, invert = get_lapack_funcs(("potrf", "potri"), dtype=np.float64)
    factor, failed = factorize(products.T, lower=0, overwrite_a=1)
    if failed:
        raise ConfigError(
            f"regularization is {regularization}, too small beside so many users to invert their "
            "products in float64; raise it"
        )
    inverse, _ = invert(factor, lower=0, overwrite_c=1)
    return inverse.T


def _weights(
    inverse: Float64[np.ndarray, "input input"], n_items: int
) -> Float32[np.ndarray, "input item"]:
    """The weights of the first items."""
    diagonal = inverse.diagonal()[:n_items].copy()
    weights = np.empty((len(inverse), n_items), dtype=np.float32)
    for row in range(len(inverse)):
        weights[row] = inverse[row, :n_items] / -diagonal
    weights[np.diag_indices(n_items)] = 0
    return weights


def _weights_by_user(
    inverse: Float64[np.ndarray, "user user"], inputs: csr_array, n_items: int
) -> Float32[np.ndarray, "input item"]:
    """The same weights from the inverse between users."""
    by_input = csr_array(inputs.T, dtype=np.float64)
    weights = np.empty((shape(inputs)[1], n_items), dtype=np.float32)
    for first in range(0, n_items, _BLOCK):
        items = np.arange(first, min(first + _BLOCK, n_items))
        explained = by_input @ (by_input[items] @ inverse).T
        explained /= 1 - explained[items, items - first]
        weights[:, items] = explained
        weights[items, items] = 0
    return weights


@njit(nogil=True, cache=True)
@no_type_check
def _add_products(by_input, by_user, products):
    users_of, users, left = by_input
    inputs_of, inputs, right = by_user
    for row in range(len(products)):
        for place in range(users_of[row], users_of[row + 1]):
            value = np.float64(left[place])
            user = users[place]
            for cell in range(inputs_of[user], inputs_of[user + 1]):
                products[row, inputs[cell]] += value * np.float64(right[cell])
