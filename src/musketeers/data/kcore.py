"""Dropping users and items that have too few interactions to learn from."""

import numpy as np
from jaxtyping import Bool, Int


def k_core(
    users: Int[np.ndarray, " pair"],
    items: Int[np.ndarray, " pair"],
    *,
    min_user: int,
    min_item: int,
) -> Bool[np.ndarray, " pair"]:
    """Which pairs are left once every user has `min_user` of them and every item `min_item`.

    Dropping an item can take a user below the bound and the reverse, so both are repeated
    until nothing changes; the result is the largest such set.  Pairs must be distinct and
    rows not negative.
    """
    keep = np.arange(len(users))
    while len(keep):
        u, i = users[keep], items[keep]
        enough = (np.bincount(u) >= min_user)[u] & (np.bincount(i) >= min_item)[i]
        if enough.all():
            break
        keep = keep[enough]
    left = np.zeros(len(users), dtype=np.bool_)
    left[keep] = True
    return left
