"""Stage 1: a domain that learns alone."""

import numpy as np
import pytest
from contract import PersonalScorerContract

from musketeers.baselines.popularity import popularity
from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import DataError, DivergedError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import MOST_USERS, Validation
from musketeers.instructions import has_float16
from musketeers.pretrain import lanes
from musketeers.pretrain.mf import pretrain
from musketeers.seeding import Seed
from musketeers.training import Unwatched

QUICK = PretrainConfig(max_epochs=15, patience=3, tries=2)


def pairs(users, items, *, n_users, n_items):
    return Interactions.from_pairs(
        np.array(users, dtype=int), np.array(items, dtype=int), n_users=n_users, n_items=n_items
    )


def fitted(split, config=QUICK, *, seed=0, n_threads=1, dim=8):
    validation = Validation.of(split, Seed(seed).child("validation"), n_threads=n_threads)
    return pretrain(split, validation, config, Seed(seed), Unwatched(), dim=dim)


def small(seed=0, **options):
    return planted(("tv",), Seed(seed), n_users=150, n_items=40, **options).splits["tv"]


def same(one, other):
    return (
        one.factors.users.tobytes() == other.factors.users.tobytes()
        and one.factors.items.tobytes() == other.factors.items.tobytes()
        and one.item_squares.tobytes() == other.item_squares.tobytes()
        and one.regularization == other.regularization
    )


class TestContract(PersonalScorerContract):
    def fit(self, train):
        everyone = np.arange(train.n_users)
        held_back = pairs(everyone, everyone, n_users=train.n_users, n_items=train.n_items)
        nothing = pairs([], [], n_users=train.n_users, n_items=train.n_items)
        return fitted(Split(train, held_back, nothing), PretrainConfig(max_epochs=50)).factors


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_domain_alone_is_far_better_than_popularity(seed):
    split = planted(("tv",), Seed(seed), popularity=0.5).splits["tv"]
    scores = [
        evaluate(model, split.test, split.seen(), n_threads=1).means()["ndcg@10"]
        for model in (fitted(split, seed=seed).factors, popularity(split.train))
    ]
    assert scores[0] > scores[1] + 0.05


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_same_seed_data_and_threads_give_the_same_bits(n_threads, kept_as):
    split = small()
    first = fitted(split, n_threads=n_threads)
    assert same(first, fitted(split, n_threads=n_threads))
    assert not same(first, fitted(split, n_threads=n_threads, seed=1))


def test_two_lanes_learn_as_well_as_one():
    split = planted(("tv",), Seed(0)).splits["tv"]
    best = [max(h.best.valid for h in fitted(split, n_threads=n).history) for n in (1, 2)]
    assert best[1] == pytest.approx(best[0], abs=0.02)


@pytest.mark.skipif(not has_float16(), reason="this processor has no float16")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_large_tables_in_float16_learn_as_well(n_threads, monkeypatch):
    split = planted(("tv",), Seed(0)).splits["tv"]
    whole = fitted(split, n_threads=n_threads)
    monkeypatch.setattr(lanes, "LARGE", 0)
    halves = fitted(split, n_threads=n_threads)
    assert not same(whole, halves)
    assert halves.factors.items.dtype == np.float32
    best = [max(h.best.valid for h in one.history) for one in (whole, halves)]
    assert best[1] == pytest.approx(best[0], abs=0.02)


def test_users_without_training_history_get_the_mean_user():
    split = planted(("tv", "film"), Seed(0), n_items=40, known=0.6).splits["tv"]
    known = split.train.known_users()
    users = fitted(split).factors.users
    assert 0 < known.sum() < len(known)
    mean = users[known].mean(axis=0)
    assert np.linalg.norm(mean) > 0
    np.testing.assert_array_equal(users[~known], np.tile(mean, ((~known).sum(), 1)))


def test_every_item_learns_the_first_and_the_last_included():
    split = small()
    start = fitted(split, PretrainConfig(max_epochs=1, tries=1, learning_rate=1e-12))
    after = fitted(split)
    moved = np.linalg.norm(after.factors.items - start.factors.items, axis=1)
    assert (moved > 0.05).all()
    assert (after.item_squares > start.item_squares).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_chooses_the_strength_and_the_rate(seed):
    split = small(seed)
    config = PretrainConfig(max_epochs=15, patience=3, tries=7, regularization=0.5)
    result = fitted(split, config, seed=seed)
    values = [history.best.valid for history in result.history]
    assert 2 < len(values) <= 7
    if len(values) < 7:  # then the last step of each kind was in vain
        assert max(values[-2:]) <= max(values[:-2])
    alone = config.model_copy(
        update={"regularization": result.regularization, "learning_rate": result.learning_rate}
    )
    again = fitted(split, alone.model_copy(update={"tries": 1}), seed=seed)
    assert (again.factors.items == result.factors.items).all()
    # the model handed over is the one that was chosen
    validation = Validation.of(split, Seed(seed).child("validation"), n_threads=1)
    assert validation.ndcg(result.factors) == max(values)


def test_one_try_trains_as_it_is_set():
    result = fitted(small(), PretrainConfig(max_epochs=2, tries=1, regularization=0.07))
    assert len(result.history) == 1
    assert result.regularization == 0.07


def test_an_absurd_learning_rate_ends_with_the_epoch_and_the_cause(kept_as):
    with pytest.raises(DivergedError, match=r"^epoch 1: training loss is (nan|inf); learning_rate"):
        fitted(small(), PretrainConfig(learning_rate=1e30))


def test_validation_looks_at_a_fixed_sample_of_users_it_can_judge():
    n = MOST_USERS + 500
    everyone = np.arange(n)
    judged = everyone[everyone % 50 != 7]
    split = Split(
        pairs(everyone, everyone % 3, n_users=n, n_items=5),
        pairs(judged, 3 + judged % 2, n_users=n, n_items=5),
        pairs([], [], n_users=n, n_items=5),
    )
    first, again, other = (Validation.of(split, Seed(s), n_threads=1).users for s in (0, 0, 1))
    assert len(first) == MOST_USERS
    assert len(np.unique(first)) == MOST_USERS
    assert np.isin(first, judged).all()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_validation_without_a_sample_takes_everyone_with_both_kinds_of_items():
    split = Split(
        pairs([0, 1, 3], [0, 1, 2], n_users=5, n_items=4),
        pairs([0, 2, 3], [3, 3, 3], n_users=5, n_items=4),
        pairs([], [], n_users=5, n_items=4),
    )
    np.testing.assert_array_equal(Validation.of(split, Seed(0), n_threads=1).users, [0, 3])


def test_validation_of_nobody_is_refused():
    split = Split(
        pairs([0], [0], n_users=2, n_items=2),
        pairs([1], [0], n_users=2, n_items=2),
        pairs([], [], n_users=2, n_items=2),
    )
    with pytest.raises(DataError, match=r"no user has both .*; raise split\.valid"):
        Validation.of(split, Seed(0), n_threads=1)
