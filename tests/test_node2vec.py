"""node2vec: steps of its definition, the objective it climbs, and what lies where."""

from itertools import pairwise

import numpy as np
import pytest
from contract import two_camps

from musketeers.baselines import node2vec as module
from musketeers.baselines.graph import Graph
from musketeers.baselines.node2vec import Node2vecSettings, node2vec, walks_from
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError
from musketeers.seeding import Seed


def small(seed=0):
    options = {"n_users": 40, "n_items": 15, "known": 0.7, "pairs_per_user": 4}
    return planted(("tv", "film"), Seed(seed), **options).splits["tv"].train


def definition(neighbours, before, here, *, p, q):
    """Grover and Leskovec's chances of the next node, by the distance from the node before."""
    to = neighbours.of(here).tolist()
    around = set(neighbours.of(before).tolist())
    weights = [1 / p if node == before else 1 if node in around else 1 / q for node in to]
    return dict(zip(to, np.array(weights) / sum(weights), strict=True))


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (0.25, 1.0), (2.0, 0.5), (1.0, 4.0)])
def test_steps_are_as_likely_as_by_the_definition_with_p_and_q(p, q):
    # users 0..2 and items 3..6; item 3 has all users, user 0 all items, user 2 one item
    pairs = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [2, 0]]).T
    train = Interactions.from_pairs(*pairs, n_users=3, n_items=4)
    neighbours = Graph.apart([train]).neighbours
    settings = Node2vecSettings(return_weight=q / p, length=4)
    walks = walks_from(np.zeros(200_000, int), neighbours, settings, np.random.default_rng(0))
    seen = 0
    for before in range(7):
        for here in neighbours.of(before).tolist():
            rows = walks[(walks[:, 1] == before) & (walks[:, 2] == here)]
            if not len(rows):
                continue
            expected = definition(neighbours, before, here, p=p, q=q)
            found = np.bincount(rows[:, 3], minlength=7) / len(rows)
            for node in range(7):
                chance = expected.get(node, 0.0)
                slack = 5 * np.sqrt(chance * (1 - chance) / len(rows))
                assert abs(found[node] - chance) <= slack, (before, here, node)
            seen += 1
    assert seen == 7


def test_walks_go_along_edges_from_their_starts():
    neighbours = Graph.apart([small()]).neighbours
    starts = np.flatnonzero(neighbours.counts())
    settings = Node2vecSettings(return_weight=0.3)
    walks = walks_from(starts, neighbours, settings, np.random.default_rng(0))
    assert walks.shape == (len(starts), 30)
    np.testing.assert_array_equal(walks[:, 0], starts)
    for walk in walks.tolist():
        assert all(there in neighbours.of(here) for here, there in pairwise(walk))


def test_negatives_come_in_proportion_to_degree_to_the_three_quarters():
    neighbours = Graph.apart([small()]).neighbours
    share = neighbours.counts() ** 0.75
    found = np.bincount(module._negatives(neighbours), minlength=len(share))
    np.testing.assert_allclose(found / found.sum(), share / share.sum(), atol=1e-3)
    assert (found[share == 0] == 0).all()


def test_a_step_is_the_slope_of_the_skip_gram_objective():
    """A walk of two nodes, each once the center, with one negative; by finite differences."""
    rng = np.random.default_rng(0)
    tables, rate, drawn = rng.standard_normal((2, 3, 5)), 1e-2, 2
    inputs, outputs = tables.astype(np.float32)
    walks, negatives = np.array([[0, 1]], np.int32), np.array([drawn], np.int32)
    rates = np.full(2, rate, np.float32)
    module._learn(walks, inputs, outputs, negatives, 1, 1, rates, np.uint64(1))
    for center, near in ((0, 1), (1, 0)):

        def objective(inputs, outputs, center=center, near=near):
            liked, other = inputs[center] @ outputs[near], inputs[center] @ outputs[drawn]
            return -np.logaddexp(0, -liked) - np.logaddexp(0, other)

        slopes = np.zeros_like(tables)
        for place in np.ndindex(tables.shape):
            step = np.zeros_like(tables)
            step[place] = 1e-6
            slopes[place] = (objective(*(tables + step)) - objective(*(tables - step))) / 2e-6
        before = objective(*tables)
        tables = tables + rate * slopes
        assert objective(*tables) > before
    np.testing.assert_allclose(np.stack([inputs, outputs]), tables, atol=1e-5)


def test_users_lie_near_the_items_of_their_camp():
    train, _ = two_camps()
    found = node2vec(train, Node2vecSettings(walks=50), Seed(0), dim=8)
    together = np.concatenate([found.users, found.items])
    together /= np.linalg.norm(together, axis=1, keepdims=True)
    near = together @ together.T
    side = np.arange(len(near)) % 2
    same = side[:, None] == side
    assert near[same].min() > near[~same].max()


def test_who_has_no_pair_has_zeros_and_changes_nobody():
    train = small()
    missing = ~train.known_users()
    found = node2vec(train, Node2vecSettings(walks=2), Seed(0), dim=4)
    assert 0 < missing.sum() < len(missing)
    assert found.users.dtype == np.float32
    assert (found.users[missing] == 0).all()
    assert (np.abs(found.users[~missing]).max(axis=1) > 0).all()
    assert found.items.shape == (train.n_items, 4)


def test_the_same_seed_gives_the_same_bits():
    def bits(seed):
        found = node2vec(small(), Node2vecSettings(walks=2), Seed(seed), dim=4)
        return found.users.tobytes() + found.items.tobytes()

    assert bits(0) == bits(0) != bits(1)


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [("walks", 0, "at least 1"), ("length", 1, "at least 2"), ("window", 0, "at least 1"),
     ("negatives", 0, "at least 1"), ("return_weight", 0.0, "a number above 0"),
     ("learning_rate", float("nan"), "a number above 0")],
)  # fmt: skip
def test_bad_settings_are_refused(setting, value, rule):
    with pytest.raises(ConfigError, match=f"^{setting} is {value}; it must be {rule}"):
        Node2vecSettings(**{setting: value})
