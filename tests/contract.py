"""What every `Scorer` must do.  A model's test file names its `fit` and gets all of these."""

import numpy as np
import pytest

from musketeers.data.interactions import Interactions
from musketeers.protocols import Scorer
from musketeers.ranking import top_k


def two_camps(side: int = 8) -> tuple[Interactions, np.ndarray]:
    """Even users like even items, odd users odd items; item u is held back from user u."""
    users, items = np.divmod(np.arange(side * side), side)
    chosen = ((users + items) % 2 == 0) & (users != items)
    train = Interactions.from_pairs(users[chosen], items[chosen], n_users=side, n_items=side)
    return train, np.arange(side)


def brute_force(scorer: Scorer, users, *, k: int, seen: Interactions | None):
    """The definition: every exact score, seen items dropped, sorted by (-score, row)."""
    everything = np.tile(np.arange(scorer.n_items), (len(users), 1))
    exact = scorer.exact(users, everything)
    items = np.full((len(users), k), -1)
    scores = np.full((len(users), k), np.nan)
    for place, user in enumerate(users):
        skip = set() if seen is None else set(seen.of(int(user)).tolist())
        order = sorted(
            (item for item in range(scorer.n_items) if item not in skip),
            key=lambda item: (-exact[place, item], item),
        )[:k]
        items[place, : len(order)] = order
        scores[place, : len(order)] = exact[place, order]
    return items, scores


class ScorerContract:
    """True of every model, even a constant one."""

    def fit(self, train: Interactions) -> Scorer:
        raise NotImplementedError

    @pytest.fixture
    def camps(self) -> tuple[Scorer, Interactions, np.ndarray]:
        train, users = two_camps()
        return self.fit(train), train, users

    def test_scores_every_item_for_every_user(self, camps):
        model, train, users = camps
        scores = model.score(users)
        assert model.n_items == train.n_items
        assert scores.dtype == np.float32
        assert scores.shape == (train.n_users, train.n_items)
        assert np.isfinite(scores).all()

    def test_scores_are_the_callers_to_write_into(self, camps):
        model, _, users = camps
        before = model.score(users).copy()
        model.score(users)[:] = -np.inf  # as ranking does to what a user has seen
        np.testing.assert_array_equal(model.score(users), before)

    def test_fast_scores_are_within_their_stated_error(self, camps):
        model, train, users = camps
        error = model.error(users)
        exact = model.exact(users, np.tile(np.arange(train.n_items), (len(users), 1)))
        assert np.isfinite(exact).all()
        assert (error >= 0).all()
        assert (np.abs(model.score(users) - exact) <= error[:, None]).all()

    def test_an_exact_score_is_the_same_alone_and_in_a_batch(self, camps):
        model, train, users = camps
        items = np.tile(np.arange(train.n_items), (len(users), 1))
        together = model.exact(users, items)
        for user in users:
            for item in range(train.n_items):
                alone = model.exact(users[user : user + 1], np.array([[item]]))
                assert alone.tobytes() == together[user, item].tobytes()

    def test_top_k_is_the_sorted_exact_scores(self, camps):
        model, train, users = camps
        for k in (1, 3, train.n_items + 2):
            ranking = top_k(model, users, k=k, seen=train, n_threads=1)
            items, scores = brute_force(model, users, k=k, seen=train)
            np.testing.assert_array_equal(ranking.items, items)
            np.testing.assert_array_equal(ranking.scores, scores)


class PersonalScorerContract(ScorerContract):
    """True of every model that can tell two camps of users apart."""

    def test_finds_the_item_that_was_held_back(self, camps):
        model, train, users = camps
        ranking = top_k(model, users, k=1, seen=train, n_threads=1)
        np.testing.assert_array_equal(ranking.items[:, 0], users)
