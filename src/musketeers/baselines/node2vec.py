"""Vectors of one domain's users and items from random walks over who touched what (node2vec)."""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Int, Int32
from numba import njit

from musketeers.baselines.graph import Graph
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.seeding import Seed

_PLACES_PER_NODE = 64
"""Length of the table that negatives are drawn from; the rarest nodes still have a place or two."""


@dataclass(frozen=True, slots=True)
class Node2vecSettings:
    """How the graph is walked, and how vectors are learned from the walks."""

    walks: int = 10
    """Walks from every node."""
    length: int = 30
    """Nodes of a walk, its start included."""
    return_weight: float = 1.0
    """How likely a walk turns back, beside 1 for each other neighbour: node2vec's q / p.  No two
    neighbours in a bipartite graph have a third in common, so p and q count as a ratio only."""
    window: int = 5
    """Most steps between two nodes of a walk that are taken for neighbours."""
    negatives: int = 5
    """Nodes drawn against each neighbour."""
    learning_rate: float = 0.1
    """Of the first walk; falls along a line to nearly 0 at the last."""

    def __post_init__(self) -> None:
        for name, least in (("walks", 1), ("length", 2), ("window", 1), ("negatives", 1)):
            value: int = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")
        for name in ("return_weight", "learning_rate"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a number above 0")


@dataclass(frozen=True, slots=True, eq=False)
class NodeVectors:
    """One row for each user and item; zeros for those without any pair."""

    users: Float32[np.ndarray, "user dim"]
    items: Float32[np.ndarray, "item dim"]


def node2vec(
    train: Interactions, settings: Node2vecSettings, seed: Seed, *, dim: int
) -> NodeVectors:
    """Skip-gram with negative sampling over walks in the bipartite graph of the training pairs.

    Grover and Leskovec (KDD 2016), with the training of word2vec (Mikolov et al., NIPS 2013): a
    random part of the window, negatives in proportion to degree^0.75, a falling learning rate.
    Bitwise repeatable.  Memory is two tables and one walk from every node.
    """
    graph = Graph.apart([train])
    starts = np.flatnonzero(graph.scales)
    inputs = np.zeros((len(graph.scales), dim), np.float32)
    rng = seed.child("init").numpy()
    inputs[starts] = (rng.random((len(starts), dim), dtype=np.float32) - 0.5) / np.float32(dim)
    outputs, table = np.zeros_like(inputs), _negatives(graph.neighbours)
    for number in range(settings.walks):
        stream = seed.child("walks", str(number))
        rng = stream.numpy()
        walks = walks_from(rng.permutation(starts), graph.neighbours, settings, rng)
        rates = settings.learning_rate * (1 - np.array([number, number + 1]) / settings.walks)
        _learn(
            walks, inputs, outputs, table, settings.window, settings.negatives,
            np.maximum(rates, 1e-4 * settings.learning_rate).astype(np.float32),
            np.uint64(stream.child("skip-gram").integer()),
        )  # fmt: skip
    return NodeVectors(inputs[graph.users[0]], inputs[graph.items[0]])


def walks_from(
    starts: Int[np.ndarray, " walk"],
    neighbours: Interactions,
    settings: Node2vecSettings,
    rng: np.random.Generator,
) -> Int32[np.ndarray, "walk step"]:
    """One walk from each start; `neighbours` is a bipartite graph and no start is without any.

    A step goes back with probability r / (r + d - 1), for d neighbours and r the return weight,
    else to one of the other neighbours, all equally likely.
    """
    walks = np.empty((len(starts), settings.length), np.int32)
    walks[:, 0] = starts
    degrees = neighbours.counts()
    weight = settings.return_weight
    for step in range(1, settings.length):
        here = walks[:, step - 1]
        first, degree = neighbours.indptr[here], degrees[here]
        if step == 1:
            walks[:, step] = neighbours.items[first + rng.integers(degree)]
            continue
        before = walks[:, step - 2]
        back = rng.random(len(starts)) * (weight + degree - 1) < weight
        # one of the others: the last neighbour stands in for the one where the walk came from
        chosen = neighbours.items[first + rng.integers(np.maximum(degree - 1, 1))]
        chosen = np.where(chosen == before, neighbours.items[first + degree - 1], chosen)
        walks[:, step] = np.where(back, before, chosen)
    return walks


def _negatives(neighbours: Interactions) -> Int32[np.ndarray, " place"]:
    """Nodes, each as often as in proportion to degree^0.75, to be drawn from uniformly."""
    ends = np.cumsum(neighbours.counts() ** 0.75)
    n_places = _PLACES_PER_NODE * len(ends)
    places = (np.arange(n_places) + 0.5) / n_places * ends[-1]
    return np.searchsorted(ends, places, side="right").astype(np.int32)


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True, inline="always")
@no_type_check
def _random(state, n):
    """A number below n: the high half of SplitMix64 (Steele et al., OOPSLA 2014), scaled."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
@no_type_check
def _learn(walks, inputs, outputs, table, window, negatives, rates, state):  # noqa: C901
    """Climb the skip-gram objective along the walks; the rate falls from the first to the last.

    For each node c and each o near it: log s(c.o) + sum over negatives n of log s(-c.n), where c
    is a row of `inputs`, o and n are of `outputs`, and s is the logistic function.
    """
    dim = inputs.shape[1]
    one = np.float32(1)
    moved = np.empty(dim, np.float32)
    for number in range(len(walks)):
        walk = walks[number]
        rate = rates[0] + (rates[1] - rates[0]) * np.float32(number / len(walks))
        for place in range(len(walk)):
            center = walk[place]
            state += np.uint64(0x9E3779B97F4A7C15)
            reach = 1 + np.int64(_random(state, window))
            for near in range(max(0, place - reach), min(len(walk), place + reach + 1)):
                if near == place:
                    continue
                moved[:] = 0
                for draw in range(negatives + 1):
                    other = walk[near]
                    if draw:
                        state += np.uint64(0x9E3779B97F4A7C15)
                        other = table[_random(state, len(table))]
                        if other == walk[near]:
                            continue
                    score = np.float32(0)
                    for d in range(dim):
                        score += inputs[center, d] * outputs[other, d]
                    share = one / (one + np.exp(-score))
                    push = rate * ((np.float32(0) if draw else one) - share)
                    for d in range(dim):
                        moved[d] += push * outputs[other, d]
                        outputs[other, d] += push * inputs[center, d]
                for d in range(dim):
                    inputs[center, d] += moved[d]
