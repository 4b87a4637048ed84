"""The linear head: regression on history and embeddings by definition, limits, who is served."""

import numpy as np
import pytest
from contract import PersonalScorerContract
from test_ease import by_definition, dense, only, pairs

from musketeers.baselines.ease import EaseSettings, ease
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.heads.linear import LinearSettings, linear
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.seeding import Seed
from musketeers.training import Unwatched


def embeddings(n_users, *, names=("a", "b", "c"), dim=3, entropy=0, unknown=0.3):
    """Random vectors; each domain knows about seven tenths of the users."""
    make = Seed(entropy).numpy()
    tables = {name: make.standard_normal((n_users, dim)).astype(np.float32) for name in names}
    known = {name: make.random(n_users) >= unknown for name in names}
    return UserEmbeddings.collect(tables, known)


class TestContract(PersonalScorerContract):
    def fit(self, train):
        shared = embeddings(train.n_users, unknown=0)
        return linear("a", train, shared, LinearSettings(1.0, source_weight=0.1))


def test_is_regression_on_history_and_the_other_domains_embeddings():
    train, shared = pairs(40, 7, entropy=1), embeddings(40)
    model = linear("b", train, shared, LinearSettings(3.0, source_weight=0.5))
    others = shared.values[:, [0, 2]] * shared.known[:, [0, 2], None]
    inputs = np.hstack([dense(train), 0.5 * others.reshape(40, 6)])
    np.testing.assert_array_equal(model.inputs.toarray(), inputs)
    np.testing.assert_allclose(model.weights, by_definition(inputs, 7, 3), rtol=1e-4, atol=1e-6)


def test_without_a_weight_it_is_ease():
    train = pairs(40, 7, entropy=1)
    model = linear("b", train, embeddings(40), LinearSettings(3.0, source_weight=0.0))
    assert not model.weights[7:].any()
    alone = ease(only(train), EaseSettings(3.0))
    np.testing.assert_allclose(model.weights[:7], alone.weights, rtol=1e-6)


def test_the_targets_own_embedding_has_no_part_in_it():
    train, shared = pairs(40, 7, entropy=1), embeddings(40)
    other = UserEmbeddings(shared.domains, shared.values.copy(), shared.known, shared.lengths)
    other.values[:, 1] = 0
    one, two = (linear("b", train, told, LinearSettings()) for told in (shared, other))
    assert one.weights.tobytes() == two.weights.tobytes()


def test_ranks_better_than_alone_where_taste_is_shared_and_not_by_noise():
    splits = planted(("tv", "film"), Seed(0), n_users=1000, n_items=120, common=1.0).splits
    split = splits["film"]
    known = {name: one.train.known_users() for name, one in splits.items()}
    alone = {
        name: ials(one, Validation.of(one, Seed(0), n_threads=1), IalsSettings(max_epochs=5),
                   Seed(0), Unwatched(), dim=8)
        for name, one in splits.items()
    }  # fmt: skip
    vectors = {name: made.factors.users for name, made in alone.items()}
    shared = UserEmbeddings.collect(vectors, known)
    models = {
        "alone": ease(split, EaseSettings()),
        "told": linear("film", split.train, shared, LinearSettings()),
        "noise": linear("film", split.train, embeddings(1000, names=("tv", "film"), dim=8),
                        LinearSettings()),
    }  # fmt: skip
    found = {
        name: evaluate(model, split.test, split.seen(), ks=(10,), n_threads=1).values["ndcg@10"]
        for name, model in models.items()
    }
    gains = {name: values.mean() / found["alone"].mean() - 1 for name, values in found.items()}
    assert gains["told"] > 0.05
    assert -0.1 < gains["noise"] < 0.02


def test_a_user_without_history_is_scored_from_the_others_and_a_stranger_not():
    train = pairs(40, 7, entropy=1)
    rows = train.users() >= 2
    train = Interactions.from_pairs(train.users()[rows], train.items[rows], n_users=40, n_items=7)
    shared = embeddings(40, unknown=0)
    shared.known[1] = False
    shared.values[1] = 0
    scores = linear("a", train, shared, LinearSettings()).score(np.arange(2))
    assert np.ptp(scores[0]) > 0
    np.testing.assert_array_equal(scores[1], 0)


def test_bad_wishes_are_refused():
    train, shared = pairs(40, 7, entropy=1), embeddings(40)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match=f"regularization is {bad}; it must be above 0"):
            LinearSettings(bad)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match=f"source_weight is {bad}; it must be >= 0"):
            LinearSettings(source_weight=bad)
    with pytest.raises(DataError, match="'d' is not one of a, b, c"):
        linear("d", train, shared, LinearSettings())
    # the inverse; between it and 6 columns; three times the 40 users' inputs; the weights
    stated = 8 * 7**2 + 16 * 6 * 7 + 3 * 12 * 40 * 6 + 4 * 13 * 7
    assert linear("a", train, shared, LinearSettings(max_bytes=stated)).n_items == 7
    with pytest.raises(ConfigError, match=f"7 items and 6 columns of .* needs {stated:,} bytes"):
        linear("a", train, shared, LinearSettings(max_bytes=stated - 1))
