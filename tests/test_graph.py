"""The smoothing of vectors along a graph: against dense matrices, and as its own transpose."""

import numpy as np
import pytest

from musketeers.baselines.graph import Graph
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.seeding import Seed


def trains():
    splits = planted(("tv", "film"), Seed(0), n_users=30, n_items=20, known=0.6).splits
    return [split.train for split in splits.values()]


def dense(graph, layers):
    """The mean of the first powers of D^-1/2 A D^-1/2, from the graph's own rows."""
    size = len(graph.scales)
    edges = np.zeros((size, size))
    edges[graph.neighbours.users(), graph.neighbours.items] = 1
    degrees = edges.sum(1)
    scales = np.divide(1, np.sqrt(degrees), out=np.zeros(size), where=degrees > 0)
    step = scales[:, None] * edges * scales
    return sum(np.linalg.matrix_power(step, layer) for layer in range(layers + 1)) / (layers + 1)


def table(graph, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((len(graph.scales), dim)).astype(np.float32)


def test_one_user_and_two_items_by_hand():
    train = Interactions.from_pairs(np.array([0, 0]), np.array([0, 1]), n_users=2, n_items=2)
    graph = Graph.pooled([train])
    # nodes: the user, a user without items, the two items; one step weighs an edge 1 / sqrt(2)
    vectors = np.array([[2.0], [4.0], [6.0], [8.0]], np.float32)
    root = np.sqrt(2)
    np.testing.assert_allclose(
        graph.smooth(vectors, 1, n_threads=1),
        np.array([[2 + 14 / root], [4], [6 + 2 / root], [8 + 2 / root]]) / 2,
        rtol=1e-6,
    )


def test_pooled_users_join_the_domains_and_users_apart_do_not():
    first, second = trains()
    n_users, n_items = first.n_users, first.n_items
    pooled, apart = Graph.pooled([first, second]), Graph.apart([first, second])
    assert pooled.users == (slice(0, n_users), slice(0, n_users))
    assert len(pooled.scales) == n_users + 2 * n_items
    assert len(apart.scales) == 2 * (n_users + n_items)
    for graph in (pooled, apart):
        assert len(graph.neighbours) == 2 * (len(first) + len(second))
        for place, train in enumerate((first, second)):
            for user in range(n_users):
                mine = graph.neighbours.of(graph.users[place].start + user)
                items = graph.items[place]
                mine = mine[(mine >= items.start) & (mine < items.stop)]
                np.testing.assert_array_equal(mine - items.start, train.of(user))
    reached = apart.smooth(np.eye(len(apart.scales), dtype=np.float32), 3, n_threads=1)
    assert not reached[: n_users + n_items, n_users + n_items :].any()


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("build", [Graph.pooled, Graph.apart])
def test_smoothing_is_the_mean_of_matrix_powers(layers, build):
    graph = build(trains())
    vectors = table(graph, 5)
    before = vectors.copy()
    smoothed = graph.smooth(vectors, layers, n_threads=1)
    assert smoothed.dtype == np.float32
    np.testing.assert_allclose(smoothed, dense(graph, layers) @ vectors, atol=1e-5)
    np.testing.assert_array_equal(vectors, before)


def test_smoothing_is_its_own_transpose():
    graph = Graph.pooled(trains())
    one, other = (table(graph, 3, seed).astype(np.float64) for seed in (0, 1))
    there = (graph.smooth(one, 3, n_threads=1) * other).sum()
    back = (one * graph.smooth(other, 3, n_threads=1)).sum()
    assert there == pytest.approx(back, rel=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    graph = Graph.pooled(trains())
    vectors = table(graph, 7)
    results = {graph.smooth(vectors, 3, n_threads=n).tobytes() for n in (1, 2, 3)}
    assert len(results) == 1
