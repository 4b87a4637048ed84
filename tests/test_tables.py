"""Turns of several catalogues over one user table."""

import numpy as np
import pytest
from members import rows_of, together

from musketeers.config import PretrainConfig
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.evaluation.validation import Validation
from musketeers.parallel import each
from musketeers.pretrain import lanes, mf
from musketeers.pretrain.tables import FIRST_MERGES, MEMBERS_MERGES, MERGES, Catalogue, Tables
from musketeers.seeding import Seed
from musketeers.training import Unwatched


def random_pairs(seed, *, n_users=60, n_items=9, n_pairs=200):
    rng = np.random.default_rng(seed)
    return Interactions.from_pairs(
        rng.integers(n_users - 10, size=n_pairs), rng.integers(n_items, size=n_pairs),
        n_users=n_users, n_items=n_items,
    )  # fmt: skip


def all_pairs(*, n_users, n_items):
    """Every user with every item."""
    users = np.repeat(np.arange(n_users), n_items)
    items = np.tile(np.arange(n_items), n_users)
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def made(*trains, seed=0, n_lanes=1):
    root = Seed(seed)
    catalogues = [Catalogue(train, root.child(str(n))) for n, train in enumerate(trains)]
    return Tables(catalogues, root, PretrainConfig(), dim=3, n_lanes=n_lanes)


def turns_of(tables, number=1):
    """(catalogue, users) of every turn of an epoch, in order, and its mean loss."""
    seen = []

    def learn(turn, part, rows):
        seen.append((turn.catalogue, turn.users[part].tolist(), int(turn.key)))
        return 2.0

    return seen, tables.epoch(number, learn)


def test_an_epoch_visits_every_known_user_of_every_catalogue_once():
    trains = random_pairs(0), random_pairs(1, n_items=30, n_pairs=50)
    seen, loss = turns_of(made(*trains))
    for place, train in enumerate(trains):
        visited = [user for catalogue, users, _ in seen if catalogue == place for user in users]
        assert sorted(visited) == np.flatnonzero(train.known_users()).tolist()
    assert loss == 2.0 * len(seen) / (len(trains[0]) + len(trains[1]))


def test_catalogues_take_turns_all_through_an_epoch_and_none_always_goes_first():
    tables = made(random_pairs(0), random_pairs(1))
    orders = [[place for place, *_ in turns_of(tables, number)[0]] for number in range(1, 21)]
    for order in orders:
        assert len(order) == 2 * MERGES
        # after every quarter both are equally far, give or take the turn that is being taken
        halves = np.cumsum(np.where(np.array(order) == 0, 1, -1))
        assert np.abs(halves[1::2]).max() == 0
    assert {order[-1] for order in orders} == {0, 1}


def test_each_catalogue_and_epoch_has_an_order_and_negatives_of_its_own():
    train = random_pairs(0)
    tables = made(train, train)
    first, second = turns_of(tables, 1)[0], turns_of(tables, 2)[0]
    keys = {(place, key) for place, _, key in first} | {(place, key) for place, _, key in second}
    assert len(keys) == len({key for _, key in keys}) == 4
    orders = [
        [user for place, users, _ in seen if place == catalogue for user in users]
        for seen in (first, second)
        for catalogue in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert turns_of(tables, 1)[0] == first


def test_two_lanes_share_every_turn():
    train = random_pairs(0)
    one, two = (turns_of(made(train, n_lanes=n))[0] for n in (1, 2))
    joined = [sorted(two[n][1] + two[n + 1][1]) for n in range(0, len(two), 2)]
    assert joined == [sorted(users) for _, users, _ in one]


@pytest.mark.parametrize("n_lanes", [1, 2])
def test_restore_takes_over_what_state_gave(n_lanes):
    tables = made(random_pairs(0), random_pairs(1, n_items=5), n_lanes=n_lanes)
    rng = np.random.default_rng(0)
    saved = {
        name: rng.normal(size=value.shape).astype(np.float32)
        for name, value in tables.state().items()
    }
    assert len(saved) == 6
    tables.restore(saved)
    for name, value in tables.state().items():
        np.testing.assert_array_equal(value, saved[name])


def test_users_without_any_history_get_the_mean_of_those_with():
    tables = made(random_pairs(0), random_pairs(1))
    before = tables.users.copy()
    tables.give_unknown_users_the_mean()
    known = tables.known_users()
    assert not known[-10:].any()
    np.testing.assert_array_equal(tables.users[known], before[known])
    mean = before[known].mean(axis=0)
    np.testing.assert_array_equal(tables.users[~known], np.tile(mean, ((~known).sum(), 1)))


@pytest.mark.parametrize(
    ("n_lanes", "first", "later"),
    [(1, MERGES, MERGES), (4, MERGES, MERGES), (5, 100, MERGES), (64, 100, MERGES)],
)
def test_many_lanes_are_merged_more_often_in_the_first_epoch(n_lanes, first, later):
    # 400 interactions of an item, 4 of them between two merges
    train = all_pairs(n_users=400, n_items=3)
    tables = made(train, n_lanes=n_lanes)
    assert [len(tables.turns(number)) for number in (1, 2, 3)] == [first, later, later]


def test_no_more_often_than_that_and_members_lanes_count_as_any():
    train = all_pairs(n_users=12000, n_items=2)

    def n_turns(n_lanes, n_members):
        def work(place):
            mine = train.of_each(rows_of(place, n_members, train.n_users))
            tables = made(mine, n_lanes=n_lanes)
            return [len(tables.turns(number)) for number in (1, 2)]

        return together(n_members, work)

    # 12,000 interactions of an item would be 3,000 merges; later 384 are met between two
    assert n_turns(4, 1) == [[MERGES, MERGES]]
    assert n_turns(5, 1) == [[FIRST_MERGES, 31]]
    assert n_turns(2, 2) == [[MEMBERS_MERGES, MEMBERS_MERGES]] * 2
    assert n_turns(3, 2) == n_turns(1, 6)[:2] == [[FIRST_MERGES, MEMBERS_MERGES]] * 2


def test_64_lanes_learn_as_well_as_one(monkeypatch):
    # one lane after the other, which are the same bits as all at once
    monkeypatch.setattr(lanes, "each", lambda job, n, *, n_threads: each(job, n, n_threads=1))
    # popular items are where many lanes' changes add up to too much
    planting = {"n_users": 3000, "n_items": 50, "pairs_per_user": 15, "popularity": 1.0}
    split = planted(("tv",), Seed(0), **planting).splits["tv"]
    config = PretrainConfig(max_epochs=8, validate_every=8, tries=1, regularization=0.05)

    def quality(n_lanes):
        looked_at = Validation.of(split, Seed(0), n_threads=1)
        monkeypatch.setattr(mf, "lanes_for", lambda _: n_lanes)
        made = mf.pretrain(split, looked_at, config, Seed(0), Unwatched(), dim=16)
        return made.history[0].best.valid

    assert quality(64) > 0.97 * quality(1)
