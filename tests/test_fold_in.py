"""Users told of at request time: what they are answered, by definition, and that it helps."""

import numpy as np
import polars as pl
import pytest

from musketeers import pipeline, scorers
from musketeers.baselines.ease import EaseSettings, ease
from musketeers.baselines.popularity import popularity
from musketeers.config import DataConfig, PretrainConfig, RunConfig
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError, UnknownNameError
from musketeers.evaluation.evaluate import evaluate
from musketeers.heads.blend import blend
from musketeers.heads.fold_in import HOLD, Folding
from musketeers.ranking import Factors
from musketeers.recommender import DomainModel, Recommender
from musketeers.seeding import Seed
from musketeers.task import unwatched


@pytest.fixture(scope="module")
def data():
    return planted(("tv",), Seed(1), n_users=300, n_items=60, pairs_per_user=12, known=0.9)


@pytest.fixture(scope="module")
def smf(data):
    learning = PretrainConfig(max_epochs=30, tries=2)
    config = RunConfig(dim=8, data=DataConfig(domains={"tv": "tv"}), pretrain=learning)
    return pipeline.smf(data.splits, config, unwatched, n_threads=1)["tv"].factors


@pytest.fixture(scope="module")
def linear(data):
    return ease(data.splits["tv"], EaseSettings())


def fold_in(model, rows, pairs, *, seen, known):
    return Folding.of(model, seen=seen, known=known).told(rows, pairs)


def served_by(data, scorer):
    domain, train = data.domains.domains["tv"], data.splits["tv"].train
    parts = {"tv": DomainModel.of(domain, scorer, train=train, transfers=False)}
    return Recommender.of(data.domains.users, parts, {"model": {"tv": "any"}})


def given(pairs, model, *, prefix=""):
    """The pairs as two columns of ids, the users under names of their own."""
    users = model.users.ids(pairs.users())
    return pl.select(prefix + users).to_series(), model.domains["tv"].items.ids(pairs.items)


def history_of(pairs, users):
    return pairs.only(np.isin(pairs.users(), users))


def test_a_stranger_with_a_history_gets_what_the_model_gives_for_it(data, linear):
    model, train = served_by(data, linear), data.splits["tv"].train
    users = np.flatnonzero(train.known_users())[:40]
    ids, items = given(history_of(train, users), model, prefix="new-")
    found = model.fold_in("tv", ids, items, k=7, exclude_seen=False, n_threads=1)
    expected = model.recommend("tv", model.users.ids(users), 7, exclude_seen=False, n_threads=1)
    columns = ["rank", "item_id", "score", "strategy"]
    assert found.select(columns).equals(expected.select(columns))
    assert (found["user_id"] == "new-" + expected["user_id"]).all()
    assert set(found["strategy"]) == {"personalised"}


def test_a_linear_model_takes_what_known_users_did_since_as_inputs(data, linear, smf):
    train, valid = data.splits["tv"].train, data.splits["tv"].valid
    rows = np.flatnonzero(valid.known_users())
    later = valid.of_each(rows)
    for model in (linear, blend(linear, smf, 0.5)):
        told = fold_in(model, rows, later, seen=train, known=train.known_users())
        inputs = model.inputs.toarray()[rows].astype(np.float64)
        inputs[later.users(), later.items] += 1
        expected = inputs @ model.weights.astype(np.float64)
        np.testing.assert_allclose(told.score(np.arange(len(rows))), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_vector_is_the_least_of_what_is_stated(row):
    """The definition, pair by pair: no direction leads further down."""
    rng = np.random.default_rng(0)
    model = Factors(
        rng.standard_normal((5, 3)).astype(np.float32),
        rng.standard_normal((9, 3)).astype(np.float32),
    )
    users, items = np.repeat(np.arange(5), 2), np.array([0, 1, 2, 3, 4, 5, 0, 2, 6, 7])
    seen = Interactions.from_pairs(users, items, n_users=5, n_items=9)
    new = Interactions.from_pairs(np.zeros(2, int), np.array([1, 8]), n_users=1, n_items=9)
    known = np.ones(5, bool)
    found = fold_in(model, np.array([row]), new, seen=seen, known=known)
    assert found.items is model.items

    vectors = model.items.astype(float)
    apart = vectors - vectors.mean(axis=0)
    covariance = sum(np.outer(d, d) for d in apart) / 9
    margin = np.mean([apart[seen.of(u)] @ model.users[u] for u in range(5)])
    n, start = (2, model.users[row].astype(float)) if row >= 0 else (0, np.zeros(3))
    hold = 2 * n * covariance + HOLD * np.trace(covariance) / 3 * np.eye(3)

    def cost(user):
        pulled = sum(
            (margin - user @ (vectors[i] - vectors[j])) ** 2 / 9 for i in (1, 8) for j in range(9)
        )
        return pulled + (user - start) @ hold @ (user - start)

    user, step = found.users[0].astype(float), 1e-3
    for direction in np.vstack([np.eye(3), -np.eye(3)]):
        assert cost(user) < cost(user + step * direction)
    slopes = [(cost(user + step * d) - cost(user - step * d)) / (2 * step) for d in np.eye(3)]
    np.testing.assert_allclose(slopes, 0, atol=1e-4 * cost(user))


def test_strangers_are_served_as_well_as_those_who_were_trained(data, smf):
    split = data.splits["tv"]
    rows = np.full(split.train.n_users, -1)
    told = fold_in(smf, rows, split.train, seen=split.train, known=split.train.known_users())
    nothing = Factors(np.tile(smf.users.mean(axis=0), (len(rows), 1)), smf.items)
    folded, trained, mean = (
        evaluate(scorer, split.test, split.seen(), n_threads=1).values["ndcg@10"].mean()
        for scorer in (told, smf, nothing)
    )
    assert trained > mean + 0.05
    assert folded > trained - 0.1 * (trained - mean)


def test_known_users_are_served_better_once_told_of_what_they_did_since(data, smf):
    split = data.splits["tv"]
    rows = np.arange(split.train.n_users)
    told = fold_in(smf, rows, split.valid, seen=split.train, known=split.train.known_users())
    after, before = (
        evaluate(scorer, split.test, split.seen(), n_threads=1).values["ndcg@10"].mean()
        for scorer in (told, smf)
    )
    assert after > before + 0.005
    # who did nothing since has the vector of before
    same = ~split.valid.known_users()
    np.testing.assert_allclose(told.users[same], smf.users[same], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "smf"])
def test_answers_are_those_of_recommend_but_for_what_is_new(kind, data, request):
    scorer = request.getfixturevalue(kind)
    model, seen = served_by(data, scorer), data.domains.domains["tv"].pairs
    before = {name: array.tobytes() for name, array in scorers.arrays(scorer).items()}
    items = model.domains["tv"].items.values
    known = model.users.ids(np.flatnonzero(data.splits["tv"].train.known_users())[:1])[0]
    mine = items.gather(seen.of(int(model.users.rows([known])[0])))
    # nothing is told by items that there are not, nor by what is known already
    pairs = [(known, mine[0]), ("zoe", "tv-none"), ("amy", items[5]), ("amy", items[5])]
    users, given_items = (pl.Series(column) for column in zip(*pairs, strict=True))
    found = model.fold_in("tv", users, given_items, k=60, n_threads=1)
    assert found["user_id"].unique(maintain_order=True).to_list() == ["amy", known, "zoe"]
    for user in (known, "zoe"):
        assert found.filter(user_id=user).equals(model.recommend("tv", [user], 60, n_threads=1))
    amy = found.filter(user_id="amy")
    assert set(amy["item_id"]) == set(items) - {items[5]}
    assert amy["rank"].to_list() == list(range(1, len(items)))
    everything = model.fold_in("tv", users, given_items, k=60, exclude_seen=False, n_threads=1)
    assert set(everything.filter(user_id="amy")["item_id"]) == set(items)
    assert {name: array.tobytes() for name, array in scorers.arrays(scorer).items()} == before


def test_where_all_are_alike_a_rare_item_makes_no_difference(data):
    split = data.splits["tv"]
    model = served_by(data, popularity(split.train))
    items = model.domains["tv"].items.values
    rare = items.gather([int(split.train.item_counts().argmin())])
    found = model.fold_in("tv", ["amy"], rare, k=5, n_threads=1)
    expected = model.recommend("tv", model.users.values[:1], 5, exclude_seen=False, n_threads=1)
    assert found["item_id"].equals(expected["item_id"])


def test_what_cannot_be_answered_is_said(data, smf):
    model = served_by(data, smf)
    with pytest.raises(UnknownNameError, match=r"domain 'film' is not among 'tv'"):
        model.fold_in("film", ["amy"], ["tv-01"])
    with pytest.raises(DataError, match=r"1 user ids but 2 item ids; one of each per pair"):
        model.fold_in("tv", ["amy"], ["tv-01", "tv-02"])
    with pytest.raises(DataError, match=r"str is no column of ids"):
        model.fold_in("tv", ["amy"], "tv-01")
    with pytest.raises(DataError, match=r"user_ids is of type str"):
        model.fold_in("tv", "amy", ["tv-01"])
    with pytest.raises(ConfigError, match=r"k is 0; give at least 1"):
        model.fold_in("tv", ["amy"], ["tv-01"], 0)
    assert model.fold_in("tv", [], []).is_empty()
