"""Rank items by how many users touched them: the floor every model must beat."""

import numpy as np
from jaxtyping import Float32, Int64

from musketeers.data.interactions import Interactions
from musketeers.group import group
from musketeers.ranking import Factors


def popularity(train: Interactions) -> Factors:
    """The same ranking for everyone: an item's score is its number of training users.

    Of all members' users (`group`).
    """
    counts = train.item_counts()
    group().add(counts)
    return ranked_by(counts, n_users=train.n_users)


def ranked_by(counts: Int64[np.ndarray, " item"], *, n_users: int) -> Factors:
    """Every user 1, every item its count.

    Float32 holds counts up to 2**24 exactly.  Where one is larger, a second dimension holds what
    rounding took from the first; exact scores add the two, so no order is lost.
    """
    rounded = counts.astype(np.float32)
    rest = (counts - rounded.astype(np.int64)).astype(np.float32)
    columns = [rounded, rest] if rest.any() else [rounded]
    return for_everyone(np.stack(columns, axis=1), n_users=n_users)


def for_everyone(items: Float32[np.ndarray, "item part"], *, n_users: int) -> Factors:
    """Every user 1, every item the sum of its parts."""
    return Factors(np.ones((n_users, items.shape[1]), np.float32), items)
