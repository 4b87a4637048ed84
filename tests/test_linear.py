"""Linear: the slow definition, dense and sparse weights alike, exact bits, a bound that holds."""

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from contract import PersonalScorerContract
from hypothesis import given, settings
from scipy.sparse import csr_array, hstack

from musketeers.baselines.linear import Linear, history
from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.ranking import top_k
from musketeers.seeding import Seed

KINDS = {"dense": np.asarray, "sparse": csr_array}
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def shared_users(train):
    inputs = history(train)
    return inputs, (inputs.T @ inputs).toarray()


class TestDenseContract(PersonalScorerContract):
    def fit(self, train):
        return Linear.of(*shared_users(train))


class TestSparseContract(PersonalScorerContract):
    def fit(self, train):
        inputs, shared = shared_users(train)
        return Linear.of(inputs, csr_array(shared))


class TestMoreInputsThanItemsContract(PersonalScorerContract):
    def fit(self, train):
        inputs, shared = shared_users(train)
        describing = csr_array(np.ones((train.n_users, 2), dtype=np.float32))
        weights = np.vstack([shared, np.full((2, train.n_items), 0.5, dtype=np.float32)])
        return Linear.of(hstack([inputs, describing], format="csr"), weights)


def random_model(kind, *, entropy, scale=1.0):
    """Half of the inputs and of the weights are 0; user 0 has no input."""
    make = Seed(entropy).numpy()
    inputs, weights = (make.standard_normal(size, dtype=np.float32) for size in ((5, 9), (9, 7)))
    for numbers in (inputs, weights):
        numbers[make.random(numbers.shape) < 0.5] = 0
    inputs[0] = 0
    return Linear.of(csr_array(inputs), kind(weights * np.float32(scale)))


def everything(model, users):
    return np.tile(np.arange(model.n_items), (len(users), 1))


def as_array(matrix):
    return matrix.toarray() if isinstance(matrix, csr_array) else matrix


@both
def test_golden_scores(kind):
    inputs = csr_array(np.array([[1, 0, 2], [0, 0, 0]], dtype=np.float32))
    weights = kind(np.array([[1, -3], [7, 7], [0, 5]], dtype=np.float32))
    model, users = Linear.of(inputs, weights), np.array([1, 0])
    np.testing.assert_array_equal(model.score(users), [[0, 0], [1, 7]])
    np.testing.assert_array_equal(model.exact(users, np.array([[0, 1], [1, 1]])), [[0, 0], [7, 7]])
    np.testing.assert_array_equal(model.largest, [3, 7, 5])
    assert model.n_items == 2


@both
def test_exact_sums_in_the_order_of_the_inputs_and_score_rounds_it(kind):
    model, users = random_model(kind, entropy=1), np.arange(5)
    inputs, weights = as_array(model.inputs), as_array(model.weights)
    exact = model.exact(users, everything(model, users))
    for user in users:
        for item in range(model.n_items):
            total = 0.0
            for x, w in zip(inputs[user].tolist(), weights[:, item].tolist(), strict=True):
                total += x * w
            assert exact[user, item] == total
    assert model.score(users).tobytes() == exact.astype(np.float32).tobytes()


@both
@given(exponent=st.integers(-140, 120), entropy=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_error_bounds_the_distance_from_rational_arithmetic(kind, exponent, entropy):
    model, users = random_model(kind, entropy=entropy, scale=2.0**exponent), np.arange(5)
    inputs, weights = as_array(model.inputs).tolist(), as_array(model.weights).T.tolist()
    error, scores = model.error(users), model.score(users)
    for user in users:
        for item in range(model.n_items):
            pairs = zip(inputs[user], weights[item], strict=True)
            true = sum(Fraction(x) * Fraction(w) for x, w in pairs)
            assert abs(Fraction(float(scores[user, item])) - true) <= Fraction(error[user])
    reach = np.abs(as_array(model.inputs)).astype(np.float64) @ model.largest
    assert (error <= 3 * (2.0**-24 * reach + np.finfo(np.float32).tiny)).all()


@both
def test_a_user_without_inputs_scores_nothing_and_gets_the_lowest_rows(kind):
    model, nobody = random_model(kind, entropy=2), np.array([0])
    np.testing.assert_array_equal(model.score(nobody), np.zeros((1, 7)))
    np.testing.assert_array_equal(model.error(nobody), [0])
    ranking = top_k(model, nobody, k=3, seen=None, n_threads=1)
    np.testing.assert_array_equal(ranking.items, [[0, 1, 2]])


def test_dense_and_sparse_weights_give_the_same_bits_on_any_number_of_threads():
    dense, sparse = (random_model(kind, entropy=3) for kind in KINDS.values())
    users = np.arange(5)
    assert dense.score(users).tobytes() == sparse.score(users).tobytes()
    assert dense.error(users).tobytes() == sparse.error(users).tobytes()
    one = top_k(dense, users, k=4, seen=None, n_threads=1)
    two = top_k(sparse, users, k=4, seen=None, n_threads=2)
    assert one.items.tobytes() == two.items.tobytes()
    assert one.scores.tobytes() == two.scores.tobytes()


def test_history_is_one_where_a_pair_is():
    pairs = Interactions.from_pairs(np.array([2, 0, 2]), np.array([0, 3, 1]), n_users=4, n_items=5)
    matrix = history(pairs)
    expected = np.zeros((4, 5))
    expected[[2, 0, 2], [0, 3, 1]] = 1
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert matrix.dtype == np.float32


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_scores_beyond_numbers_are_refused(kind, bad):
    weights = np.ones((2, 2), dtype=np.float32)
    weights[1, 0] = bad
    model = Linear.of(csr_array(np.eye(2, dtype=np.float32)), kind(weights))
    with pytest.raises(DataError, match="user row 1 are not finite or exceed float32"):
        top_k(model, np.array([0, 1]), k=1, seen=None, n_threads=1)


@both
def test_weights_for_other_inputs_are_refused(kind):
    inputs = csr_array(np.ones((2, 3), dtype=np.float32))
    with pytest.raises(DataError, match="users have 3 inputs, but there are weights for 4"):
        Linear.of(inputs, kind(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(IndexError):
        Linear.of(inputs, kind(np.ones((3, 3), dtype=np.float32))).score(np.array([2]))
