"""The GraphSAGE encoder: against a slow definition, its slopes, its samples and its start."""

import numpy as np
import pytest

from musketeers.baselines.graph import Graph
from musketeers.baselines.sage import Sage
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.seeding import Seed

DIM = 5


def graph():
    splits = planted(("tv", "film"), Seed(0), n_users=30, n_items=20, known=0.6).splits
    return Graph.pooled([split.train for split in splits.values()])


def encoder(layers=2, neighbours=4):
    """In float64, far from the weights that training starts with."""
    start = Sage.of(graph(), layers, Seed(1), neighbours=neighbours, dim=DIM)
    rng = np.random.default_rng(2)
    weights = {
        name: values + 0.3 * rng.standard_normal(values.shape)
        for name, values in start.weights.items()
    }
    return Sage(start.graph, layers, neighbours, weights)


def table(sage, seed=0):
    return np.random.default_rng(seed).standard_normal((len(sage.graph.scales), DIM))


def sampled(neighbours, node, most, start):
    mine = neighbours.of(node)
    n = min(len(mine), most)
    return [int(mine[int((k + float(start)) * len(mine) / n)]) for k in range(n)]


def slow(sage, vectors, starts):
    """The class's formulas, node by node."""
    for layer in range(sage.layers):
        pool, bias, query, own, near = (
            sage.weights[f"{layer}/{part}"] for part in ("pool", "bias", "query", "own", "near")
        )
        made = np.empty_like(vectors)
        for node, vector in enumerate(vectors):
            others = sampled(sage.graph.neighbours, node, sage.neighbours, starts[node])
            pooled = np.zeros(DIM)
            if others:
                messages = np.maximum(vectors[others] @ pool + bias, 0)
                powers = np.exp(messages @ (vector @ query) / np.sqrt(DIM))
                attention = powers / powers.sum()
                pooled = (len(others) * attention[:, None] * messages).max(axis=0)
            made[node] = vector @ own + pooled @ near
            if layer < sage.layers - 1:
                made[node] = np.maximum(made[node], 0)
        vectors = made
    return vectors


@pytest.mark.parametrize("neighbours", [1, 4, 256])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_vectors_are_their_definition_node_by_node(layers, neighbours):
    sage = encoder(layers, neighbours)
    vectors = table(sage)
    made, _ = sage.encode(vectors, np.random.default_rng(3))
    starts = np.random.default_rng(3).random(len(vectors), np.float32)
    np.testing.assert_allclose(made, slow(sage, vectors, starts), rtol=1e-9, atol=1e-9)
    made, _ = sage.encode(vectors, None)
    half = np.full(len(vectors), 0.5)
    np.testing.assert_allclose(made, slow(sage, vectors, half), rtol=1e-9, atol=1e-9)


def test_a_user_and_two_items_by_hand():
    train = Interactions.from_pairs(np.array([0, 0]), np.array([0, 1]), n_users=2, n_items=2)
    ones = np.ones((1, 1))
    weights = {"0/pool": 2 * ones, "0/bias": ones, "0/query": 0 * ones}
    weights |= {"0/own": ones, "0/near": 10 * ones}
    sage = Sage(Graph.pooled([train]), 1, 4, weights)
    made, _ = sage.encode(np.array([[1.0], [2.0], [3.0], [-4.0]]), None)
    # messages: 3, 5, 7, 0; the second user has no neighbour to hear from
    np.testing.assert_allclose(made, [[71.0], [2.0], [33.0], [26.0]])
    weights["0/query"] = np.log(3) / 7 * ones
    made, _ = sage.encode(np.array([[1.0], [2.0], [3.0], [-4.0]]), None)
    # the first user looks at the item of 7 three times as much as at the other: 2 * 3/4 * 7
    np.testing.assert_allclose(made[0], 1 + 10 * 10.5)


@pytest.mark.parametrize("layers", [1, 2])
def test_slopes_equal_central_differences_in_the_table_and_in_every_weight(layers):
    sage = encoder(layers)
    vectors = table(sage)
    target = table(sage, seed=4)

    def loss():
        made, _ = sage.encode(vectors, np.random.default_rng(5))
        return float((target * made).sum())

    _, back = sage.encode(vectors, np.random.default_rng(5))
    of_table, of_weights = back(target)
    assert set(of_weights) == set(sage.weights)
    rng = np.random.default_rng(6)
    for values, slope in [(vectors, of_table)] + [
        (values, of_weights[name]) for name, values in sage.weights.items()
    ]:
        direction = rng.standard_normal(values.shape)
        start, found = values.copy(), []
        for step in (1e-6, -1e-6):
            values[:] = start + step * direction
            found.append(loss())
        values[:] = start
        measured = (found[0] - found[1]) / 2e-6
        assert slope.shape == values.shape
        assert abs(measured) > 1e-2
        assert (slope * direction).sum() == pytest.approx(measured, rel=1e-4)


def test_every_neighbour_is_sampled_equally_often_and_none_twice():
    # ten users touched each of many items; the vector of a user is its own unit vector
    users, items = np.divmod(np.arange(10 * 2000), 2000)
    train = Interactions.from_pairs(users, items, n_users=10, n_items=2000)
    vectors = np.eye(2010, 10, dtype=np.float32)
    none, unit = np.zeros((10, 10), np.float32), np.eye(10, dtype=np.float32)
    weights = {"0/pool": unit, "0/bias": none[:1], "0/query": none, "0/own": none, "0/near": unit}
    sage = Sage(Graph.pooled([train]), 1, 4, weights)
    heard = sage.encode(vectors, np.random.default_rng(0))[0][10:]
    assert set(np.unique(heard)) == {0, 1}
    np.testing.assert_array_equal(heard.sum(axis=1), 4)
    assert np.abs(heard.mean(axis=0) - 0.4).max() < 0.04


def test_before_training_a_layer_keeps_vectors_and_attention_is_even():
    sage = Sage.of(graph(), 1, Seed(1), neighbours=4, dim=DIM)
    vectors = table(sage).astype(np.float32)
    made, _ = sage.encode(vectors, None)
    np.testing.assert_array_equal(made, vectors)
    sage.weights["0/near"][:] = np.eye(DIM)
    made, _ = sage.encode(vectors, None)
    for node in range(len(vectors)):
        others = sampled(sage.graph.neighbours, node, 4, 0.5)
        messages = np.maximum(vectors[others] @ sage.weights["0/pool"], 0)
        pooled = messages.max(axis=0) if others else 0
        np.testing.assert_allclose(made[node], vectors[node] + pooled, atol=1e-6)


def test_the_same_stream_gives_the_same_bits_and_nothing_is_changed():
    sage = Sage.of(graph(), 2, Seed(1), neighbours=4, dim=DIM)
    vectors = table(sage).astype(np.float32)
    before = vectors.copy()

    def bits(seed):
        made, back = sage.encode(vectors, np.random.default_rng(seed))
        of_table, of_weights = back(made)
        return b"".join(part.tobytes() for part in (made, of_table, *of_weights.values()))

    assert bits(0) == bits(0) != bits(1)
    np.testing.assert_array_equal(vectors, before)
