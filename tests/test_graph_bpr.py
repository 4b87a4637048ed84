"""The graph models: slopes by finite differences, Adam by its definition, and what they promise."""

import numpy as np
import pytest
from contract import PersonalScorerContract

from musketeers.baselines.graph import Graph
from musketeers.baselines.graph_bpr import GraphBpr, GraphSettings
from musketeers.baselines.herograph import herograph_l
from musketeers.baselines.light_gcn import light_gcn
from musketeers.baselines.popularity import popularity
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DivergedError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.run_folder import FolderCheckpoint
from musketeers.seeding import Seed
from musketeers.training import Unwatched

QUICK = GraphSettings(layers=2, batch_size=256, max_epochs=6, patience=6)


def pairs(users, items, *, n_users, n_items):
    return Interactions.from_pairs(
        np.array(users, dtype=int), np.array(items, dtype=int), n_users=n_users, n_items=n_items
    )


def two(seed=0, **options):
    options = {"n_users": 60, "n_items": 25, "known": 0.7} | options
    return planted(("tv", "film"), Seed(seed), **options).splits


def judge(split, n_threads=1):
    return Validation.of(split, Seed(0).child("validation"), n_threads=n_threads)


def single(split, settings=QUICK, *, seed=0, n_threads=1, job=None, dim=8):
    validation = judge(split, n_threads)
    return light_gcn(split, validation, settings, Seed(seed), job or Unwatched(), dim=dim)


def joint(splits, settings=QUICK, *, seed=0, n_threads=1, job=None, dim=8):
    validations = {name: judge(split, n_threads) for name, split in splits.items()}
    return herograph_l(splits, validations, settings, Seed(seed), job or Unwatched(), dim=dim)


def alone(splits, settings=QUICK, *, seed=0, n_threads=1, job=None):
    return single(splits["tv"], settings, seed=seed, n_threads=n_threads, job=job)


def bits(model):
    tables = model.factors.values() if isinstance(model.factors, dict) else [model.factors]
    return b"".join(f.users.tobytes() + f.items.tobytes() for f in tables)


def trainable(splits, settings=QUICK, *, dim=4):
    """HeroGRAPH-L before training, in float64."""
    validations = [judge(split) for split in splits.values()]
    trains = [split.train for split in splits.values()]
    graphs = {"graph": (Graph.pooled(trains), settings.layers), "own": (Graph.apart(trains), 0)}
    model = GraphBpr(validations, graphs, settings, Seed(0), dim=dim)
    for embedding in model.embeddings.values():
        embedding.table = 3 * embedding.table.astype(np.float64)
    return model


def batches(model, size=16):
    rng = np.random.default_rng(1)
    samplers = model._samplers
    return [s.draw(rng.choice(s.pairs, size, replace=False), rng) for s in samplers]


class TestLightGcnContract(PersonalScorerContract):
    def fit(self, train):
        everyone = np.arange(train.n_users)
        held_back = pairs(everyone, everyone, n_users=train.n_users, n_items=train.n_items)
        nothing = pairs([], [], n_users=train.n_users, n_items=train.n_items)
        return single(Split(train, held_back, nothing), GraphSettings(max_epochs=50)).factors


class TestHeroGraphContract(PersonalScorerContract):
    def fit(self, train):
        everyone = np.arange(train.n_users)
        held_back = pairs(everyone, everyone, n_users=train.n_users, n_items=train.n_items)
        nothing = pairs([], [], n_users=train.n_users, n_items=train.n_items)
        split = Split(train, held_back, nothing)
        settings = GraphSettings(max_epochs=50)
        return joint({"tv": split, "film": split}, settings).factors["film"]


def test_the_loss_is_its_definition_triple_by_triple():
    settings = GraphSettings(layers=2, regularization=0.3)
    model = trainable(two(), settings)
    drawn = batches(model)
    loss, _ = model.slopes(drawn)
    expected = 0.0
    for domain, batch in enumerate(drawn):
        for u, i, j in zip(batch.users, batch.liked, batch.others, strict=True):
            ahead = length = 0.0
            for embedding in model.embeddings.values():
                user = embedding.graph.users[domain].start + u
                items = embedding.graph.items[domain].start + np.array([i, j])
                smoothed = embedding.smooth(embedding.table)
                ahead += smoothed[user] @ (smoothed[items[0]] - smoothed[items[1]])
                length += (embedding.table[[user, *items]] ** 2).sum()
            expected += (np.log1p(np.exp(-ahead)) + 0.3 / 2 * length) / len(batch.users)
    assert loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_slopes_equal_finite_differences_through_the_graph(layers):
    model = trainable(two(), GraphSettings(layers=layers, regularization=0.3))
    drawn = batches(model)
    _, slopes = model.slopes(drawn)
    rng = np.random.default_rng(2)
    for embedding, slope in zip(model.embeddings.values(), slopes, strict=True):
        direction = rng.standard_normal(slope.shape)
        values = []
        start = embedding.table
        for step in (1e-5, -1e-5):
            embedding.table = start + step * direction
            values.append(model.slopes(drawn)[0])
        embedding.table = start
        measured = (values[0] - values[1]) / 2e-5
        assert abs(measured) > 1e-2
        assert (slope * direction).sum() == pytest.approx(measured, rel=1e-5)


def test_other_items_are_uniform_over_those_the_user_does_not_like():
    train = pairs([0, 0, 1, 1, 1, 1], [1, 3, 0, 1, 2, 3], n_users=3, n_items=4)
    everyone = pairs([0], [0], n_users=3, n_items=4)
    split = Split(train, everyone, pairs([], [], n_users=3, n_items=4))
    graphs = {"graph": (Graph.pooled([train]), 1)}
    model = GraphBpr([judge(split)], graphs, QUICK, Seed(0), dim=2)
    sampler = model._samplers[0]
    # user 1 likes everything, so nothing can be set against it
    np.testing.assert_array_equal(sampler.pairs, [0, 1])
    batch = sampler.draw(np.tile([0, 1], 2000), np.random.default_rng(0))
    assert set(batch.users) == {0}
    np.testing.assert_array_equal(batch.liked[:2], [1, 3])
    counts = np.bincount(batch.others, minlength=4)
    np.testing.assert_array_equal(counts[[1, 3]], 0)
    assert abs(counts[0] - counts[2]) < 4 * np.sqrt(4000)


def test_an_epoch_of_one_step_is_one_step_of_adam():
    splits = two()
    settings = GraphSettings(layers=1, batch_size=10**6, learning_rate=0.03)
    one, other = trainable(splits, settings), trainable(splits, settings)
    tables = {name: e.table.copy() for name, e in one.embeddings.items()}
    loss = one.epoch(1)
    rng = Seed(0).child("epoch", "1").numpy()
    orders = [rng.permutation(s.pairs) for s in other._samplers]
    expected, slopes = other.slopes(
        [s.draw(order, rng) for s, order in zip(other._samplers, orders, strict=True)]
    )
    assert loss == expected
    for (name, embedding), slope in zip(one.embeddings.items(), slopes, strict=True):
        # the first step: both moments, corrected for their start, are the slope and its square
        step = 0.03 * slope / (np.abs(slope) + 1e-8 / np.sqrt(1e-3))
        np.testing.assert_allclose(embedding.table, tables[name] - step, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_both_learn_more_than_popularity(seed):
    splits = planted(("tv", "film"), Seed(seed), popularity=0.5, n_users=200, n_items=60).splits
    settings = GraphSettings(batch_size=256, max_epochs=25)
    split = splits["tv"]
    models = (
        popularity(split.train),
        single(split, settings, seed=seed).factors,
        joint(splits, settings, seed=seed).factors["tv"],
    )
    scores = [
        evaluate(model, split.test, split.seen(), n_threads=1).means()["ndcg@10"]
        for model in models
    ]
    assert scores[1] > scores[0] + 0.05
    assert scores[2] > scores[0] + 0.05


def test_the_joint_score_is_the_sum_of_both_inner_products():
    splits = two()
    model = trainable(splits)
    for embedding in model.embeddings.values():
        embedding.table = embedding.table.astype(np.float32)
    for domain, factors in enumerate(model.factors()):
        score = factors.users @ factors.items.T
        known = list(splits.values())[domain].train.known_users()
        expected = np.zeros_like(score)
        for embedding in model.embeddings.values():
            smoothed, graph = embedding.smooth(embedding.table), embedding.graph
            expected += smoothed[graph.users[domain]] @ smoothed[graph.items[domain]].T
        np.testing.assert_allclose(score[known], expected[known], rtol=1e-4, atol=1e-4)


def test_who_is_known_elsewhere_only_keeps_the_graph_and_takes_the_mean_of_the_rest():
    splits = two()
    known = {name: split.train.known_users() for name, split in splits.items()}
    elsewhere = known["film"] & ~known["tv"]
    nowhere = ~known["film"] & ~known["tv"]
    users = joint(splits).factors["tv"].users
    assert elsewhere.any()
    mean = users[known["tv"], 8:].mean(axis=0)
    np.testing.assert_array_equal(users[elsewhere, 8:], np.tile(mean, (elsewhere.sum(), 1)))
    assert len(np.unique(users[elsewhere, :8], axis=0)) == elsewhere.sum()
    mean = users[~nowhere, :8].mean(axis=0)
    np.testing.assert_array_equal(users[nowhere, :8], np.tile(mean, (nowhere.sum(), 1)))


@pytest.mark.parametrize("train", [alone, joint])
def test_the_same_bits_again_and_on_any_number_of_threads(train):
    splits = two()
    first = train(splits)
    assert bits(first) == bits(train(splits)) == bits(train(splits, n_threads=3))
    assert bits(first) != bits(train(splits, seed=1))


class Kept:
    """A job that keeps its progress in a folder and can break off."""

    def __init__(self, folder, *, stop_at=None):
        self.folder, self.stop_at = folder, stop_at

    def checkpoint(self, part):
        return FolderCheckpoint(self.folder / part)

    def on_epoch(self, epoch):
        if epoch.number == self.stop_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop_at", [0, 3])
@pytest.mark.parametrize("train", [alone, joint])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, train, stop_at):
    splits = two()
    with pytest.raises(KeyboardInterrupt):
        train(splits, job=Kept(tmp_path, stop_at=stop_at))
    resumed, whole = train(splits, job=Kept(tmp_path)), train(splits)
    assert bits(resumed) == bits(whole)
    assert [e.valid for e in resumed.history.epochs] == [e.valid for e in whole.history.epochs]


def test_joint_early_stopping_looks_at_the_mean_of_the_domains():
    splits = two()
    model = joint(splits)
    values = [judge(split).ndcg(model.factors[name]) for name, split in splits.items()]
    assert model.history.best.valid == pytest.approx(np.mean(values))


def test_a_domain_with_fewer_pairs_than_steps_still_learns():
    splits = two()
    few = pairs([0, 1, 2], [0, 1, 2], n_users=60, n_items=5)
    nothing = pairs([], [], n_users=60, n_items=5)
    tiny = Split(few, pairs([0, 1, 2], [3, 3, 4], n_users=60, n_items=5), nothing)
    settings = GraphSettings(layers=1, batch_size=32, max_epochs=3)
    model = joint({**splits, "tiny": tiny}, settings)
    assert np.isfinite([e.train_loss for e in model.history.epochs[1:]]).all()
    assert (model.factors["tiny"].score(np.arange(3)).argmax(1) == [0, 1, 2]).all()


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("layers", -1, "at least 0"),
        ("batch_size", 0, "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("init_scale", -1.0, "above 0"),
        ("regularization", -0.1, "not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, rule):
    with pytest.raises(ConfigError, match=f"^{setting} is {value}; .*{rule}"):
        GraphSettings(**{setting: value})


def test_an_absurd_learning_rate_ends_with_the_epoch_and_the_cause():
    with pytest.raises(DivergedError, match=r"^epoch \d+: training loss is (nan|inf)"):
        single(two()["tv"], GraphSettings(learning_rate=1e30, batch_size=32))
