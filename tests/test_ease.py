"""EASE: a golden case, each column as a regression of its own, pooling, memory, refusals."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from contract import PersonalScorerContract
from scipy.sparse import csr_array

from musketeers.baselines.ease import (
    EaseSettings,
    PooledEaseSettings,
    ease,
    item_regression,
    pooled_ease,
)
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.ranking import top_k
from musketeers.seeding import Seed


def only(train):
    """A split that holds nothing out."""
    no_items = np.empty(0, dtype=np.int32)
    empty = Interactions.from_csr(0 * train.indptr, no_items, n_items=train.n_items)
    return Split(train, empty, empty)


class TestContract(PersonalScorerContract):
    def fit(self, train):
        return ease(only(train), EaseSettings(regularization=1.0))


class TestPooledContract(PersonalScorerContract):
    def fit(self, train):
        settings = PooledEaseSettings(regularization=1.0)
        return pooled_ease({"a": only(train), "b": only(train)}, "a", settings)


def pairs(n_users, n_items, *, entropy, share=0.3):
    users, items = np.nonzero(Seed(entropy).numpy().random((n_users, n_items)) < share)
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def dense(train):
    matrix = np.zeros((train.n_users, train.n_items))
    matrix[train.users(), train.items] = 1
    return matrix


def by_definition(inputs, n_items, regularization):
    """For each item a ridge regression of its column on all other columns."""
    weights = np.zeros((inputs.shape[1], n_items))
    for item in range(n_items):
        others = np.arange(inputs.shape[1]) != item
        x, y = inputs[:, others], inputs[:, item]
        weights[others, item] = np.linalg.solve(
            x.T @ x + regularization * np.eye(x.shape[1]), x.T @ y
        )
    return weights


def test_golden_three_by_three():
    # The rows 110, 011 and 010: the products are [1 1 0; 1 3 1; 0 1 1].  With 1 added to their
    # diagonal the regression of item 0 on items 1 and 2 solves [4 1; 1 2] b = [1; 0], so
    # b = [2; -1] / 7; that of item 1 solves [2 0; 0 2] b = [1; 1], so b = [1; 1] / 2.
    train = Interactions.from_pairs(
        np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 1]), n_users=3, n_items=3
    )
    model = ease(only(train), EaseSettings(regularization=1.0))
    expected = [
        [Fraction(0), Fraction(1, 2), Fraction(-1, 7)],
        [Fraction(2, 7), Fraction(0), Fraction(2, 7)],
        [Fraction(-1, 7), Fraction(1, 2), Fraction(0)],
    ]
    np.testing.assert_allclose(model.weights, np.array(expected, dtype=float), rtol=1e-6)
    np.testing.assert_array_equal(np.diag(model.weights), 0)
    np.testing.assert_allclose(model.score(np.array([2]))[0], [2 / 7, 0, 2 / 7], rtol=1e-6)


@pytest.mark.parametrize("regularization", [0.1, 5.0, 1000.0])
def test_each_column_is_a_ridge_regression_on_the_others(regularization):
    train = pairs(40, 15, entropy=1)
    model = ease(only(train), EaseSettings(regularization))
    expected = by_definition(dense(train), 15, regularization)
    np.testing.assert_allclose(model.weights, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("regularization", [0.1, 5.0, 1000.0])
def test_fewer_users_than_items_give_the_same_from_the_smaller_inverse(regularization):
    # more items than are made at once, and users without any
    train = pairs(40, 300, entropy=1, share=0.1)
    train = Interactions.from_pairs(train.users() * 2, train.items, n_users=80, n_items=300)
    model = ease(only(train), EaseSettings(regularization))
    expected = by_definition(dense(train), 300, regularization)
    np.testing.assert_allclose(model.weights, expected, rtol=1e-5, atol=1e-7)


def test_inputs_that_are_no_items_and_no_ones():
    make = Seed(2).numpy()
    inputs = make.standard_normal((30, 9)).astype(np.float32)
    model = item_regression(csr_array(inputs), 4, regularization=2.0, max_bytes=2**20)
    assert model.weights.shape == (9, 4)
    expected = by_definition(inputs.astype(np.float64), 4, 2)
    np.testing.assert_allclose(model.weights, expected, rtol=1e-5, atol=1e-7)


def three_domains():
    """The same 50 users in domains of 8, 6 and 7 items; the first ten are unknown to `a`."""
    splits = {name: only(pairs(50, n, entropy=n)) for name, n in (("a", 8), ("b", 6), ("c", 7))}
    known = splits["a"].train.users() >= 10
    train = splits["a"].train
    users, items = train.users()[known], train.items[known]
    splits["a"] = only(Interactions.from_pairs(users, items, n_users=50, n_items=8))
    return splits


def test_pooling_is_regression_on_the_scaled_columns_of_all():
    splits = three_domains()
    settings = PooledEaseSettings(3.0, {"a": 0.25})
    model = pooled_ease(splits, "b", settings)
    blocks = [dense(splits["b"].train), 0.25 * dense(splits["a"].train)]
    inputs = np.hstack([*blocks, 0.5 * dense(splits["c"].train)])
    np.testing.assert_array_equal(model.inputs.toarray(), inputs)
    np.testing.assert_allclose(model.weights, by_definition(inputs, 6, 3), rtol=1e-5, atol=1e-7)


def test_sources_of_weight_zero_leave_plain_ease():
    splits = three_domains()
    pooled = pooled_ease(splits, "c", PooledEaseSettings(20.0, {"a": 0.0, "b": 0.0}))
    alone = ease(splits["c"], EaseSettings(20.0))
    assert pooled.weights.tobytes() == alone.weights.tobytes()
    assert pooled.inputs.shape == alone.inputs.shape


def test_users_unknown_to_the_target_are_scored_from_the_sources():
    splits, unknown = three_domains(), np.arange(10)
    assert not splits["a"].train.known_users()[unknown].any()
    alone = ease(splits["a"], EaseSettings(5.0))
    pooled = pooled_ease(splits, "a", PooledEaseSettings(5.0))
    np.testing.assert_array_equal(alone.score(unknown), 0)
    assert (np.ptp(pooled.score(unknown), axis=1) > 0).all()


def test_the_same_bits_again():
    train, users = pairs(80, 60, entropy=3), np.arange(80)
    first, second = (ease(only(train), EaseSettings()) for _ in range(2))
    assert first.weights.tobytes() == second.weights.tobytes()
    one = top_k(first, users, k=5, seen=train, n_threads=1)
    two = top_k(second, users, k=5, seen=train, n_threads=2)
    assert one.items.tobytes() == two.items.tobytes()
    assert one.scores.tobytes() == two.scores.tobytes()


@pytest.mark.parametrize("n_items", [0, 1, 3])
def test_nothing_to_learn_from_gives_weights_of_zero(n_items):
    nothing = np.empty(0, int)
    train = Interactions.from_pairs(nothing, nothing, n_users=2, n_items=n_items)
    model = ease(only(train), EaseSettings())
    np.testing.assert_array_equal(model.weights, np.zeros((n_items, n_items)))


def test_what_does_not_fit_is_refused_before_it_starts():
    train = Interactions.from_pairs(np.array([0]), np.array([9]), n_users=1, n_items=1_000_000)
    tracemalloc.start()
    message = (
        r"EASE of 1,000,000 items on 1,000,000 inputs needs 4,001,024,001,032 bytes, more than "
        r"max_bytes = 8,589,934,592; raise it, or keep fewer items \(a larger data.min_item\)"
    )
    with pytest.raises(ConfigError, match=message):
        ease(only(train), EaseSettings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    for n_users, needed in ((15, 1200), (9, 8 * 9**2 + 4 * 10**2 + 16 * 64 * 19)):
        small = pairs(n_users, 10, entropy=4, share=0.6)
        assert ease(only(small), EaseSettings(max_bytes=needed)).n_items == 10
        with pytest.raises(ConfigError, match=f"needs {needed:,} bytes"):
            ease(only(small), EaseSettings(max_bytes=needed - 1))


@pytest.mark.parametrize(
    ("n_users", "inverse"), [(700, 8 * 600**2), (300, 8 * 300**2 + 16 * 64 * 900)]
)
def test_takes_no_more_memory_than_stated(n_users, inverse):
    splits = {
        "a": only(pairs(n_users, 400, entropy=5, share=0.02)),
        "b": only(pairs(n_users, 200, entropy=6, share=0.02)),
    }
    pooled_ease(splits, "a", PooledEaseSettings())
    tracemalloc.start()
    pooled_ease(splits, "a", PooledEaseSettings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stated = inverse + 4 * 600 * 400
    assert 0.9 * stated < peak < 1.1 * stated


def test_impossible_settings_are_refused():
    for bad in (0.0, -1.0, np.nan, np.inf):
        for settings in (EaseSettings, PooledEaseSettings):
            with pytest.raises(ConfigError, match=f"regularization is {bad}; it must be above 0"):
                settings(bad)
    with pytest.raises(ConfigError, match=r"weight of source 'b' is -0.5; it must be >= 0"):
        PooledEaseSettings(source_weights={"b": -0.5})
    named = PooledEaseSettings(source_weights={"a": 1.0, "d": 1.0})
    with pytest.raises(ConfigError, match="names a, d, but the sources of a are b, c"):
        pooled_ease(three_domains(), "a", named)


def test_a_penalty_that_rounding_swallows_is_refused():
    same = Interactions.from_pairs(
        np.repeat(np.arange(9), 2), np.tile([0, 1], 9), n_users=9, n_items=2
    )
    with pytest.raises(ConfigError, match="regularization is 1e-18, too small beside"):
        ease(only(same), EaseSettings(regularization=1e-18))
