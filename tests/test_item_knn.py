"""ItemKNN: a golden case, the slow definition, ties, the bound on neighbours, refusals."""

import math

import numpy as np
import pytest
from contract import PersonalScorerContract

from musketeers.baselines.item_knn import ItemKnnSettings, item_knn
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.seeding import Seed


def only(train):
    """A split that holds nothing out."""
    no_items = np.empty(0, dtype=np.int32)
    empty = Interactions.from_csr(0 * train.indptr, no_items, n_items=train.n_items)
    return Split(train, empty, empty)


class TestContract(PersonalScorerContract):
    def fit(self, train):
        return item_knn(only(train), ItemKnnSettings())


class TestContractOfFewNeighbors(PersonalScorerContract):
    def fit(self, train):
        return item_knn(only(train), ItemKnnSettings(neighbors=2, activity_power=0.0))


def pairs(n_users, n_items, *, entropy, share=0.3):
    users, items = np.nonzero(Seed(entropy).numpy().random((n_users, n_items)) < share)
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def by_definition(train, settings):
    """Every pair of items, every user; then the best of each column, ties to the lower rows."""
    touched = [set(train.of(user).tolist()) for user in range(train.n_users)]
    voice = [len(items) ** -settings.activity_power if items else 0 for items in touched]

    def shared(*items):
        return sum(v for v, t in zip(voice, touched, strict=True) if t.issuperset(items))

    weights = np.zeros((train.n_items, train.n_items))
    for item in range(train.n_items):
        likeness = {
            other: shared(item, other)
            / (math.sqrt(shared(item) * shared(other)) + settings.shrinkage)
            for other in range(train.n_items)
            if other != item and shared(item, other)
        }
        best = sorted(likeness, key=lambda other: (-likeness[other], other))
        for other in best[: settings.neighbors]:
            weights[other, item] = likeness[other]
    return weights


def test_golden_similarities():
    train = Interactions.from_pairs(
        np.array([0, 0, 1, 1, 2, 2, 2, 2]), np.array([0, 1, 0, 1, 0, 1, 2, 3]),
        n_users=4, n_items=5,
    )  # fmt: skip
    model = item_knn(only(train), ItemKnnSettings(neighbors=1, shrinkage=1.0, activity_power=0.0))
    expected = np.zeros((5, 5))
    expected[1, 0] = expected[0, 1] = 3 / (3 + 1)
    expected[3, 2] = expected[2, 3] = 1 / (1 + 1)
    np.testing.assert_array_equal(model.weights.toarray(), expected)
    np.testing.assert_array_equal(
        model.score(np.array([2, 0, 3])),
        [[0.75, 0.75, 0.5, 0.5, 0], [0.75, 0.75, 0, 0, 0], [0, 0, 0, 0, 0]],
    )


def test_a_user_of_many_items_counts_less():
    train = Interactions.from_pairs(
        np.array([0, 0, 1, 1, 1, 1]), np.array([0, 1, 0, 1, 2, 3]), n_users=2, n_items=4
    )
    model = item_knn(only(train), ItemKnnSettings(shrinkage=0.0, activity_power=1.0))
    assert model.weights[0, 1] == np.float32(1)
    assert model.weights[2, 0] == np.float32(0.25 / math.sqrt(0.75 * 0.25))


@pytest.mark.parametrize("neighbors", [1, 3, 100])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shrinkage", [0.0, 10.0])
def test_is_the_definition(neighbors, power, shrinkage):
    settings = ItemKnnSettings(neighbors, shrinkage, power)
    train = pairs(25, 12, entropy=4)
    weights = item_knn(only(train), settings).weights
    np.testing.assert_allclose(weights.toarray(), by_definition(train, settings), rtol=1e-6, atol=0)
    assert (np.bincount(weights.indices, minlength=12) <= neighbors).all()


def test_equally_similar_items_are_kept_by_row():
    everyone, everything = np.divmod(np.arange(3 * 6), 6)
    train = Interactions.from_pairs(everyone, everything, n_users=3, n_items=6)
    weights = item_knn(only(train), ItemKnnSettings(neighbors=2)).weights.toarray()
    kept = [np.flatnonzero(column).tolist() for column in weights.T]
    assert kept == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_the_same_bits_again():
    train = pairs(40, 30, entropy=5)
    first, second = (item_knn(only(train), ItemKnnSettings(neighbors=7)) for _ in range(2))
    users = np.arange(40)
    assert first.weights.data.tobytes() == second.weights.data.tobytes()
    assert first.score(users).tobytes() == second.score(users).tobytes()


@pytest.mark.parametrize("n_items", [0, 1, 3])
def test_nothing_in_common_gives_no_neighbors(n_items):
    nothing = np.empty(0, int)
    train = Interactions.from_pairs(nothing, nothing, n_users=2, n_items=n_items)
    model = item_knn(only(train), ItemKnnSettings())
    np.testing.assert_array_equal(model.score(np.arange(2)), np.zeros((2, n_items)))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="neighbors is 0; keep at least 1"):
        ItemKnnSettings(neighbors=0)
    for bad in (-1.0, math.nan):
        with pytest.raises(ConfigError, match=f"shrinkage is {bad}; it must be at least 0"):
            ItemKnnSettings(shrinkage=bad)
