"""The compiled BPR loops against their formulas in float64, and the lanes that run them."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numba import njit
from scipy.stats import chisquare

from musketeers.data.interactions import Interactions
from musketeers.instructions import has_float16, kept, stochastically_rounded, widened
from musketeers.pretrain import kernels
from musketeers.pretrain import lanes as lane_tables
from musketeers.pretrain.lanes import ItemLanes, even_parts

START = 1e-3


def softplus_loss(user, first, second):
    return np.logaddexp(0, -(user @ (first - second)))


def slope(function, at, step=1e-6):
    """Central differences, coordinate by coordinate."""
    result = np.empty_like(at)
    for place in np.ndindex(at.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[place] += step
        behind[place] -= step
        result[place] = (function(ahead) - function(behind)) / (2 * step)
    return result


class Slow:
    """Stage 1 by its definition: the stated loss, its slope, Adagrad row by row, in float64."""

    def __init__(self, users, items, *, rate, strength):
        self.users, self.items = users.astype(np.float64), items.astype(np.float64)
        self.user_squares = np.full(len(users), START)
        self.item_squares = np.full(len(items), START)
        self.rate, self.strength = rate, strength

    def step(self, u, i, j):
        """Learn that `u` likes `i` more than `j`; the loss before."""
        rows = np.stack([self.users[u], self.items[i], self.items[j]])

        def stated(rows):
            return softplus_loss(*rows) + self.strength / 2 * (rows**2).sum()

        gradients = slope(stated, rows)
        places = ((self.users, self.user_squares, u), (self.items, self.item_squares, i),
                  (self.items, self.item_squares, j))  # fmt: skip
        for (table, squares, row), gradient in zip(places, gradients, strict=True):
            squares[row] += (gradient**2).mean()
            table[row] -= self.rate / np.sqrt(squares[row]) * gradient
        return softplus_loss(*rows)


def tables(rng, *, n_users, n_items, dim=4):
    users = rng.normal(size=(n_users, dim)).astype(np.float32)
    items = rng.normal(size=(n_items, dim)).astype(np.float32)
    return users, items


def liked(lists, *, n_items):
    users = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    items = np.array([item for one in lists for item in one], dtype=int)
    return Interactions.from_pairs(users, items, n_users=len(lists), n_items=n_items)


def train_users(train, users, items, *, order=None, rate=0.1, strength=0.05, candidates=1, key=7):
    """Everything that `kernels.train_users` changes, as copies, and its loss."""
    users, items = users.copy(), items.copy()
    user_squares = np.full(len(users), START, np.float32)
    item_squares = np.full(len(items), START, np.float32)
    touched = np.zeros(len(items), np.bool_)
    loss = kernels.train_users(
        np.arange(len(users)) if order is None else order, train.indptr, train.items,
        users, user_squares, items, item_squares, touched, None,
        np.float32(rate), np.float32(strength), candidates, np.uint64(key),
    )  # fmt: skip
    return users, user_squares, items, item_squares, touched, loss


def train_items(train, vectors, items, *, order=None, rate=0.0, strength=0.05, candidates=1, key=7):
    """Likewise for `kernels.train_items`; the gradients come first."""
    items = items.copy()
    gradients = np.full_like(vectors, 9)
    squares = np.full(len(items), START, np.float32)
    touched = np.zeros(len(items), np.bool_)
    learns = np.full(len(vectors), rate > 0)
    loss = kernels.train_items(
        np.arange(len(vectors)) if order is None else order, learns, vectors, gradients,
        train.indptr, train.items, items, squares, touched, None,
        np.float32(rate), np.float32(strength), candidates, np.uint64(key),
    )  # fmt: skip
    return gradients, items, squares, touched, loss


@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("free", [0, 1])
def test_one_user_and_one_item_make_the_stated_step(free, candidates):
    rng = np.random.default_rng(0)
    users, items = tables(rng, n_users=3, n_items=2)
    train = liked([[], [], [1 - free]], n_items=2)
    slow = Slow(users, items, rate=0.1, strength=0.05)
    expected = slow.step(2, 1 - free, free)
    after, user_squares, items_after, item_squares, touched, loss = train_users(
        train, users, items, order=np.array([2]), candidates=candidates
    )
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(after, slow.users, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(items_after, slow.items, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(user_squares, slow.user_squares, rtol=1e-5)
    np.testing.assert_allclose(item_squares, slow.item_squares, rtol=1e-5)
    np.testing.assert_array_equal(after[:2], users[:2])
    assert touched.all()


@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(1, 5), st.floats(0, 0.3))
@settings(deadline=None, max_examples=25)
def test_a_pass_is_those_steps_in_the_order_of_users_and_items(seed, n_items, n_users, strength):
    rng = np.random.default_rng(seed)
    users, items = tables(rng, n_users=n_users, n_items=n_items)
    free = rng.integers(n_items, size=n_users)  # one item is left, so the negative is known
    train = liked([[i for i in range(n_items) if i != f] for f in free], n_items=n_items)
    slow = Slow(users, items, rate=0.05, strength=strength)
    order = rng.permutation(n_users)
    expected = sum(slow.step(u, i, free[u]) for u in order.tolist() for i in train.of(u))
    after, _, items_after, _, _, loss = train_users(
        train, users, items, order=order, rate=0.05, strength=strength
    )
    assert loss == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(after, slow.users, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(items_after, slow.items, rtol=1e-3, atol=1e-4)


class SlowInTwoParts:
    """MPF by its definition: as `Slow`, with a user's vector the sum of two that learn apart."""

    def __init__(self, common, own, items, *, rate, strength, own_strength):
        self.tables = [table.astype(np.float64) for table in (common, own, items)]
        self.squares = [np.full(len(table), START) for table in self.tables]
        self.rate, self.strength, self.own_strength = rate, strength, own_strength

    def step(self, u, i, j, *, has_own):
        """Learn that `u` likes `i` more than `j`; the loss before."""
        places = [(0, u), (1, u), (2, i), (2, j)]
        rows = np.stack([self.tables[table][row] for table, row in places])
        strengths = np.array([self.strength, self.own_strength, self.strength, self.strength])

        def stated(rows):
            penalty = (strengths / 2 * (rows**2).sum(axis=1)).sum()
            return softplus_loss(rows[0] + rows[1], rows[2], rows[3]) + penalty

        gradients = slope(stated, rows)
        gradients[1] *= has_own
        for (table, row), gradient in zip(places, gradients, strict=True):
            self.squares[table][row] += (gradient**2).mean()
            change = self.rate / np.sqrt(self.squares[table][row]) * gradient
            self.tables[table][row] -= change
        return softplus_loss(rows[0] + rows[1], rows[2], rows[3])


def train_common_users(train, common, own, items, *, order, has_own, rate, strengths, candidates=1):
    """What `kernels.train_common_users` changes: three tables, their squares; and its loss."""
    tables = [common.copy(), own.copy(), items.copy()]
    squares = [np.full(len(table), START, np.float32) for table in tables]
    touched = np.zeros(len(items), np.bool_)
    loss = kernels.train_common_users(
        order, train.indptr, train.items,
        tables[0], squares[0], tables[1], squares[1], has_own,
        tables[2], squares[2], touched, np.float32(rate),
        np.float32(strengths[0]), np.float32(strengths[1]), candidates, np.uint64(7),
    )  # fmt: skip
    return tables, squares, touched, loss


@given(
    st.integers(0, 2**32), st.integers(2, 6), st.integers(1, 5), st.floats(0, 0.3),
    st.floats(0, 0.6), st.sampled_from([1, 4]),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_a_pass_in_two_parts_is_those_steps_in_the_order_of_users_and_items(
    seed, n_items, n_users, strength, own_strength, candidates
):
    rng = np.random.default_rng(seed)
    common, items = tables(rng, n_users=n_users, n_items=n_items)
    own = rng.normal(size=common.shape).astype(np.float32)
    has_own = rng.random(n_users) < 0.5
    free = rng.integers(n_items, size=n_users)  # one item is left, so the negative is known
    train = liked([[i for i in range(n_items) if i != f] for f in free], n_items=n_items)
    slow = SlowInTwoParts(
        common, own, items, rate=0.05, strength=strength, own_strength=own_strength
    )
    order = rng.permutation(n_users)
    expected = sum(
        slow.step(u, i, free[u], has_own=has_own[u]) for u in order.tolist() for i in train.of(u)
    )
    after, squares, touched, loss = train_common_users(
        train, common, own, items,
        order=order, has_own=has_own, rate=0.05, strengths=(strength, own_strength),
        candidates=candidates,
    )  # fmt: skip
    assert loss == pytest.approx(expected, rel=1e-4)
    for fast, stated in zip(after, slow.tables, strict=True):
        np.testing.assert_allclose(fast, stated, rtol=1e-3, atol=1e-4)
    for fast, stated in zip(squares, slow.squares, strict=True):
        np.testing.assert_allclose(fast, stated, rtol=1e-3)
    np.testing.assert_array_equal(after[1][~has_own], own[~has_own])
    assert touched.all()


@pytest.mark.parametrize("candidates", [1, 4])
def test_without_a_part_of_their_own_users_learn_as_in_one_part(candidates):
    """The negatives are the same draws, so the two loops must agree on ordinary data."""
    rng = np.random.default_rng(7)
    users, items = tables(rng, n_users=40, n_items=30)
    train = liked([rng.choice(30, rng.integers(31), replace=False) for _ in users], n_items=30)
    order = rng.permutation(40)
    expected = train_users(train, users, items, order=order, candidates=candidates)
    after, squares, touched, loss = train_common_users(
        train, users, np.zeros_like(users), items,
        order=order, has_own=np.zeros(40, np.bool_), rate=0.1, strengths=(0.05, 0.3),
        candidates=candidates,
    )  # fmt: skip
    found = after[0], squares[0], after[2], squares[2], touched, loss
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)
    assert not after[1].any()


def test_items_learn_the_same_whether_users_do_or_not():
    """With one item a user, the item's step is the same in both loops."""
    rng = np.random.default_rng(1)
    users, items = tables(rng, n_users=1, n_items=2)
    train = liked([[0]], n_items=2)
    *_, from_users, squares_from_users, touched, loss = train_users(train, users, items)
    _, from_items, squares, touched_too, loss_too = train_items(train, users, items, rate=0.1)
    np.testing.assert_allclose(from_items, from_users, rtol=1e-6)
    np.testing.assert_allclose(squares, squares_from_users, rtol=1e-6)
    assert touched.all()
    assert touched_too.all()
    assert loss == pytest.approx(loss_too)


@pytest.mark.parametrize("candidates", [1, 4])
def test_the_gradient_for_users_is_the_slope_of_their_summed_loss(candidates):
    rng = np.random.default_rng(2)
    users, items = tables(rng, n_users=6, n_items=9)
    train = liked([[0, 3], [1], [2, 4, 8], [5, 6], [], [0, 1, 2, 3, 4, 5, 6, 7]], n_items=9)
    order = np.array([3, 0, 5, 1, 4])
    vectors = users[order]

    def summed(vectors):  # draws are keyed by user, so they stay the same
        return train_items(
            train, vectors.astype(np.float32), items, order=order, candidates=candidates
        )[-1]

    gradients = train_items(train, vectors, items, order=order, candidates=candidates)[0]
    np.testing.assert_allclose(
        gradients, slope(summed, vectors.astype(np.float64), 2e-3), atol=5e-4
    )
    np.testing.assert_array_equal(gradients[4], 0)


def test_items_that_do_not_learn_stay_bit_by_bit():
    rng = np.random.default_rng(3)
    users, items = tables(rng, n_users=5, n_items=7)
    train = liked([[0, 6], [1, 2], [3], [4, 5], [0]], n_items=7)
    _, after, squares, touched, _ = train_items(train, users, items, candidates=4)
    assert after.tobytes() == items.tobytes()
    np.testing.assert_array_equal(squares, np.float32(START))
    assert not touched.any()


def test_a_user_who_likes_everything_has_no_negative_and_is_passed_over():
    rng = np.random.default_rng(4)
    users, items = tables(rng, n_users=1, n_items=3)
    train = liked([[0, 1, 2]], n_items=3)
    after, squares, items_after, _, touched, loss = train_users(train, users, items)
    np.testing.assert_array_equal(after, users)
    np.testing.assert_array_equal(items_after, items)
    np.testing.assert_array_equal(squares, np.float32(START))
    assert loss == 0
    assert not touched.any()
    gradients, items_after, _, _, loss = train_items(train, users, items, rate=0.1)
    np.testing.assert_array_equal(gradients, 0)
    np.testing.assert_array_equal(items_after, items)
    assert loss == 0


def drawn(train, vectors, *, candidates=1, key=7):
    """How often each user got each item as a negative, read from the gradients.

    With one-hot items a pair's gradient is push times (negative minus liked).
    """
    items = np.eye(train.n_items, dtype=np.float32)
    return train_items(train, vectors, items, candidates=candidates, key=key)[0]


def test_negatives_are_uniform_over_what_is_not_liked_the_first_and_last_item_included():
    n_users, n_items = 5000, 12
    rng = np.random.default_rng(5)
    lists = [sorted(rng.choice(n_items, 3, replace=False)) for _ in range(n_users)]
    train = liked(lists, n_items=n_items)
    # at a user vector of zero every push is 1/2
    times = 2 * drawn(train, np.zeros((n_users, n_items), np.float32))
    free = np.ones((n_users, n_items), bool)
    free[train.users(), train.items] = False
    np.testing.assert_array_equal(times[~free], -1)
    assert (times[free] >= 0).all()
    np.testing.assert_array_equal((times * free).sum(axis=1), 3)
    observed = (times * free).sum(axis=0)
    expected = 3 * (free / free.sum(axis=1, keepdims=True)).sum(axis=0)
    assert chisquare(observed, expected).pvalue > 0.01


def test_the_hardest_of_several_candidates_is_learned_from():
    n_users, n_items = 5000, 7
    train = liked([[3]] * n_users, n_items=n_items)
    vector = np.linspace(0, 0.3, n_items, dtype=np.float32)  # ascending: a later item is harder
    gradients = drawn(train, np.tile(vector, (n_users, 1)), candidates=4)
    observed = np.delete((gradients > 0).sum(axis=0), 3)
    ranks = np.arange(1, n_items)  # of the 6 free items
    expected = n_users * (ranks**4 - (ranks - 1) ** 4) / 6**4
    assert chisquare(observed, expected).pvalue > 0.01


def test_draws_depend_on_key_and_user_never_on_the_company():
    train = liked([[0], [1], [2], [3]], n_items=64)
    vectors = np.zeros((4, 64), np.float32)
    together = drawn(train, vectors)
    items = np.eye(64, dtype=np.float32)
    alone = train_items(train, vectors[:1], items, order=np.array([2]))[0]
    np.testing.assert_array_equal(alone[0], together[2])
    assert not np.array_equal(drawn(train, vectors, key=8), together)


# --- tables in float16

float16 = pytest.mark.skipif(not has_float16(), reason="this processor has no float16")


@njit
def nearest(table, numbers):
    for place in range(len(table)):
        table[place] = kept(table, numbers[place])


@njit
def rounded(table, number, first):
    """The number by as many roundings as the table has places, with noise from `first` on."""
    for place in range(len(table)):
        table[place] = stochastically_rounded(table, number, np.uint64(first + place))


@njit
def wide(table, numbers):
    for place in range(len(table)):
        numbers[place] = widened(table[place])


@float16
@given(st.lists(st.floats(width=32), min_size=1))
def test_the_nearest_float16_is_numpys_and_comes_back_the_same(numbers):
    numbers = np.array(numbers, np.float32)
    found, back, same = np.empty_like(numbers, np.uint16), np.empty_like(numbers), numbers.copy()
    nearest(found, numbers)
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16)
    np.testing.assert_array_equal(found.view(np.float16), expected)
    wide(found, back)
    np.testing.assert_array_equal(back, expected.astype(np.float32))
    nearest(same, numbers)
    np.testing.assert_array_equal(same, numbers)


@float16
@given(st.floats(2.0**-13, 60000, width=32), st.booleans(), st.integers(0, 2**60))
def test_of_the_two_nearest_float16_either_so_that_the_mean_is_the_number(size, negative, first):
    number = np.float32(-size if negative else size)
    found = np.empty(8192, np.uint16)
    rounded(found, number, first)
    values = found.view(np.float16).astype(np.float64)
    assert len(np.unique(values)) <= 2
    spacing = float(np.spacing(np.float16(size)))
    assert abs(values - number).max() <= spacing
    assert values.mean() == pytest.approx(number, abs=spacing * 1e-6)
    assert (np.float32(np.float16(number)) != number) or (values == number).all()


@float16
def test_infinity_and_nan_stay_what_they_are():
    found = np.empty(8192, np.uint16)
    for number in (np.float32(np.inf), np.float32(-np.inf), np.float32(np.nan), np.float32(1e30)):
        rounded(found, number, 0)
        assert not np.isfinite(found.view(np.float16)).any()


@float16
@pytest.mark.parametrize("loop", [train_users, train_items])
def test_tables_in_float16_learn_the_same_within_their_spacing(loop):
    rng = np.random.default_rng(8)
    users, items = tables(rng, n_users=30, n_items=50, dim=16)
    train = liked([rng.choice(50, 9, replace=False) for _ in users], n_items=50)
    halves = items.astype(np.float16)
    expected = loop(train, users, halves.astype(np.float32), rate=0.1, candidates=4)
    found = list(loop(train, users, halves.view(np.uint16), rate=0.1, candidates=4))
    (place,) = (n for n, one in enumerate(found) if getattr(one, "dtype", None) == np.uint16)
    found[place] = found[place].view(np.float16).astype(np.float32)
    assert not np.array_equal(found[place], expected[place])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02)


@float16
def test_steps_far_smaller_than_the_spacing_of_float16_are_not_lost():
    """To the nearest alone, the item would stay where it is."""
    n_users = 5000
    train = liked([[0]] * n_users, n_items=2)
    users = np.full((n_users, 64), 0.2, np.float32)
    items = np.full((2, 64), 100, np.float16)
    start = items.astype(np.float32)
    settings = {"rate": 0.1, "strength": 0.0}
    *_, expected, _, _, _ = train_users(train, users, start, **settings)
    *_, found, _, _, _ = train_users(train, users, items.view(np.uint16), **settings)
    moved = (found.view(np.float16) - start)[0], (expected - start)[0]
    # after the first few, steps are below a hundredth, and the spacing is 1 / 16
    assert moved[1].min() > 0.3
    assert moved[0].mean() == pytest.approx(moved[1].mean(), rel=0.03)


# --- lanes


def change(rows, by):
    """Add to a lane's items, however it keeps them."""
    items = rows.items.view(np.float16) if rows.items.dtype == np.uint16 else rows.items
    items += by.astype(items.dtype)


@pytest.mark.parametrize("n_lanes", [1, 3])
def test_lanes_add_up_what_each_changed(n_lanes, kept_as):
    rng = np.random.default_rng(6)
    # whole numbers, which are added without rounding
    items = rng.integers(-9, 9, (7, 3)).astype(np.float32)
    squares = rng.integers(1, 9, 7).astype(np.float32)
    lanes = ItemLanes(items.copy(), squares.copy(), n_lanes=n_lanes)
    changes = rng.integers(-5, 5, (n_lanes, 7, 3)) * (rng.random((n_lanes, 7, 1)) < 0.5)
    growth = rng.integers(0, 5, (n_lanes, 7)) * changes.any(axis=2)

    def job(part, rows):
        lane = part.start
        change(rows, changes[lane])
        rows.squares[:] += growth[lane].astype(np.float32)
        rows.touched[:] |= changes[lane].any(axis=1)
        return float(lane)

    for passes in (1, 2):  # the second starts from the merged values in every lane
        assert lanes.run(np.ones(n_lanes, np.int64), job) == list(range(n_lanes))
        lanes.merge()
        np.testing.assert_array_equal(lanes.items, items + passes * changes.sum(axis=0))
        np.testing.assert_array_equal(lanes.squares, squares + passes * growth.sum(axis=0))


@float16
def test_what_float16_has_not_of_an_item_is_kept_through_merges(monkeypatch):
    monkeypatch.setattr(lane_tables, "LARGE", 0)
    items = np.full((2, 3), 1 / 3, np.float32)
    lanes = ItemLanes(items, np.ones(2, np.float32), n_lanes=2)

    def job(part, rows):
        rows.touched[:] = True
        change(rows, np.full((2, 3), 0.25))

    for _ in range(3):
        lanes.run(np.ones(2, np.int64), job)
        lanes.merge()
    # each lane's quarter is rounded once more where float16 is spaced more widely
    np.testing.assert_allclose(lanes.items, items + 6 * 0.25, atol=3e-3)
    lanes = ItemLanes(items, np.ones(2, np.float32), n_lanes=2)
    lanes.run(np.ones(2, np.int64), lambda part, rows: rows.touched.fill(True))
    lanes.merge()
    assert lanes.items.tobytes() == items.tobytes()


def test_restored_lanes_all_start_from_the_saved_values(kept_as):
    lanes = ItemLanes(np.zeros((4, 2), np.float32), np.zeros(4, np.float32), n_lanes=2)
    saved = np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4, dtype=np.float32)
    lanes.restore(*saved)
    seen = []

    def job(part, rows):
        seen.append(rows.items.view(np.float16) if kept_as == "float16" else rows.items.copy())

    lanes.run(np.ones(2, np.int64), job)
    np.testing.assert_array_equal(seen, [saved[0]] * 2)
    np.testing.assert_array_equal(lanes.items, saved[0])
    assert not np.shares_memory(lanes.items, saved[0])


def test_lanes_keep_copies_of_what_they_are_given():
    items, squares = np.ones((5, 3), np.float32), np.ones(5, np.float32)
    lanes = ItemLanes(items, squares, n_lanes=2)
    lanes.items[:], lanes.squares[:] = 2, 2
    assert (items == 1).all()
    assert (squares == 1).all()


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9))
def test_even_parts_are_neighbours_that_cover_all_users_at_about_equal_cost(costs, n_parts):
    parts = even_parts(np.array(costs, dtype=np.int64), n_parts)
    assert len(parts) == n_parts
    rows = list(range(len(costs)))
    assert [row for part in parts for row in rows[part]] == rows
    most = sum(costs) / n_parts + max(costs, default=0)
    assert all(sum(costs[part]) <= most + 1e-9 for part in parts)


def test_even_parts_by_hand():
    assert even_parts(np.array([4, 1, 1, 2]), 2) == [slice(0, 1), slice(1, 4)]
    assert even_parts(np.array([9, 1, 1]), 3) == [slice(0, 1), slice(1, 1), slice(1, 3)]
    assert even_parts(np.array([], dtype=np.int64), 2) == [slice(0, 0), slice(0, 0)]
