import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.data import csr
from musketeers.data.interactions import Interactions

N_USERS = 6
ROWS = st.lists(st.tuples(st.integers(0, N_USERS - 1), st.integers(0, 9), st.integers(-5, 5)))


def listed(indptr, items):
    users = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return list(zip(users.tolist(), items.tolist(), strict=True))


@pytest.mark.parametrize("near", [1, 3, 1 << 22])
@given(rows=ROWS, timed=st.booleans())
def test_a_table_is_the_sorted_pairs_with_their_latest_times(near, rows, timed):
    latest = {}
    for user, item, time in rows:
        latest[user, item] = max(time, latest.get((user, item), time))
    users, items, times = np.array(rows, np.int64).reshape(-1, 3).T
    given = users.astype(np.int32), items.astype(np.int32), times if timed else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csr, "_NEAR", near)
        indptr, items, times = csr.built(*given, n_users=N_USERS)
    assert listed(indptr, items) == sorted(latest)
    assert (times is not None) == timed
    if timed:
        assert times.tolist() == [latest[pair] for pair in sorted(latest)]


def table(pairs):
    users, items = np.array(sorted(set(pairs)), np.int64).reshape(-1, 2).T
    return Interactions.from_pairs(users, items, n_users=N_USERS, n_items=10)


PAIRS = ROWS.map(lambda rows: [row[:2] for row in rows])


@given(PAIRS, PAIRS)
def test_pairs_of_one_table_in_another(pairs, others):
    one, other = table(pairs), table(others)
    held = one.held_by(other)
    assert listed(*csr_of(one.only(held))) == sorted(set(pairs) & set(others))
    assert listed(*csr_of(one.only(~held))) == sorted(set(pairs) - set(others))
    assert listed(*csr_of(one.union(other))) == sorted({*pairs, *others})


def csr_of(pairs):
    return pairs.indptr, pairs.items


@given(PAIRS, st.lists(st.integers(-1, N_USERS - 1)))
def test_rows_of_the_asked_in_their_order(pairs, asked):
    one = table(pairs)
    found = one.of_each(np.array(asked, np.int64))
    assert found.n_users == len(asked)
    for n, user in enumerate(asked):
        assert found.of(n).tolist() == (one.of(user).tolist() if user >= 0 else [])


def test_rows_that_are_all_there_are_share_their_memory():
    one = table([(1, 2), (1, 3), (4, 0)])
    assert np.shares_memory(one.of_each(np.array([1, -1, 4])).items, one.items)
    for other in ([4, 1], [1], [1, 4, 4]):
        assert not np.shares_memory(one.of_each(np.array(other)).items, one.items)


@given(PAIRS)
def test_counts_are_those_of_bincount(pairs):
    one = table(pairs)
    expected = np.bincount([item for _, item in listed(*csr_of(one))], minlength=10)
    assert one.item_counts().tolist() == expected.tolist()
