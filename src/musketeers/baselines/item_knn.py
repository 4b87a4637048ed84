"""Items like those the user touched (ItemKNN), by the cosine of their columns."""

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from numba import njit
from scipy.sparse import csr_array

from musketeers.baselines.linear import Linear, history
from musketeers.data.domains import Split
from musketeers.errors import ConfigError
from musketeers.ranking import kth_largest


@dataclass(frozen=True, slots=True)
class ItemKnnSettings:
    """How alike two items are, and how many of the most alike ones count."""

    neighbors: int = 100
    """Most similar items kept for each item; at least 1."""
    shrinkage: float = 1.0
    """Added to the cosine's denominator, so that few common users prove little; not negative."""
    activity_power: float = 1.0
    """A user of n items counts n**-activity_power: at 0 the plain cosine, at 1 that of rows of
    equal length, where nobody speaks louder for having done more."""

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ConfigError(f"neighbors is {self.neighbors}; keep at least 1 item per item")
        if not self.shrinkage >= 0:
            raise ConfigError(f"shrinkage is {self.shrinkage}; it must be at least 0")


def item_knn(split: Split, settings: ItemKnnSettings) -> Linear:
    r"""The sum over a user's items of their similarity to the ranked one.

    With $c_{ij} = \sum_u |I_u|^{-a}$ over the users of both items, a the activity power, and h
    the shrinkage, the similarity is $c_{ij} / (\sqrt{c_{ii} c_{jj}} + h)$.  Each ranked item
    keeps its most similar ones, the lower rows where similarities are equal (Deshpande and
    Karypis, Item-Based Top-N Recommendation Algorithms, TOIS 2004, who scale users likewise).

    Memory: about 32 bytes for each kept neighbour, and one row of items; never the square of all.
    Time: the sum over users of the square of their number of items.
    """
    pairs = split.train
    by_user = history(pairs)
    by_item = by_user.T.tocsr()
    voices = np.maximum(pairs.counts(), 1) ** -settings.activity_power
    sizes = np.bincount(pairs.items, weights=voices[pairs.users()], minlength=pairs.n_items)
    most = min(settings.neighbors, pairs.n_items)
    neighbors = np.empty((pairs.n_items, most), dtype=np.int32)
    similarities = np.empty((pairs.n_items, most), dtype=np.float32)
    counts = np.empty(pairs.n_items, dtype=np.int64)
    _all_nearest(
        (by_item.indptr, by_item.indices), (by_user.indptr, by_user.indices), voices, sizes,
        settings.shrinkage, neighbors, similarities, counts,
    )  # fmt: skip
    used = np.arange(most) < counts[:, np.newaxis]
    indptr = np.concatenate([[0], np.cumsum(counts)])
    of_items = csr_array(
        (similarities[used], neighbors[used], indptr), shape=(pairs.n_items, pairs.n_items)
    )
    return Linear.of(by_user, of_items.T.tocsr())


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.


@njit(nogil=True, cache=True)
@no_type_check
def _all_nearest(by_item, by_user, voices, sizes, shrinkage, neighbors, similarities, counts):
    shared = np.zeros(len(sizes))
    met = np.empty(len(sizes), dtype=np.int32)
    for item in range(len(sizes)):
        others = np.sort(met[: _meet(item, by_item, by_user, voices, shared, met)])
        values = shared[others] / (np.sqrt(sizes[item] * sizes[others]) + shrinkage)
        shared[others] = 0
        counts[item] = _keep(others, values, neighbors[item], similarities[item])


@njit(nogil=True, cache=True)
@no_type_check
def _meet(item, by_item, by_user, voices, shared, met):
    """Add up what each other item shares with `item`; how many were met, listed in `met`."""
    users_of, users = by_item
    items_of, items = by_user
    n_met = 0
    for user in users[users_of[item] : users_of[item + 1]]:
        for other in items[items_of[user] : items_of[user + 1]]:
            if other == item:
                continue
            if shared[other] == 0:
                met[n_met] = other
                n_met += 1
            shared[other] += voices[user]
    return n_met


@njit(nogil=True, cache=True)
@no_type_check
def _keep(others, values, neighbors, similarities):
    """Copy the largest values, by ascending row, as many as there is room for; how many."""
    most = len(neighbors)
    least, ties = -np.inf, 0
    if len(values) > most:
        least = kth_largest(values.copy(), most)
        ties = most - np.sum(values > least)
    kept = 0
    for j in range(len(values)):
        tied = values[j] == least and ties > 0
        ties -= tied
        if tied or values[j] > least:
            neighbors[kept] = others[j]
            similarities[kept] = values[j]
            kept += 1
    return kept
