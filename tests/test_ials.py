"""iALS: the objective written out, each half epoch its exact minimum, and one known answer."""

from dataclasses import replace

import numpy as np
import pytest
from contract import PersonalScorerContract

from musketeers.baselines.popularity import popularity
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DivergedError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.run_folder import FolderCheckpoint
from musketeers.seeding import Seed
from musketeers.training import Unwatched

DEFAULT = IalsSettings()


def pairs(users, items, *, n_users, n_items):
    return Interactions.from_pairs(
        np.array(users, dtype=int), np.array(items, dtype=int), n_users=n_users, n_items=n_items
    )


def small(seed=0):
    options = {"n_users": 90, "n_items": 40, "known": 0.8}
    return planted(("tv", "film"), Seed(seed), **options).splits["tv"]


def fitted(split, settings=DEFAULT, *, seed=0, n_threads=1, dim=8, job=None):
    validation = Validation.of(split, Seed(seed).child("validation"), n_threads=n_threads)
    return ials(split, validation, settings, Seed(seed), job or Unwatched(), dim=dim)


def bits(model):
    return model.factors.users.tobytes() + model.factors.items.tobytes()


def dense(train):
    table = np.zeros((train.n_users, train.n_items))
    table[train.users(), train.items] = 1
    return table


def objective(table, users, items, settings):
    """The sum that iALS minimises, pair by pair."""
    weight, strength = settings.unobserved_weight, settings.regularization
    n_users, n_items = (table.any(axis).sum() for axis in (1, 0))
    scores = users @ items.T
    total = ((scores - 1) ** 2 * table).sum() + weight * (scores**2).sum()
    for side, counts, others in ((users, table.sum(1), n_items), (items, table.sum(0), n_users)):
        total += strength * ((counts + weight * others) * (side**2).sum(1)).sum()
    return total


def best_rows(table, fixed, settings):
    """Row by row, where the objective's slope is 0."""
    weight, n_others = settings.unobserved_weight, table.any(0).sum()
    rows = np.zeros((len(table), fixed.shape[1]))
    for row, liked in enumerate(table.astype(bool)):
        held = settings.regularization * (liked.sum() + weight * n_others)
        system = fixed[liked].T @ fixed[liked] + weight * fixed.T @ fixed
        rows[row] = np.linalg.solve(system + held * np.eye(fixed.shape[1]), fixed[liked].sum(0))
    return rows


class TestContract(PersonalScorerContract):
    def fit(self, train):
        everyone = np.arange(train.n_users)
        held_back = pairs(everyone, everyone, n_users=train.n_users, n_items=train.n_items)
        nothing = pairs([], [], n_users=train.n_users, n_items=train.n_items)
        return fitted(Split(train, held_back, nothing), dim=2).factors


@pytest.mark.parametrize("dim", [7, 16])
def test_one_epoch_is_the_dense_solution_of_users_then_items(dim):
    split, settings = small(), IalsSettings(max_epochs=1)
    table = dense(split.train)
    scale = np.float32(settings.init_scale / np.sqrt(dim))
    draws = Seed(0).child("init").numpy().standard_normal((table.shape[1], dim), dtype=np.float32)
    start = scale * draws.astype(np.float64) * table.any(0)[:, None]
    users = best_rows(table, start, settings)
    items = best_rows(table.T, users, settings)
    model = fitted(split, settings, dim=dim)
    known = split.train.known_users()
    assert 0 < known.sum() < len(known)
    np.testing.assert_allclose(model.factors.users[known], users[known], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.factors.items, items, rtol=1e-3, atol=1e-4)
    expected = objective(table, users, items, settings) / len(split.train)
    assert model.history.last.train_loss == pytest.approx(expected, rel=1e-5)


def test_the_loss_never_rises():
    losses = [e.train_loss for e in fitted(small(), IalsSettings(patience=50)).history.epochs[1:]]
    assert len(losses) == 50
    assert (np.diff(losses) < 1e-6).all()
    assert losses[-1] < losses[0]


def test_one_pair_and_one_dimension_reach_the_answer_found_by_hand():
    # with p = q = x: (x^2 - 1)^2 + w x^4 + 2 s (1 + w) x^2 is least at x^2 = 1 / (1 + w) - s
    split = Split(
        pairs([0], [0], n_users=1, n_items=2),
        pairs([0], [1], n_users=1, n_items=2),
        pairs([], [], n_users=1, n_items=2),
    )
    settings = IalsSettings(
        unobserved_weight=0.25, regularization=0.3, init_scale=1.0, max_epochs=200, patience=200
    )
    history = fitted(split, settings, dim=1).history
    square = 1 / 1.25 - 0.3
    least = (square - 1) ** 2 + 0.25 * square**2 + 2 * 0.3 * 1.25 * square
    assert history.last.train_loss == pytest.approx(least, rel=1e-5)


def test_it_climbs_to_the_strength_and_the_weight_that_validation_prefers():
    split = planted(("tv",), Seed(0), popularity=0.5).splits["tv"]
    start = IalsSettings(unobserved_weight=0.4, regularization=0.00125, max_epochs=10)
    one, found = fitted(split, start), fitted(split, replace(start, tries=12))
    assert 1 < len(found.histories) <= 12
    assert found.history.best.valid == max(one.best.valid for one in found.histories)
    assert found.history.best.valid > one.history.best.valid
    again = fitted(split, replace(found.settings, tries=1))
    assert bits(again) == bits(found)
    assert one.settings == start
    assert len(one.histories) == 1


def test_learns_more_than_popularity():
    split = planted(("tv",), Seed(0), popularity=0.5).splits["tv"]
    scores = [
        evaluate(model, split.test, split.seen(), n_threads=1).means()["ndcg@10"]
        for model in (fitted(split).factors, popularity(split.train))
    ]
    assert scores[0] > scores[1] + 0.05


def test_the_same_bits_again_and_on_any_number_of_threads():
    split = small()
    first = fitted(split)
    assert bits(first) == bits(fitted(split)) == bits(fitted(split, n_threads=3))
    assert [e.train_loss for e in first.history.epochs] == [
        e.train_loss for e in fitted(split, n_threads=2).history.epochs
    ]
    assert bits(first) != bits(fitted(split, seed=1))


def test_users_without_history_are_the_mean_user_and_items_without_are_zero():
    split = small()
    train = split.train
    kept = train.items != 5
    without = pairs(
        train.users()[kept], train.items[kept], n_users=train.n_users, n_items=train.n_items
    )
    factors = fitted(Split(without, split.valid, split.test)).factors
    known = without.known_users()
    mean = factors.users[known].mean(axis=0)
    np.testing.assert_array_equal(factors.users[~known], np.tile(mean, ((~known).sum(), 1)))
    assert not factors.items[5].any()


class Kept:
    """A job that keeps its progress in a folder and can break off."""

    def __init__(self, folder, *, stop_at=None):
        self.folder, self.stop_at = folder, stop_at

    def checkpoint(self, part):
        return FolderCheckpoint(self.folder / part)

    def on_epoch(self, epoch):
        if epoch.number == self.stop_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop_at", [0, 1, 4])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop_at):
    split, settings = small(), IalsSettings(max_epochs=8, patience=8)
    with pytest.raises(KeyboardInterrupt):
        fitted(split, settings, job=Kept(tmp_path, stop_at=stop_at))
    resumed = fitted(split, settings, job=Kept(tmp_path))
    whole = fitted(split, settings)
    assert bits(resumed) == bits(whole)
    assert [e.valid for e in resumed.history.epochs] == [e.valid for e in whole.history.epochs]


@pytest.mark.parametrize("name", ["unobserved_weight", "regularization", "init_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_above_zero(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; it must be a number above 0"):
        IalsSettings(**{name: value})


def test_a_system_that_float32_cannot_solve_ends_with_the_epoch():
    with pytest.raises(DivergedError, match=r"^epoch 1: .*; regularization is probably too small"):
        fitted(small(), IalsSettings(regularization=1e-30, unobserved_weight=1e-30), dim=64)
