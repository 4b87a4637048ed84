"""Sampled metrics: against their definition, for ties, for few items, for repetition."""

import math
from itertools import permutations

import numpy as np
import pytest

from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.evaluation import sampled as module
from musketeers.evaluation.compare import compare, holm
from musketeers.evaluation.evaluate import PerUser
from musketeers.evaluation.sampled import among_random
from musketeers.ranking import Factors
from musketeers.seeding import Seed


def table(pairs, *, n_users, n_items):
    users, items = np.array(pairs, dtype=int).reshape(-1, 2).T
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def problem(n_users=40, n_items=60, *, rng=None):
    """Random disjoint tables, test then seen; some users without test items."""
    rng = rng or np.random.default_rng(0)
    kinds = rng.choice(3, size=(n_users, n_items), p=[0.85, 0.05, 0.1])
    kinds[::7][kinds[::7] == 1] = 0
    return tuple(
        table(np.argwhere(kinds == kind), n_users=n_users, n_items=n_items) for kind in (1, 2)
    )


def scorer_of(scores):
    """A model with these scores, one dimension an item."""
    return Factors(np.asarray(scores, np.float32), np.eye(np.shape(scores)[1], dtype=np.float32))


class Recording:
    """A scorer that remembers what it was asked for."""

    def __init__(self, scorer):
        self._scorer, self.asked = scorer, {}
        self.n_items, self.score, self.error = scorer.n_items, scorer.score, scorer.error

    def exact(self, users, items):
        for user, row in zip(users.tolist(), items.tolist(), strict=True):
            self.asked[user, row[0]] = row
        return self._scorer.exact(users, items)


def definition(scores, asked, *, k):
    """Every order of equal scores tried: user -> (hit rate, NDCG)."""
    by_user = {}
    for (user, positive), row in asked.items():
        others = [scores[user][item] for item in row[1:] if item != positive]
        values = []
        above = sum(other > scores[user][positive] for other in others)
        equal = sum(other == scores[user][positive] for other in others)
        for order in permutations(range(equal + 1)):
            rank = above + order.index(0) + 1
            values.append((rank <= k, (rank <= k) / math.log2(rank + 1)))
        by_user.setdefault(user, []).append(np.mean(values, axis=0))
    return {user: np.mean(values, axis=0) for user, values in by_user.items()}


@pytest.mark.parametrize("values", [1000, 20])
def test_the_fast_code_is_the_definition(values, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    test, seen = problem()
    scores = np.random.default_rng(1).integers(values, size=(40, 60))
    scorer = Recording(scorer_of(scores))
    found = among_random(scorer, test, seen, Seed(0), n_negatives=12, k=3, n_threads=1)
    expected = definition(scores, scorer.asked, k=3)
    assert len(scorer.asked) == len(test)
    assert list(found.values) == ["sampled_hr@3", "sampled_ndcg@3"]
    np.testing.assert_array_equal(found.users, sorted(expected))
    for name, column in zip(found.values, (0, 1), strict=True):
        values = [expected[user][column] for user in found.users.tolist()]
        np.testing.assert_allclose(found.values[name], values)


def test_negatives_are_distinct_unknown_and_uniform():
    test, seen = problem(400, 30, rng=np.random.default_rng(2))
    scorer = Recording(scorer_of(np.ones((400, 30))))
    among_random(scorer, test, seen, Seed(0), n_negatives=5, n_threads=1)
    chances, drawn = np.zeros(30), np.zeros(30)
    for (user, positive), row in scorer.asked.items():
        negatives, known = set(row[1:]), {*test.of(user).tolist(), *seen.of(user).tolist()}
        assert len(negatives) == 5
        assert positive in known
        assert not negatives & known
        free = np.setdiff1d(np.arange(30), list(known))
        chances[free] += 5 / len(free)
        drawn[list(negatives)] += 1
    assert (np.abs(drawn - chances) < 4 * np.sqrt(chances)).all()


def test_who_knows_almost_everything_has_all_that_is_left():
    test = table([(0, 0), (1, 0)], n_users=2, n_items=4)
    seen = table([(0, 1), (1, 1), (1, 2), (1, 3)], n_users=2, n_items=4)
    scorer = scorer_of([[2, 9, 3, 1], [1, 9, 9, 9]])
    found = among_random(scorer, test, seen, Seed(0), k=1, n_threads=1)
    np.testing.assert_array_equal(found.values["sampled_hr@1"], [0, 1])
    found = among_random(scorer, test, seen, Seed(0), k=2, n_threads=1)
    np.testing.assert_allclose(found.values["sampled_ndcg@2"], [1 / math.log2(3), 1])


def test_a_model_that_tells_nothing_apart_is_as_good_as_guessing():
    test, seen = problem(n_items=300)
    found = among_random(scorer_of(np.ones((40, 300))), test, seen, Seed(0), n_threads=1)
    np.testing.assert_allclose(found.values["sampled_hr@10"], 10 / 100)
    np.testing.assert_allclose(
        found.values["sampled_ndcg@10"], sum(1 / np.log2(np.arange(2, 12))) / 100
    )


def test_the_seed_alone_says_which_negatives():
    test, seen = problem(60, 300)
    scores = np.random.default_rng(0).random((60, 300))
    first, again, other, model = (
        Recording(scorer_of(values)) for values in (scores, scores, scores, -scores)
    )
    one = among_random(first, test, seen, Seed(0), n_threads=1)
    two = among_random(again, test, seen, Seed(0), n_threads=3)
    among_random(other, test, seen, Seed(1), n_threads=1)
    among_random(model, test, seen, Seed(0), n_threads=1)
    assert first.asked == again.asked == model.asked
    assert first.asked != other.asked
    for name, values in one.values.items():
        assert values.tobytes() == two.values[name].tobytes()


def test_nobody_to_test_is_no_failure():
    found = among_random(scorer_of(np.ones((3, 4))), table([], n_users=3, n_items=4),
                    table([], n_users=3, n_items=4), Seed(0), n_threads=1)  # fmt: skip
    assert len(found.users) == 0
    assert math.isnan(found.means()["sampled_hr@10"])


def test_bad_wishes_are_refused():
    test, seen = problem()
    scorer = scorer_of(np.ones((40, 60)))
    with pytest.raises(DataError, match="k is 0; it must be at least 1"):
        among_random(scorer, test, seen, Seed(0), k=0, n_threads=1)
    with pytest.raises(DataError, match="n_negatives is 0"):
        among_random(scorer, test, seen, Seed(0), n_negatives=0, n_threads=1)
    with pytest.raises(DataError, match="differ in"):
        among_random(scorer, test, table([], n_users=3, n_items=60), Seed(0), n_threads=1)
    broken = scorer_of(np.full((40, 60), np.nan))
    with pytest.raises(DataError, match="the model diverged"):
        among_random(broken, test, seen, Seed(0), n_threads=1)


def test_to_ask_for_sampled_metrics_changes_no_other_mark():
    rng = np.random.default_rng(0)
    users = np.arange(50)
    full = [PerUser(users, {"ndcg@10": rng.random(50)}) for _ in range(2)]
    more = [
        one.joined(PerUser(users, {"sampled_hr@10": rng.random(50), "sampled_ndcg@10": noise}))
        for one, noise in zip(full, rng.random((2, 50)), strict=True)
    ]
    alone, both = (compare({"tv": a}, {"tv": b}) for a, b in (full, more))
    assert both["tv", "ndcg@10"] == alone["tv", "ndcg@10"]
    apart = [both["tv", name] for name in ("sampled_hr@10", "sampled_ndcg@10")]
    np.testing.assert_allclose(
        [one.p_corrected for one in apart], holm(np.array([one.p for one in apart]))
    )


def test_metrics_of_other_users_cannot_be_joined():
    one = PerUser(np.array([0, 1]), {"ndcg@10": np.zeros(2)})
    with pytest.raises(DataError, match="metrics are of 2 and 1 users"):
        one.joined(PerUser(np.array([0]), {"recall@10": np.zeros(1)}))
