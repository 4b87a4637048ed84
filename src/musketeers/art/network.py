"""The network of stage 3, there and back, compiled, and a lane's whole step with it.

Written out with its slope because of the time it takes: a step on a few hundred users is short,
and of general tensor operations with automatic differentiation most would be bookkeeping under
the interpreter's lock, where lanes wait for each other.
"""

import math
from typing import Literal, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from numba import njit

from musketeers.instructions import ask
from musketeers.pretrain.kernels import train_items

# All in one piece: of a function that is called and not compiled into its caller there may be two
# versions, rounding differently, and which is taken depends on whether it came from the cache.
_compiled = njit(
    nogil=True, cache=True, error_model="numpy", forceinline=True,
    fastmath={"reassoc", "contract", "arcp", "nsz"},
)  # fmt: skip


class Weights(NamedTuple):
    """The parameters of `model.AttentionTransfer`, or the loss's gradient by each of them."""

    adapt: Float[np.ndarray, "source dim dim"]
    adapt_bias: Float[np.ndarray, "source dim"]
    query: Float[np.ndarray, "dim dim"]
    query_bias: Float[np.ndarray, " dim"]
    key: Float[np.ndarray, "dim dim"]
    value: Float[np.ndarray, "dim dim"]
    out: Float[np.ndarray, "dim dim"]
    shared: Float[np.ndarray, "dim dim"]
    bias: Float[np.ndarray, " dim"]
    pad: Float[np.ndarray, " dim"]


class Everybody(NamedTuple):
    """What all domains tell of all users, and whom of them a target asks."""

    values: Float[np.ndarray, "user domain dim"]
    known: Bool[np.ndarray, "user domain"]
    shared: Float[np.ndarray, "user dim"]
    target: int
    """The target's place among the domains."""
    sources: Int[np.ndarray, " source"]
    """Those of the others."""


class Told(NamedTuple):
    """What a target is told of some users."""

    target: Float[np.ndarray, "user dim"]
    target_known: Bool[np.ndarray, " user"]
    sources: Float[np.ndarray, "source user dim"]
    sources_known: Bool[np.ndarray, "user source"]
    shared: Float[np.ndarray, "user dim"]


class Trace(NamedTuple):
    """What the way back needs from the way there."""

    queries: Float[np.ndarray, "user dim"]
    adapted: Float[np.ndarray, "source user dim"]
    attention: Float[np.ndarray, "user source"]
    """How much each known source counts before its factor, summing to 1; 0 for unknown ones."""
    attended: Float[np.ndarray, "user dim"]


_AHEAD = 4
"""Users whose rows are asked for before they are needed: they lie anywhere in gigabytes."""


@_compiled
@no_type_check
def told_of(everybody, rows, seen, pad):
    """The `Told` of those users; where not ``seen``, the target's own vector is not looked at."""
    n_sources, dim = len(everybody.sources), everybody.values.shape[2]
    target = np.empty((len(rows), dim), everybody.values.dtype)
    sources = np.empty((n_sources, len(rows), dim), target.dtype)
    shared = np.empty_like(target)
    sources_known = np.empty((len(rows), n_sources), np.bool_)
    target_known = np.empty(len(rows), np.bool_)
    by_user = everybody.values.reshape(len(everybody.values), -1)
    for u in range(len(rows)):
        row = rows[u]
        if u + _AHEAD < len(rows):
            ask(by_user, rows[u + _AHEAD])
            ask(everybody.shared, rows[u + _AHEAD])
        target_known[u] = seen[u] and everybody.known[row, everybody.target]
        target[u] = everybody.values[row, everybody.target] if target_known[u] else pad
        shared[u] = everybody.shared[row]
        for s in range(n_sources):
            place = everybody.sources[s]
            sources_known[u, s] = everybody.known[row, place]
            sources[s, u] = everybody.values[row, place]
    return Told(target, target_known, sources, sources_known, shared)


def weighing(
    sources: Literal["attention", "mean", "sum", "none"],
    known: Bool[np.ndarray, "user source"],
    dim: int,
) -> tuple[float, Float32[np.ndarray, "user source"]]:
    """What the logits of a softmax over the known sources, and then its weights, are multiplied by.

    At a sharpness of 0 the sources count the same, whatever the query, which then has no slope:
    that is their mean; times their number it is the sum, times 0 nothing.
    """
    sharpness = 1 / math.sqrt(dim) if sources == "attention" else 0.0
    factors = np.ones(known.shape, np.float32)
    if sources == "sum":
        factors *= known.sum(axis=1, keepdims=True)
    elif sources == "none":
        factors *= 0
    return sharpness, factors


@_compiled
@no_type_check
def forward(weights, told, sharpness, factors):
    """What to add to each user's vector, by `model.AttentionTransfer`, and the `Trace`.

    `sharpness` and `factors` are what `weighing` gives, the latter changed by dropout.
    """
    adapted = np.empty_like(told.sources)
    for s in range(len(adapted)):
        np.dot(told.sources[s], weights.adapt[s], adapted[s])
        adapted[s] += weights.adapt_bias[s]
    # (W_q e + b_q).(W_k a) = (W_k^T W_q e + W_k^T b_q).a; a product of two maps costs a step once,
    # one more map costs every user
    queries = np.dot(told.target, np.dot(weights.query, weights.key.T))
    queries += np.dot(weights.key, weights.query_bias)
    attention, attended = _attend(queries, adapted, told.sources_known, sharpness, factors)
    added = np.dot(attended, np.dot(weights.value, weights.out))
    added += np.dot(told.shared, weights.shared)
    added += weights.bias
    _clear(added, told.sources_known)
    return added, Trace(queries, adapted, attention, attended)


@_compiled
@no_type_check
def backward(weights, told, sharpness, factors, trace, slopes):
    """The loss's gradient by the weights, given its slopes by what `forward` added.

    Spends `trace` and `slopes`.
    """
    _clear(slopes, told.sources_known)
    to_product = np.dot(trace.attended.T, slopes)
    pulls = np.dot(slopes, np.dot(weights.value, weights.out).T)
    queries = _attend_backward(
        pulls, trace.queries, trace.adapted, sharpness, factors, trace.attention
    )
    to_adapt = np.empty_like(weights.adapt)
    to_adapt_bias = np.empty_like(weights.adapt_bias)
    for s in range(len(to_adapt)):
        np.dot(told.sources[s].T, trace.adapted[s], to_adapt[s])
        to_adapt_bias[s] = trace.adapted[s].sum(0)
    to_query, to_bias = np.dot(told.target.T, queries), queries.sum(0)
    to_pad = np.zeros_like(weights.pad)
    for u in range(len(queries)):
        if not told.target_known[u]:
            to_pad += queries[u]
    return Weights(
        to_adapt,
        to_adapt_bias,
        np.dot(to_query, weights.key),
        np.dot(to_bias, weights.key),
        np.dot(to_query.T, weights.query) + np.outer(to_bias, weights.query_bias),
        np.dot(to_product, weights.out.T),
        np.dot(weights.value.T, to_product),
        np.dot(told.shared.T, slopes),
        slopes.sum(0),
        np.dot(weights.query, np.dot(weights.key.T, to_pad)),
    )


@_compiled
@no_type_check
def learn(
    weights,
    everybody,
    users,
    seen,
    sharpness,
    factors,
    alone,
    mean,
    length,
    strengths,
    learns,
    indptr,
    liked_items,
    items,
    item_squares,
    touched,
    places,
    learning_rate,
    regularization,
    n_candidates,
    key,
):
    """One step on `users`: items learn where ``learns``; the summed loss and the `Weights`' slope.

    A user's vector is ``alone``, or `mean` where not ``seen``, plus `length` times what the network
    adds; the square of that sum is held down by ``strengths / 2``.  It depends on the user alone,
    so one way there and one way back serve all of a user's items.
    """
    told = told_of(everybody, users, seen, weights.pad)
    added, trace = forward(weights, told, sharpness, factors)
    added *= length
    vectors, slopes = np.empty_like(added), np.empty_like(added)
    for u in range(len(users)):
        vectors[u] = added[u] + (alone[users[u]] if seen[u] else mean)
    loss = train_items(
        users, learns, vectors, slopes, indptr, liked_items, items, item_squares, touched, places,
        learning_rate, regularization, n_candidates, key,
    )  # fmt: skip
    for u in range(len(users)):
        slopes[u] = length * (slopes[u] + strengths[u] * added[u])
    return loss, backward(weights, told, sharpness, factors, trace, slopes)


@_compiled
@no_type_check
def _attend(queries, vectors, known, sharpness, factors):
    """Softmax of query.vector * sharpness over known sources, and the vectors' sum by it."""
    n_sources, n_users, dim = vectors.shape
    shrink = queries.dtype.type(sharpness)
    attention, attended = np.zeros_like(factors), np.zeros_like(queries)
    for u in range(n_users):
        if not known[u].any():
            continue
        for s in range(n_sources):
            attention[u, s] = _dot(queries[u], vectors[s, u]) * shrink if known[u, s] else -np.inf
        attention[u] = np.exp(attention[u] - attention[u].max())
        attention[u] /= attention[u].sum()
        for s in range(n_sources):
            share = attention[u, s] * factors[u, s]
            for d in range(dim):
                attended[u, d] += share * vectors[s, u, d]
    return attention, attended


@_compiled
@no_type_check
def _attend_backward(slopes, queries, vectors, sharpness, factors, attention):
    """The slopes by the queries, given those by the sums; `vectors` become the slopes by them."""
    n_sources, n_users, dim = vectors.shape
    shrink = queries.dtype.type(sharpness)
    to_queries = np.zeros_like(queries)
    pulls = np.empty(n_sources, factors.dtype)
    for u in range(n_users):
        for s in range(n_sources):
            pulls[s] = _dot(slopes[u], vectors[s, u]) * factors[u, s]
        mean = (attention[u] * pulls).sum()
        for s in range(n_sources):
            share = attention[u, s] * factors[u, s]
            turn = attention[u, s] * (pulls[s] - mean) * shrink
            for d in range(dim):
                to_queries[u, d] += turn * vectors[s, u, d]
            for d in range(dim):
                vectors[s, u, d] = share * slopes[u, d] + turn * queries[u, d]
    return to_queries


@_compiled
@no_type_check
def _dot(a, b):
    total = a[0] * b[0]
    for d in range(1, len(a)):
        total += a[d] * b[d]
    return total


@_compiled
@no_type_check
def _clear(rows, known):
    """Nothing reaches, or comes from, a user whom no source knows."""
    for u in range(len(rows)):
        if not known[u].any():
            rows[u] = 0
