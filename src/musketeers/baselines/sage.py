"""GraphSAGE over sampled neighbours, by max pooling with attention, and the way back through it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float
from numba import njit

from musketeers.baselines.graph import Back, Graph
from musketeers.seeding import Seed

MOST_NEIGHBOURS = 256
"""Of a node, at most: the place of the largest message among them is kept in one byte."""


@dataclass(frozen=True, slots=True, eq=False)
class Sage:
    r"""The encoder: every layer makes a node's vector from its own and its neighbours'.

    GraphSAGE with max pooling (Hamilton et al., NIPS 2017, equation 3): with h a node's vector,
    its neighbours u send messages $m_u = \mathrm{relu}(W_p h_u + b)$, and

    $h' = \mathrm{relu}(W_o h + W_n \max_u n a_u m_u), \quad
    a_u = \mathrm{softmax}_u (W_q h \cdot m_u / \sqrt{dim})$,

    the maximum for each dimension, over a sample of n neighbours.  The last layer has no relu, so
    that inner products may be negative.  The attention is inferred: a weighted message counts
    more than 1 where a node looks at it more than at others.  Layers start from W_o = 1 and
    W_n = 0, so that they keep vectors as they are, and from W_q = 0, plain max pooling.
    """

    graph: Graph
    layers: int
    neighbours: int
    """How many of a node's neighbours a step samples; a node with fewer has them all."""
    weights: Mapping[str, np.ndarray]
    """``"0/pool"``, ``"0/bias"``, ``"0/query"``, ``"0/own"``, ``"0/near"``, then layer 1; applied
    from the right."""

    @classmethod
    def of(cls, graph: Graph, layers: int, seed: Seed, *, neighbours: int, dim: int) -> "Sage":
        """With weights as before training."""
        weights: dict[str, np.ndarray] = {}
        rng = seed.numpy()
        # Glorot and Bengio, AISTATS 2010
        bound = np.sqrt(3 / dim)
        for layer in range(layers):
            weights |= {
                f"{layer}/pool": rng.uniform(-bound, bound, (dim, dim)).astype(np.float32),
                f"{layer}/bias": np.zeros((1, dim), np.float32),
                f"{layer}/query": np.zeros((dim, dim), np.float32),
                f"{layer}/own": np.eye(dim, dtype=np.float32),
                f"{layer}/near": np.zeros((dim, dim), np.float32),
            }
        return cls(graph, layers, neighbours, weights)

    def encode(
        self, table: Float[np.ndarray, "node dim"], rng: np.random.Generator | None, /
    ) -> tuple[Float[np.ndarray, "node dim"], Back]:
        """See `Encoder.encode`.

        A sample is every so many of a node's neighbours from a random start, equally likely for
        each; the same for all layers, and without `rng` the same at every call.
        """
        n_nodes = len(table)
        starts = np.full(n_nodes, 0.5) if rng is None else rng.random(n_nodes, np.float32)
        vectors, backs = table, list[Back]()
        for layer in range(self.layers):
            vectors, back = self._layer(layer, vectors, starts.astype(np.float32))
            backs.append(back)

        def whole(slope: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            found: dict[str, np.ndarray] = {}
            for back in reversed(backs):
                slope, of_weights = back(slope)
                found |= of_weights
            return slope, found

        return vectors, whole

    def _layer(
        self, layer: int, vectors: np.ndarray, starts: np.ndarray
    ) -> tuple[np.ndarray, Back]:
        names = [f"{layer}/{part}" for part in ("pool", "bias", "query", "own", "near")]
        pool, bias, query, own, near = (self.weights[name] for name in names)
        scale = vectors.dtype.type(1 / np.sqrt(vectors.shape[1]))
        messages = np.maximum(vectors @ pool + bias, 0)
        queries = scale * (vectors @ query)
        edges = self.graph.neighbours.indptr, self.graph.neighbours.items, starts
        shares = np.empty((len(vectors), self.neighbours), vectors.dtype)
        pooled, best = np.empty_like(vectors), np.empty(vectors.shape, np.uint8)
        _pool(*edges, messages, queries, shares, pooled, best)
        made = vectors @ own + pooled @ near
        is_last = layer == self.layers - 1
        if not is_last:
            np.maximum(made, 0, out=made)

        def back(slope: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            if not is_last:
                slope = slope * (made > 0)
            to_messages, to_queries = np.zeros_like(messages), np.zeros_like(queries)
            of_pooled = slope @ near.T
            _pool_back(*edges, messages, queries, shares, best, of_pooled, to_messages, to_queries)
            to_messages *= messages > 0
            to_queries *= scale
            slopes = (
                vectors.T @ to_messages,
                to_messages.sum(0, keepdims=True),
                vectors.T @ to_queries,
                vectors.T @ slope,
                pooled.T @ slope,
            )
            whole = slope @ own.T + to_messages @ pool.T + to_queries @ query.T
            return whole, dict(zip(names, slopes, strict=True))

        return made, back


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True, fastmath={"contract"})
@no_type_check
def _sample(indptr, neighbours, node, start, sample):
    """Fill `sample` with some neighbours of a node, every n / len-th; how many there are."""
    first, n = indptr[node], indptr[node + 1] - indptr[node]
    count = min(n, len(sample))
    for k in range(count):
        # `start` has 24 bits, so in float64 this never rounds up to the next place
        sample[k] = neighbours[first + int((k + np.float64(start)) * n / count)]
    return count


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
@no_type_check
def _pool(indptr, neighbours, starts, messages, queries, shares, pooled, best):
    """Each node's largest weighted messages into `pooled`, their places in the sample into `best`.

    `shares` becomes the weights, 1 on average.
    """
    dim = messages.shape[1]
    sample = np.empty(shares.shape[1], np.int64)
    for node in range(len(messages)):
        count = _sample(indptr, neighbours, node, starts[node], sample)
        share, largest, place = shares[node], pooled[node], best[node]
        largest[:] = 0
        place[:] = 0
        for k in range(count):
            other = sample[k]
            score = np.float32(0)
            for d in range(dim):
                score += queries[node, d] * messages[other, d]
            share[k] = score
        if not count:
            continue
        top = share[:count].max()
        share[:count] = np.exp(share[:count] - top)
        share[:count] *= count / share[:count].sum()
        for k in range(count):
            other, weight = sample[k], share[k]
            for d in range(dim):
                value = weight * messages[other, d]
                # messages are not negative, and what is 0 has no slope to send anywhere
                is_larger = value > largest[d]
                largest[d] = value if is_larger else largest[d]
                place[d] = np.uint8(k) if is_larger else place[d]


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
@no_type_check
def _pool_back(
    indptr, neighbours, starts, messages, queries, shares, best, slope, to_messages, to_queries
):
    """Add what `slope` in the pooled messages means for messages and queries."""
    dim = messages.shape[1]
    sample = np.empty(shares.shape[1], np.int64)
    of_shares = np.empty(shares.shape[1], messages.dtype)
    for node in range(len(messages)):
        count = _sample(indptr, neighbours, node, starts[node], sample)
        if not count:
            continue
        share = shares[node]
        of_shares[:] = 0
        for d in range(dim):
            k = best[node, d]
            other = sample[k]
            of_shares[k] += slope[node, d] * messages[other, d]
            to_messages[other, d] += slope[node, d] * share[k]
        mean = np.float32(0)
        for k in range(count):
            mean += share[k] * of_shares[k] / np.float32(count)
        for k in range(count):
            other, push = sample[k], share[k] * (of_shares[k] - mean)
            for d in range(dim):
                to_queries[node, d] += push * messages[other, d]
                to_messages[other, d] += push * queries[node, d]
