"""Members that share a run's users out: together they do what one does with all users."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from members import of_member, part, rows_of, together

from musketeers.baselines.popularity import popularity
from musketeers.cat.lanes import Lanes
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.config import (
    ArtConfig,
    CatConfig,
    DataConfig,
    PretrainConfig,
    RunConfig,
)
from musketeers.data.synthetic import planted
from musketeers.errors import DataError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import MOST_USERS, Validation
from musketeers.exchange import UserEmbeddings, lengths_of
from musketeers.group import first_tells, group, in_steps, mean_of, of_all, own, total
from musketeers.heads.cold import cold_linear
from musketeers.heads.gate import groups
from musketeers.heads.linear import linear_solved
from musketeers.memory import available
from musketeers.pipeline import cat_art, choices, exchanged
from musketeers.pretrain.lanes import ItemLanes
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.run_folder import FolderCheckpoint
from musketeers.seeding import Seed
from musketeers.task import unwatched

NAMES = ("a", "b", "c")
CONFIG = RunConfig(
    dim=8,
    data=DataConfig(domains=dict.fromkeys(NAMES, "-")),
    pretrain=PretrainConfig(max_epochs=12, patience=6, tries=1, regularization=0.05),
    cat=CatConfig(max_epochs=4, batch_size=64),
    art=ArtConfig(max_epochs=6, batch_size=64),
)


@pytest.fixture(scope="module")
def splits():
    return planted(NAMES, Seed(3), n_users=400, n_items=60).splits


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).standard_normal((31, 4)).astype(np.float32)


# --- alone


def test_alone_all_is_as_without_a_group(table):
    seed, rows = Seed(1).child("some"), np.random.default_rng(0).permutation(1000)
    assert group().size == 1
    assert own(seed) is seed
    assert total(0.1) == 0.1
    assert mean_of(table).tobytes() == table.mean(axis=0).tobytes()
    assert mean_of(table[:, 0]) == table[:, 0].mean()
    for n in (0, 1, 255, 256, 257, 1000):
        steps = [rows[:n][start : start + 256].tolist() for start in range(0, n, 256)]
        assert [step.tolist() for step in in_steps(rows[:n], 256)] == steps


# --- what members do together


def test_members_add_and_gather_in_their_order(table):
    def work(place):
        mine, number = table[rows_of(place, 3, 31)], np.array([place])
        group().add(number)
        tables = group().gathered(mine)
        return mean_of(mine), of_all(mine), [len(one) for one in tables], number[0], total(0.5)

    for mean, every, counts, number, halves in together(3, work):
        np.testing.assert_allclose(mean, table.mean(axis=0), rtol=1e-5)
        assert np.array_equal(every, np.concatenate([table[place::3] for place in range(3)]))
        assert counts == [11, 10, 10]
        assert (number, halves) == (3, 1.5)


def test_the_first_member_tells(table):
    def work(place):
        mine = table * np.float32(place + 1)
        first_tells(mine)
        return mine

    assert all(np.array_equal(one, table) for one in together(2, work))


def test_every_member_draws_its_own():
    drawn = together(2, lambda _: own(Seed(0)).numpy().random())
    assert drawn[0] != drawn[1]
    assert drawn == together(2, lambda _: own(Seed(0)).numpy().random())


@pytest.mark.parametrize("counts", [(10, 3, 0), (1, 1, 1), (64, 1, 7), (0, 0, 0)])
def test_steps_take_every_row_once_and_end_for_all_at_once(counts):
    steps = together(3, lambda place: in_steps(np.arange(counts[place]) + 100 * place, 4))
    n_steps = -(-sum(counts) // 4)
    assert [len(one) for one in steps] == [n_steps] * 3
    for place, one in enumerate(steps):
        rows = np.concatenate([np.empty(0, np.int64), *one])
        assert rows.tolist() == (np.arange(counts[place]) + 100 * place).tolist()
    for step in zip(*steps, strict=True):
        # each member's share is rounded
        assert abs(sum(map(len, step)) - 4) <= 3 or sum(map(len, step)) == sum(counts) % 4


# --- the stages, against one that has all users


def test_what_is_counted_over_users_is_that_of_all(splits):
    train = splits["a"].train
    whole = popularity(train).items
    known = {name: one.train.known_users() for name, one in splits.items()}
    vectors = np.random.default_rng(1).standard_normal((train.n_users, 8)).astype(np.float32)
    lengths = lengths_of(dict.fromkeys(NAMES, vectors), known)

    def work(place):
        rows = rows_of(place, 3, train.n_users)
        mine = {name: known[name][rows] for name in NAMES}
        return (
            popularity(train.of_each(rows)).items,
            lengths_of(dict.fromkeys(NAMES, vectors[rows]), mine),
        )

    for counts, found in together(3, work):
        assert np.array_equal(counts, whole)
        np.testing.assert_allclose(found, lengths, rtol=1e-6)


def test_validation_is_of_all_members_users(splits):
    whole = splits["a"]
    rng = np.random.default_rng(0)
    model = Factors(
        rng.standard_normal((whole.train.n_users, 8)).astype(np.float32),
        rng.standard_normal((whole.train.n_items, 8)).astype(np.float32),
    )
    other = Factors(model.users, model.items[::-1].copy())
    alone = Validation.of(whole, Seed(0), n_threads=1)

    def work(place):
        rows = rows_of(place, 2, whole.train.n_users)
        mine = Validation.of(part(whole, rows), Seed(0), n_threads=1)
        one, two = (Factors(m.users[rows], m.items) for m in (model, other))
        return mine.ndcg(one), mine.is_better(one, two), len(mine.by_user(one))

    expected = alone.ndcg(model), alone.is_better(model, other), len(alone.users)
    for found in together(2, work):
        assert found == (pytest.approx(expected[0]), *expected[1:])


def test_members_look_at_no_more_users_than_one(monkeypatch, splits):
    monkeypatch.setattr("musketeers.evaluation.validation.MOST_USERS", 50)
    assert MOST_USERS > 50
    mine = of_member(splits, 0, 2)["a"], of_member(splits, 1, 2)["a"]
    found = together(2, lambda place: len(Validation.of(mine[place], Seed(0), n_threads=1).users))
    assert 48 <= sum(found) <= 50


def test_a_member_without_users_takes_part(splits):
    whole = splits["a"]
    rows = np.arange(whole.train.n_users), np.empty(0, np.int64)
    items = np.ones((whole.train.n_items, 8), np.float32)

    def work(place):
        validation = Validation.of(part(whole, rows[place]), Seed(0), n_threads=1)
        return validation.ndcg(Factors(np.ones((len(rows[place]), 8), np.float32), items))

    one, other = together(2, work)
    assert one == other > 0


def test_nobody_to_look_at_is_refused_by_all(splits):
    nobody = part(splits["a"], np.empty(0, np.int64))
    with pytest.raises(DataError, match="no user has both"):
        together(2, lambda _: Validation.of(nobody, Seed(0), n_threads=1))


def test_items_learn_from_all_members_and_are_the_same_for_all():
    start = np.ones((5, 2), np.float32)

    def work(place):
        lanes = ItemLanes(start, np.ones(5, np.float32), n_lanes=1)

        def learn(part, rows):
            rows.items[place] += place + 1
            rows.squares[place] += 1

        for _ in range(2):
            lanes.run(np.ones(1, np.int64), learn)
            lanes.merge()
        return lanes.items, lanes.squares

    for items, squares in together(3, work):
        assert items[:, 0].tolist() == [3, 5, 7, 1, 1]
        assert squares.tolist() == [3, 3, 3, 1, 1]


def exchange(n_users=50, n_domains=3, dim=4):
    rng = np.random.default_rng(7)
    known = rng.random((n_users, n_domains)) < 0.7
    values = rng.standard_normal((n_users, n_domains, dim)).astype(np.float32) * known[..., None]
    return UserEmbeddings(NAMES, values, known, np.ones(n_domains, np.float32))


def a_step(shared, rows, config, n_threads=1):
    """Loss and gradient of one step of stage 2 over those users."""
    generator = torch.Generator().manual_seed(0)
    model = ContrastiveAutoencoder(3, 4, generator=generator)
    shown = shared.known.copy()
    shown[np.arange(len(shown)), shown.argmax(axis=1)] &= shown.sum(axis=1) == 1
    computer = Lanes(model, shared.of(rows), config, n_threads=n_threads)
    losses = list(computer.learn(np.arange(len(rows)), shown[rows]))
    assert len(losses) == 1
    return losses[0], [weight.grad.numpy().copy() for weight in model.parameters()]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("loss", ["full", "reconstruction"])
def test_a_step_of_members_is_the_step_of_one_over_all_their_users(loss, n_threads):
    shared, config = exchange(), CatConfig(batch_size=64, loss=loss)
    order = np.concatenate([rows_of(place, 3, 50) for place in range(3)])
    value, slopes = a_step(shared, order, config)

    def work(place):
        return a_step(shared, rows_of(place, 3, 50), config, n_threads)

    found = together(3, work)
    assert sum(one for one, _ in found) == pytest.approx(value, rel=1e-5)
    for _, mine in found:
        for a, b, first in zip(mine, slopes, found[0][1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
            assert np.array_equal(a, first)


def test_members_may_tell_users_apart_from_their_own_alone():
    shared = exchange()

    def loss(users):
        config = CatConfig(batch_size=64, contrast_users=users)
        return sum(
            one for one, _ in together(2, lambda p: a_step(shared, rows_of(p, 2, 50), config))
        )

    # to tell somebody apart from fewer is easier
    assert loss("local") < loss("gathered")


def test_linear_models_are_those_of_all_users(splits):
    whole = splits["a"].train
    shared = exchange(whole.n_users).without("a")
    head = linear_solved(whole, 10.0)(shared)(2.0).weights
    cold = cold_linear(whole, shared)(10.0).items

    def work(place):
        rows = rows_of(place, 3, whole.n_users)
        mine, told = whole.of_each(rows), shared.of(rows)
        return linear_solved(mine, 10.0)(told)(2.0).weights, cold_linear(mine, told)(10.0).items

    for weights, items in together(3, work):
        np.testing.assert_allclose(weights, head, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(items, cold, rtol=1e-3, atol=1e-5)


# --- all of it


def whole_run(place, splits, n):
    mine = of_member(splits, place, n)
    made = cat_art(mine, CONFIG, unwatched, n_threads=1)
    chosen = choices(mine, made, CONFIG, unwatched, n_threads=1, max_bytes=available())
    per_user = {
        (model, name): of_all(values(scorer, mine[name]))
        for name in mine
        for model, scorer in (
            ("smf", made.alone[name].factors),
            ("cat_art", made.transferred[name].factors),
            ("chosen", chosen[name].scorer),
        )
    }
    return made, chosen, {cell: float(found.mean()) for cell, found in per_user.items()}


def values(scorer, split):
    return evaluate(scorer, split.test, split.seen(), n_threads=1).values["ndcg@10"]


@pytest.mark.slow
def test_a_run_of_members_is_as_good_as_one_and_can_be_repeated(splits):
    _, _, alone = whole_run(0, splits, 1)
    found = together(2, lambda place: whole_run(place, splits, 2))
    again = together(2, lambda place: whole_run(place, splits, 2))
    for (made, chosen, cells), (other, _, _) in zip(found, again, strict=True):
        assert cells == found[0][2]
        assert {n: one.verdict for n, one in chosen.items()} == {
            n: one.verdict for n, one in found[0][1].items()
        }
        assert np.array_equal(made.aligned.users, other.aligned.users)
        for name in NAMES:
            items = made.transferred[name].factors.items
            assert np.array_equal(items, found[0][0].transferred[name].factors.items)
            assert np.array_equal(items, other.transferred[name].factors.items)
            told = made.transferred[name].attention
            assert told == found[0][0].transferred[name].attention
    for model in ("smf", "cat_art", "chosen"):
        one, several = (np.mean([c[model, n] for n in NAMES]) for c in (alone, found[0][2]))
        assert several == pytest.approx(one, rel=0.05)


@pytest.mark.parametrize("by", ["domain", "activity", "domains"])
def test_users_by_group_are_those_of_all_members(splits, by):
    whole, shared = splits["a"], exchange(splits["a"].train.n_users)
    kept = np.random.default_rng(0).random(len(whole.train)) < 0.6
    whole = replace(whole, train=whole.train.only(kept))
    expected = groups(by, Validation.of(whole, Seed(0), n_threads=1), shared)

    def work(place):
        rows = rows_of(place, 2, whole.train.n_users)
        mine = Validation.of(part(whole, rows), Seed(0), n_threads=1)
        return groups(by, mine, shared.of(rows))

    for place, found in enumerate(together(2, work)):
        assert found.names == expected.names
        assert np.array_equal(found.of, expected.of[place::2])
    assert len(expected.names) == {"domain": 1, "activity": 3, "domains": 4}[by]


def test_whom_one_member_knows_nowhere_is_nobody_to_the_others_too(splits):
    """A domain of which one member has no user."""
    n_users = splits["a"].train.n_users
    here = [np.ones(n_users, np.bool_), np.zeros(n_users, np.bool_)]

    def work(place):
        mine = of_member(splits, place, 2)
        nobody = np.full(len(rows_of(place, 2, n_users)), -1)
        mine["a"] = mine["a"] if here[place][0] else part(mine["a"], nobody)
        made = cat_art(mine, CONFIG, unwatched, n_threads=1)
        return made, exchanged(mine, made.alone)

    (first, told), (second, other) = together(2, work)
    items = [one.alone["a"].factors.items for one in (first, second)]
    assert np.array_equal(*items)
    assert np.array_equal(told.lengths, other.lengths)
    assert isinstance(second.alone["a"], Pretrained)


# --- progress


def test_members_go_on_from_the_last_progress_that_all_have(tmp_path):
    def save(place, number):
        FolderCheckpoint(tmp_path / str(place)).save({"x": np.array([number])}, {"n": number})

    def load(place):
        found = FolderCheckpoint(tmp_path / str(place)).load()
        return found and found[1]["n"]

    def work(place):
        for number in range(3):
            save(place, number)
        return load(place)

    assert together(2, work) == [2, 2]
    assert len(list((tmp_path / "0").iterdir())) == 1
    # one died after it had saved and before the other had: then both have the one before
    one = FolderCheckpoint(tmp_path / "0")
    kept = next(one.folder.iterdir())
    kept.rename(one.folder / "7")
    saved = FolderCheckpoint(tmp_path / "1").folder
    next(saved.iterdir()).rename(saved / "7")
    shutil.copytree(one.folder / "7", one.folder / "8")
    assert together(2, load) == [2, 2]
    assert [entry.name for entry in one.folder.iterdir()] == ["7"]
    # one has none at all
    shutil.rmtree(saved)
    assert together(2, load) == [None, None]
    assert not list(one.folder.iterdir())
