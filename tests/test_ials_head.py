"""The iALS head: least squares by definition, who weighs in it, who is served, what it gains."""

import numpy as np
import pytest
from contract import PersonalScorerContract
from test_ease import dense, pairs
from test_linear_head import embeddings

from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.heads.ials import IalsHeadSettings, ials_head
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.seeding import Seed
from musketeers.training import Unwatched


class TestContract(PersonalScorerContract):
    def fit(self, train):
        # who likes what, in two numbers: without it nothing could tell the camps apart
        users = np.zeros((train.n_users, 2), np.float32)
        users[np.arange(train.n_users), np.arange(train.n_users) % 2] = 1
        known = np.ones(train.n_users, np.bool_)
        shared = UserEmbeddings.collect({"a": users, "b": users}, {"a": known, "b": known})
        return ials_head("a", train, shared, IalsHeadSettings(), n_threads=1)


def head(train, shared, target="b", *, n_threads=1, **settings):
    return ials_head(target, train, shared, IalsHeadSettings(**settings), n_threads=n_threads)


def half_known(*, entropy=1):
    """Pairs of forty users and seven items; the last ten users have none."""
    made = pairs(40, 7, entropy=entropy)
    keep = made.users() < 30
    return Interactions.from_pairs(made.users()[keep], made.items[keep], n_users=40, n_items=7)


def test_every_item_is_the_minimum_of_its_weighted_squares():
    train, shared = half_known(), embeddings(40)
    model = head(train, shared, unobserved_weight=0.3, regularization=0.05, source_weight=0.7)
    own, others = shared.values[:, 1], shared.values[:, [0, 2]].reshape(40, 6)
    inputs = np.hstack([own, 0.7 * others]).astype(np.float64)
    np.testing.assert_allclose(model.users, inputs, rtol=1e-6)
    liked = dense(train)
    known = liked.any(axis=1)
    for item in range(7):
        # one row for each user's pull to 1 and one for the pull to 0, weighted by roots
        mine = liked[:, item] > 0
        held = np.sqrt(0.05 * (mine.sum() + 0.3 * known.sum())) * np.eye(9)
        rows = np.vstack([inputs[mine], np.sqrt(0.3) * inputs[known], held])
        aims = np.concatenate([np.ones(mine.sum()), np.zeros(known.sum() + 9)])
        wanted, *_ = np.linalg.lstsq(rows, aims, rcond=None)
        np.testing.assert_allclose(model.items[item], wanted, rtol=1e-3, atol=1e-5)


def test_without_a_weight_it_is_half_an_epoch_of_the_domains_own_ials():
    split = planted(("tv", "film"), Seed(0), n_users=600, n_items=60).splits["tv"]
    made = ials(split, Validation.of(split, Seed(0), n_threads=1), IalsSettings(max_epochs=3),
                Seed(0), Unwatched(), dim=8)  # fmt: skip
    assert made.history.best.number > 0
    known = split.train.known_users()
    shared = UserEmbeddings.collect({"tv": made.factors.users}, {"tv": known})
    # in units of their length users are shorter, and what holds items back counts for less
    length = float(shared.lengths[0])
    again = head(split.train, shared, "tv", regularization=0.02 / length**2, source_weight=0.0)
    np.testing.assert_allclose(again.items / length, made.factors.items, rtol=2e-3, atol=1e-4)


def test_nobody_whom_the_target_does_not_know_weighs_in_it():
    train, shared = half_known(), embeddings(40)
    other = UserEmbeddings(shared.domains, shared.values.copy(), shared.known, shared.lengths)
    other.values[30:] *= 5
    assert head(train, shared).items.tobytes() == head(train, other).items.tobytes()


def test_a_user_without_history_is_scored_from_the_others_and_a_stranger_not():
    train, shared = half_known(), embeddings(40, unknown=0)
    shared.known[30:, 1] = False
    shared.values[30:, 1] = 0
    shared.known[31] = False
    shared.values[31] = 0
    scores = head(train, shared).score(np.array([30, 31]))
    assert np.ptp(scores[0]) > 0
    np.testing.assert_array_equal(scores[1], 0)
    assert np.ptp(head(train, shared, source_weight=0.0).score(np.array([30]))) == 0


def test_is_the_same_on_any_number_of_threads():
    train, shared = half_known(), embeddings(40)
    one, three = (head(train, shared, n_threads=n) for n in (1, 3))
    assert one.items.tobytes() == three.items.tobytes()
    assert one.users.tobytes() == three.users.tobytes()


def test_ranks_better_than_alone_where_taste_is_shared_and_not_by_noise():
    splits = planted(("tv", "film"), Seed(0), n_users=1000, n_items=120, common=1.0).splits
    split = splits["film"]
    known = {name: one.train.known_users() for name, one in splits.items()}
    vectors = {
        name: ials(one, Validation.of(one, Seed(0), n_threads=1), IalsSettings(max_epochs=5),
                   Seed(0), Unwatched(), dim=8).factors.users
        for name, one in splits.items()
    }  # fmt: skip
    shared = UserEmbeddings.collect(vectors, known)
    order = Seed(1).numpy().permutation(1000)
    mixed = UserEmbeddings.collect({**vectors, "tv": vectors["tv"][order]},
                                   {**known, "tv": known["tv"][order]})  # fmt: skip
    found = {
        name: evaluate(
            head(split.train, told, "film", source_weight=weight), split.test, split.seen(),
            ks=(10,), n_threads=1,
        ).values["ndcg@10"].mean()
        for name, told, weight in (("alone", shared, 0.0), ("told", shared, 1.0),
                                   ("noise", mixed, 1.0))
    }  # fmt: skip
    assert found["told"] > 1.05 * found["alone"]
    assert 0.9 < found["noise"] / found["alone"] < 1.02


def test_bad_wishes_are_refused():
    train, shared = half_known(), embeddings(40)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match=f"source_weight is {bad}; it must be >= 0"):
            IalsHeadSettings(source_weight=bad)
    with pytest.raises(ConfigError, match=r"regularization is 0\.0; it must be a number above 0"):
        head(train, shared, regularization=0.0)
    with pytest.raises(DataError, match="'d' is not one of a, b, c"):
        head(train, shared, "d")
