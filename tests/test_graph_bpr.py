"""The graph models: slopes by finite differences, Adam by its definition, and what they promise."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from contract import PersonalScorerContract

from musketeers.baselines.graph import Graph, Smoothing
from musketeers.baselines.graph_bpr import GraphBpr, GraphSettings
from musketeers.baselines.herograph import (
    HeroGraphLSettings,
    HeroGraphSettings,
    herograph,
    herograph_l,
)
from musketeers.baselines.light_gcn import light_gcn
from musketeers.baselines.popularity import popularity
from musketeers.baselines.sage import Sage
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError, DivergedError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.run_folder import FolderCheckpoint
from musketeers.seeding import Seed
from musketeers.training import Unwatched

QUICK = GraphSettings(layers=2, learning_rate=0.01, steps=4, max_epochs=6, patience=6)


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


def joint(splits, settings=QUICK, *, seed=0, n_threads=1, job=None, dim=8, model=herograph_l):
    kinds = {herograph: HeroGraphSettings, herograph_l: HeroGraphLSettings}
    if isinstance(settings, GraphSettings):
        settings = kinds[model](settings)
    validations = {name: judge(split, n_threads) for name, split in splits.items()}
    return model(splits, validations, settings, Seed(seed), job or Unwatched(), dim=dim)


def pooling(splits, settings=QUICK, **options):
    return joint(splits, settings, model=herograph, **options)


def alone(splits, settings=QUICK, *, seed=0, n_threads=1, job=None):
    return single(splits["tv"], settings, seed=seed, n_threads=n_threads, job=job)


def bits(model):
    tables = model.factors.values() if isinstance(model.factors, dict) else [model.factors]
    return b"".join(f.users.tobytes() + f.items.tobytes() for f in tables)


def trainable(splits, settings=QUICK, *, dim=4, sage=False):
    """A joint model before training, in float64."""
    validations = [judge(split) for split in splits.values()]
    trains = [split.train for split in splits.values()]
    graph = Graph.pooled(trains)
    shared = Smoothing(graph, settings.layers, 1)
    if sage:
        shared = Sage.of(graph, settings.layers, Seed(1), neighbours=3, dim=dim)
    encoders = {"graph": (shared, 0.3), "own": (Smoothing(Graph.apart(trains), 0, 1), 0.1)}
    model = GraphBpr(validations, encoders, settings, Seed(0), dim=dim)
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


class TestHeroGraphLContract(PersonalScorerContract):
    model = staticmethod(herograph_l)

    def fit(self, train):
        everyone = np.arange(train.n_users)
        held_back = pairs(everyone, everyone, n_users=train.n_users, n_items=train.n_items)
        nothing = pairs([], [], n_users=train.n_users, n_items=train.n_items)
        split = Split(train, held_back, nothing)
        settings = GraphSettings(max_epochs=50)
        return joint({"tv": split, "film": split}, settings, model=self.model).factors["film"]


class TestHeroGraphContract(TestHeroGraphLContract):
    model = staticmethod(herograph)


@pytest.mark.parametrize("sage", [False, True])
def test_the_loss_is_its_definition_triple_by_triple(sage):
    model = trainable(two(), GraphSettings(layers=2), sage=sage)
    drawn = batches(model)
    loss, _ = model.slopes(drawn, None)
    expected = 0.0
    for domain, batch in enumerate(drawn):
        for u, i, j in zip(batch.users, batch.liked, batch.others, strict=True):
            ahead = length = 0.0
            for name, embedding in model.embeddings.items():
                graph = embedding.encoder.graph
                user = graph.users[domain].start + u
                items = graph.items[domain].start + np.array([i, j])
                encoded, _ = embedding.encoder.encode(embedding.table, None)
                ahead += encoded[user] @ (encoded[items[0]] - encoded[items[1]])
                held_back = encoded if sage and name == "graph" else embedding.table
                strength = {"graph": 0.3, "own": 0.1}[name]
                length += strength / 2 * (held_back[[user, *items]] ** 2).sum()
            expected += (np.log1p(np.exp(-ahead)) + length) / len(batch.users)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("layers", "sage"), [(0, False), (1, False), (3, False), (2, True)])
def test_slopes_equal_finite_differences_through_the_graph(layers, sage):
    model = trainable(two(), GraphSettings(layers=layers), sage=sage)
    drawn = batches(model)
    _, slopes = model.slopes(drawn, None)
    rng = np.random.default_rng(2)
    for embedding, slope in zip(model.embeddings.values(), slopes, strict=True):
        direction = rng.standard_normal(embedding.table.shape)
        values = []
        start = embedding.table
        for step in (1e-5, -1e-5):
            embedding.table = start + step * direction
            values.append(model.slopes(drawn, None)[0])
        embedding.table = start
        measured = (values[0] - values[1]) / 2e-5
        assert abs(measured) > 1e-2
        assert (slope["table"] * direction).sum() == pytest.approx(measured, rel=1e-5)


def test_other_items_are_uniform_over_those_the_user_does_not_like():
    train = pairs([0, 0, 1, 1, 1, 1], [1, 3, 0, 1, 2, 3], n_users=3, n_items=4)
    everyone = pairs([0], [0], n_users=3, n_items=4)
    split = Split(train, everyone, pairs([], [], n_users=3, n_items=4))
    encoders = {"graph": (Smoothing(Graph.pooled([train]), 1, 1), 0.0)}
    model = GraphBpr([judge(split)], encoders, QUICK, Seed(0), dim=2)
    sampler = model._samplers[0]
    # user 1 likes everything, so nothing can be set against it
    np.testing.assert_array_equal(sampler.pairs, [0, 1])
    batch = sampler.draw(np.tile([0, 1], 2000), np.random.default_rng(0))
    assert set(batch.users) == {0}
    np.testing.assert_array_equal(batch.liked[:2], [1, 3])
    counts = np.bincount(batch.others, minlength=4)
    np.testing.assert_array_equal(counts[[1, 3]], 0)
    assert abs(counts[0] - counts[2]) < 4 * np.sqrt(4000)


@pytest.mark.parametrize("sage", [False, True])
def test_an_epoch_of_one_step_is_one_step_of_adam(sage):
    splits = two()
    settings = GraphSettings(layers=1, steps=1, learning_rate=0.03)
    one, other = (trainable(splits, settings, sage=sage) for _ in range(2))
    for model in (one, other):
        for embedding in model.embeddings.values():
            embedding.table = embedding.table.astype(np.float32)
    before = {name: e.table.copy() for name, e in one.embeddings.items()}
    weights = {name: w.copy() for name, w in one.embeddings["graph"].encoder.weights.items()}
    loss = one.epoch(1)
    rng = Seed(0).child("epoch", "1").numpy()
    orders = [rng.permutation(s.pairs) for s in other._samplers]
    expected, slopes = other.slopes(
        [s.draw(order, rng) for s, order in zip(other._samplers, orders, strict=True)], rng
    )
    assert loss == expected
    for (name, embedding), found in zip(one.embeddings.items(), slopes, strict=True):
        start = {"table": before[name], **(weights if name == "graph" else {})}
        assert set(found) == set(start)
        for part, values in embedding.trained().items():
            slope = found[part]
            # the first step: both moments, corrected for their start, are the slope and its square
            step = 0.03 * slope / (np.abs(slope) + 1e-8 / np.sqrt(1e-3))
            np.testing.assert_allclose(values, start[part] - step, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_learn_more_than_popularity(seed):
    splits = planted(("tv", "film"), Seed(seed), popularity=0.5, n_users=200, n_items=60).splits
    settings = GraphSettings(max_epochs=25)
    split = splits["tv"]
    models = (
        popularity(split.train),
        single(split, settings, seed=seed).factors,
        joint(splits, settings, seed=seed).factors["tv"],
        pooling(splits, replace(settings, layers=1), seed=seed).factors["tv"],
    )
    scores = [
        evaluate(model, split.test, split.seen(), n_threads=1).means()["ndcg@10"]
        for model in models
    ]
    assert scores[1] > scores[0] + 0.05
    assert scores[2] > scores[0] + 0.05
    assert scores[3] > scores[0] + 0.05


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
            graph = embedding.encoder.graph
            smoothed, _ = embedding.encoder.encode(embedding.table, None)
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


@pytest.mark.parametrize("train", [alone, joint, pooling])
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
@pytest.mark.parametrize("train", [alone, joint, pooling])
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
    settings = GraphSettings(layers=1, learning_rate=0.01, steps=40, max_epochs=3)
    model = joint({**splits, "tiny": tiny}, settings)
    assert np.isfinite([e.train_loss for e in model.history.epochs[1:]]).all()
    assert (model.factors["tiny"].score(np.arange(3)).argmax(1) == [0, 1, 2]).all()


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("layers", -1, "at least 0"),
        ("steps", 0, "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("nan"), "above 0"),
        ("init_scale", -1.0, "above 0"),
        ("regularization", -0.1, "not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, rule):
    with pytest.raises(ConfigError, match=f"^{setting} is {value}; .*{rule}"):
        GraphSettings(**{setting: value})


@pytest.mark.parametrize("kind", [HeroGraphSettings, HeroGraphLSettings])
def test_a_negative_strength_of_the_own_vectors_is_refused(kind):
    with pytest.raises(ConfigError, match=r"^own_regularization is -0.1; .*not be negative"):
        kind(own_regularization=-0.1)


@pytest.mark.parametrize("neighbours", [0, 257])
def test_a_sample_has_at_least_one_and_at_most_256_neighbours(neighbours):
    with pytest.raises(ConfigError, match=f"^neighbours is {neighbours}; .*from 1 to 256"):
        HeroGraphSettings(neighbours=neighbours)


@pytest.mark.parametrize("model", [herograph, herograph_l])
def test_domains_that_do_not_match_are_refused(model):
    splits = two()
    own = HeroGraphSettings() if model is herograph else HeroGraphLSettings()
    with pytest.raises(
        DataError, match=r"^splits are of \['tv', 'film'\], validations of \['tv'\]"
    ):
        model(splits, {"tv": judge(splits["tv"])}, own, Seed(0), Unwatched(), dim=8)


def test_memory_is_stated_before_it_is_taken():
    splits = two(n_users=1000, n_items=300, pairs_per_user=20)
    settings = HeroGraphSettings(GraphSettings(layers=2, max_epochs=1))
    with pytest.raises(ConfigError, match=r"^HeroGRAPH of 1,000 users, .* max_bytes = 1; raise"):
        pooling(splits, replace(settings, max_bytes=1), dim=32)
    pooling(splits, settings, dim=32)
    tracemalloc.start()
    pooling(splits, settings, dim=32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pooling(splits, replace(settings, max_bytes=3 * peak), dim=32)
    with pytest.raises(ConfigError, match="max_bytes"):
        pooling(splits, replace(settings, max_bytes=peak), dim=32)


def test_an_absurd_learning_rate_ends_with_the_epoch_and_the_cause():
    with pytest.raises(DivergedError, match=r"^epoch \d+: training loss is (nan|inf)"):
        single(two()["tv"], GraphSettings(learning_rate=1e30))
