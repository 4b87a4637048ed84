"""Popularity: the same ranking for everyone, in the order of the counts."""

import numpy as np
from contract import ScorerContract

from musketeers.baselines.popularity import popularity, ranked_by
from musketeers.data.interactions import Interactions
from musketeers.ranking import top_k


class TestContract(ScorerContract):
    def fit(self, train):
        return popularity(train)


def test_ranks_by_number_of_users_and_equal_ones_by_row():
    train = Interactions.from_pairs(
        np.array([0, 1, 2, 0, 1, 2, 0]), np.array([2, 2, 2, 1, 1, 3, 3]), n_users=4, n_items=5
    )
    ranking = top_k(popularity(train), np.array([3, 0]), k=5, seen=train, n_threads=1)
    np.testing.assert_array_equal(ranking.items, [[2, 1, 3, 0, 4], [0, 4, -1, -1, -1]])
    np.testing.assert_array_equal(ranking.scores[0], [3, 2, 2, 0, 0])


def test_counts_that_float32_cannot_tell_apart_keep_their_order():
    counts = 2**24 + np.array([0, 1, 2, 3, 2**30 + 5, 2**30 + 6])
    model = ranked_by(counts, n_users=1)
    ranking = top_k(model, np.array([0]), k=6, seen=None, n_threads=1)
    np.testing.assert_array_equal(ranking.items[0], [5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(ranking.scores[0], counts[::-1])


def test_ordinary_counts_need_one_dimension():
    assert ranked_by(np.array([0, 2**24]), n_users=3).items.shape == (2, 1)
