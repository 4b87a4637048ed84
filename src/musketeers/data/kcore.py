"""Dropping users and items that have too few interactions to learn from."""

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Int64
from numba import njit

from musketeers.data.interactions import Interactions


def k_core(
    pairs: Interactions, *, min_user: int, min_item: int
) -> tuple[Bool[np.ndarray, " user"], Bool[np.ndarray, " item"]]:
    """Which users and which items are left once all have `min_user` and `min_item` pairs.

    A pair is left if its user and its item are.  Dropping an item can take a user below the bound
    and the reverse, so both are repeated until nothing changes; the result is the largest such set.
    """
    users, items = np.ones(pairs.n_users, np.bool_), np.ones(pairs.n_items, np.bool_)
    while True:
        dropped, counts = drop_users(pairs, users, items, min_user=min_user)
        rare = items & (counts < min_item)
        items[rare] = False
        if not dropped and not rare.any():
            return users, items


def drop_users(
    pairs: Interactions,
    users: Bool[np.ndarray, " user"],
    items: Bool[np.ndarray, " item"],
    *,
    min_user: int,
) -> tuple[bool, Int64[np.ndarray, " item"]]:
    """Unmark the marked users with too few of the marked items, and count each item's other users.

    Gives whether any user was unmarked, and the counts.
    """
    counts = np.zeros(pairs.n_items, np.int64)
    dropped = _drop_users(pairs.indptr, pairs.items, min_user, users, items, counts)
    return bool(dropped), counts


@njit(nogil=True, cache=True)
@no_type_check
def _drop_users(indptr, row_items, min_user, users, items, counts):
    dropped = False
    for user in range(len(users)):
        if users[user]:
            row = row_items[indptr[user] : indptr[user + 1]]
            n = 0
            for item in row:
                n += items[item]
            if n < min_user:
                users[user], dropped = False, True
            else:
                for item in row:
                    counts[item] += items[item]
    return dropped
