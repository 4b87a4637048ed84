import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.data.interactions import Interactions
from musketeers.errors import DataError

PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)))


def table(pairs):
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Interactions.from_pairs(users, items, n_users=10, n_items=5)


def listed(interactions):
    return list(zip(interactions.users().tolist(), interactions.items.tolist(), strict=True))


@given(PAIRS)
def test_each_pair_once_in_order(pairs):
    interactions, expected = table(pairs), sorted(set(pairs))
    assert listed(interactions) == expected
    assert [(u, i) for u in range(10) for i in interactions.of(u)] == expected
    assert len(interactions) == len(expected)
    assert (interactions.n_users, interactions.n_items) == (10, 5)
    assert interactions.items.dtype == np.int32
    assert interactions.counts().tolist() == [sum(u == v for v, _ in expected) for u in range(10)]
    assert interactions.item_counts().tolist() == [
        sum(i == j for _, j in expected) for i in range(5)
    ]
    assert interactions.known_users().tolist() == [u in {v for v, _ in pairs} for u in range(10)]


@given(PAIRS)
def test_sorted_pairs_need_no_second_sort(pairs):
    interactions = table(pairs)
    again = Interactions.from_sorted(
        interactions.users(), interactions.items, n_users=10, n_items=5
    )
    assert listed(again) == listed(interactions)


@given(PAIRS, PAIRS)
def test_union_is_that_of_sets(a, b):
    assert listed(table(a).union(table(b))) == sorted({*a, *b})


def test_arrays_are_read_only_and_the_callers_stay_writeable():
    indptr, items = np.array([0, 1]), np.array([0], dtype=np.int32)
    interactions = Interactions.from_csr(indptr, items, n_items=1)
    with pytest.raises(ValueError, match="read-only"):
        interactions.items[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        interactions.indptr[0] = 3
    items[0] = 0


def test_wrong_rows_are_refused():
    with pytest.raises(DataError, match=r"item rows span 0\.\.5, outside 0\.\.4"):
        Interactions.from_pairs(np.zeros(2, int), np.array([0, 5]), n_users=1, n_items=5)
    with pytest.raises(DataError, match=r"user rows span -1\.\.0, outside 0\.\.0"):
        Interactions.from_pairs(np.array([-1, 0]), np.zeros(2, int), n_users=1, n_items=5)
    Interactions.from_pairs(np.array([0]), np.array([4]), n_users=1, n_items=5)


@given(PAIRS, st.permutations(range(10)), st.lists(st.integers(-1, 6), min_size=5, max_size=5))
def test_moved_pairs_are_the_same_under_other_numbers(pairs, users, items):
    interactions = table(pairs)
    new_users, new_items = np.array(users) + 2, np.array(items)
    found = interactions.moved(new_users, new_items, n_users=12, n_items=7)
    expected = {(users[u] + 2, items[i]) for u, i in pairs if items[i] >= 0}
    assert listed(found) == sorted(expected)
    assert (found.n_users, found.n_items) == (12, 7)


@given(PAIRS, PAIRS)
def test_keys_find_the_pairs_of_one_table_in_another(pairs, others):
    one, other = table(pairs), table(others)
    assert listed(one.only(np.isin(one.keys(), other.keys()))) == sorted(set(pairs) & set(others))
    assert (np.diff(one.keys()) > 0).all()
