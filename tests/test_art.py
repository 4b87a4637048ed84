"""Stage 3: attention by definition, and a transfer that never costs a domain anything."""

import copy
import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Generator

from musketeers.art import network
from musketeers.art.model import AttentionTransfer
from musketeers.art.network import Everybody, Told, Weights
from musketeers.art.train import Transferred, served, transfer
from musketeers.cat.train import Aligned, align
from musketeers.config import ArtConfig, CatConfig, DataConfig, PretrainConfig, RunConfig
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import Planted, planted
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.seeding import Seed
from musketeers.training import Unwatched

DIM = 4


def network_of(n_sources=3, dim=DIM, *, seed=0):
    """One whose every weight is at work, as after training; in float64."""
    rng = np.random.default_rng(seed)
    made = AttentionTransfer(n_sources, dim, generator=Generator()).weights()
    return Weights(*(rng.normal(size=weight.shape) for weight in made))


def users(n_users=7, n_sources=3, dim=DIM, *, seed=1):
    """The first user has no source, the second all."""
    rng = np.random.default_rng(seed)
    sources_known = rng.random((n_users, n_sources)) < 0.6
    sources_known[0], sources_known[1] = False, True
    return Told(
        rng.normal(size=(n_users, dim)), rng.random(n_users) < 0.6,
        rng.normal(size=(n_sources, n_users, dim)), sources_known, rng.normal(size=(n_users, dim)),
    )  # fmt: skip


QUERY = ("query", "query_bias", "key", "pad")
SOURCES = ("attention", "mean", "sum", "none")


def everybody_of(told):
    """The domains that tell this, the target in their midst."""
    place = len(told.sources) // 2
    values = np.insert(told.sources.transpose(1, 0, 2), place, told.target, axis=1)
    known = np.insert(told.sources_known, place, told.target_known, axis=1)
    return Everybody(values, known, told.shared, place, np.delete(np.arange(known.shape[1]), place))


def run(weights, told, rows=None, seen=None, dropped=1.0, sources="attention"):
    """`network.forward` of some users, all of them by default, and what it was given."""
    everybody = everybody_of(told)
    rows = np.arange(len(told.target)) if rows is None else rows
    seen = np.ones(len(rows), np.bool_) if seen is None else seen
    told = network.told_of(everybody, rows, seen, weights.pad)
    sharpness, factors = network.weighing(sources, told.sources_known, len(weights.pad))
    given = told, sharpness, (factors * dropped).astype(told.target.dtype)
    return *network.forward(weights, *given), given


def added(*args, **kwargs):
    return run(*args, **kwargs)[0]


def one_by_one(w, told, dropped, sources):
    """The docstring's formula for one user after the other; the sources' weights, and output."""
    weights, outputs = [], []
    for u in range(len(told.target)):
        known = np.flatnonzero(told.sources_known[u])
        alpha = np.zeros(len(told.sources))
        weights.append(alpha)
        if not len(known):
            outputs.append(np.zeros(told.target.shape[1]))
            continue
        own = told.target[u] if told.target_known[u] else w.pad
        query = own @ w.query + w.query_bias
        adapted = {s: told.sources[s, u] @ w.adapt[s] + w.adapt_bias[s] for s in known}
        powers = {s: np.exp(query @ (a @ w.key) / np.sqrt(len(own))) for s, a in adapted.items()}
        for s in known:
            alpha[s] = {
                "attention": powers[s] / sum(powers.values()),
                "mean": 1 / len(known),
                "sum": 1,
                "none": 0,
            }[sources]
        attended = sum(dropped[u, s] * alpha[s] * (adapted[s] @ w.value) for s in known)
        outputs.append(attended @ w.out + told.shared[u] @ w.shared + w.bias)
    return np.array(weights), np.array(outputs)


@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize(("n_sources", "dim"), [(1, 3), (3, 4), (5, 2)])
def test_what_is_added_is_its_definition_user_by_user(n_sources, dim, sources):
    weights, told = network_of(n_sources, dim), users(20, n_sources, dim)
    dropped = np.random.default_rng(2).choice([0, 1.25], size=(20, n_sources))
    shares, outputs = one_by_one(weights, told, dropped, sources)
    result, trace, (_, _, factors) = run(weights, told, dropped=dropped, sources=sources)
    np.testing.assert_allclose(result, outputs, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(trace.attention * factors, shares * dropped, atol=1e-12)


def test_the_sum_is_one_linear_map_of_all_sources_side_by_side():
    """As the ablation is published; a source that does not know the user has zeros there."""
    weights, told = network_of(), users()
    onto = weights.value @ weights.out
    side_by_side = (told.sources * told.sources_known.T[..., None]).transpose(1, 0, 2)
    linear = np.concatenate(list(weights.adapt @ onto))
    expected = (
        np.concatenate(list(side_by_side.transpose(1, 0, 2)), axis=1) @ linear
        + told.sources_known @ weights.adapt_bias @ onto
        + told.shared @ weights.shared
        + weights.bias
    )
    found = added(weights, told, sources="sum")
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-9)


def test_without_attention_the_query_does_not_matter():
    told = users()
    one, other = network_of(), network_of(seed=5)
    strange = one._replace(query=other.query, query_bias=other.query_bias, key=other.key)
    for sources in ("mean", "sum", "none"):
        found = [added(weights, told, sources=sources) for weights in (one, strange)]
        np.testing.assert_array_equal(*found)
    assert (added(one, told) != added(strange, told)).any()


def test_without_sources_only_the_shared_embedding_is_added():
    told, weights = users(), network_of()
    expected = told.shared @ weights.shared + weights.bias
    found = added(weights, told, sources="none")
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-12)


def test_attention_sums_to_one_over_the_known_sources():
    told = users(30)
    attention = run(network_of(), told)[1].attention
    assert not attention[~told.sources_known].any()
    assert (attention[told.sources_known] > 0).all()
    np.testing.assert_allclose(attention.sum(1), told.sources_known.any(1))


def test_the_untrained_module_adds_exactly_nothing():
    weights = AttentionTransfer(3, DIM, generator=Generator().manual_seed(0)).weights()
    told = Told(*(a.astype(np.float32) if a.dtype == float else a for a in users()))
    assert not added(weights, told).any()


@pytest.mark.parametrize("sources", SOURCES)
def test_a_user_whom_no_source_knows_gets_exactly_nothing(sources):
    result = added(network_of(), users(), sources=sources)
    assert not result[0].any()
    assert result[1].all()


@pytest.mark.parametrize("way", SOURCES)
def test_what_is_not_known_has_no_influence(way):
    told = users()
    sources = np.where(told.sources_known.T[..., None], told.sources, -1e3)
    target = np.where(told.target_known[:, None], told.target, 1e3)
    other = told._replace(target=target, sources=sources)
    np.testing.assert_array_equal(
        added(network_of(), told, sources=way), added(network_of(), other, sources=way)
    )


def test_a_hidden_user_is_taken_for_an_unknown_one():
    told, everybody = users(), np.arange(7)
    nobody = told._replace(target_known=np.zeros(7, np.bool_))
    hidden = added(network_of(), told, everybody, np.zeros(7, np.bool_))
    np.testing.assert_array_equal(hidden, added(network_of(), nobody))
    assert (hidden != added(network_of(), told)).any()


@pytest.mark.parametrize("rows", [[1], [3, 1], []])
def test_some_users_get_what_they_get_among_all(rows):
    weights, told = network_of(), users()
    some = added(weights, told, np.array(rows, dtype=int))
    assert some.shape == (len(rows), DIM)
    np.testing.assert_allclose(some, added(weights, told)[rows], rtol=1e-12)


@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize("n_sources", [1, 3])
def test_the_slopes_are_those_of_central_differences(n_sources, sources):
    weights, everybody = network_of(n_sources, 3), users(9, n_sources, 3)
    rng = np.random.default_rng(3)
    slopes, dropped = rng.normal(size=(9, 3)), rng.choice([0, 1.25], size=(9, n_sources))
    idle = set() if sources == "attention" and n_sources > 1 else {*QUERY}
    idle |= {"adapt", "adapt_bias", "value", "out"} if sources == "none" else set()

    def loss(weights):
        return (slopes * added(weights, everybody, dropped=dropped, sources=sources)).sum()

    _, trace, given = run(weights, everybody, dropped=dropped, sources=sources)
    found = network.backward(weights, *given, trace, slopes.copy())
    for name, weight, slope in zip(Weights._fields, weights, found, strict=True):
        expected = np.empty_like(weight)
        for place in np.ndindex(weight.shape):
            ahead, behind = weight.copy(), weight.copy()
            ahead[place] += 1e-6
            behind[place] -= 1e-6
            change = loss(weights._replace(**{name: ahead})) - loss(
                weights._replace(**{name: behind})
            )
            expected[place] = change / 2e-6
        assert expected.any() == (name not in idle)
        assert slope.any() == (name not in idle)
        np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_step_learns_what_its_parts_say():
    """`learn` against the loss's stated parts: the network, the pairs, what is held down."""
    rng = np.random.default_rng(4)
    weights, everybody = network_of(2, 3), users(6, 2, 3)
    alone, mean, items = rng.normal(size=(6, 3)), rng.normal(size=3), rng.normal(size=(2, 3))
    rows, seen = np.array([4, 1, 3]), np.array([True, False, True])
    strengths, length = np.array([0.3, 0.1, 0.2]), 1.7
    given = 1 / np.sqrt(3), np.ones((3, 2))
    pairs = Interactions.from_pairs(np.arange(6), np.zeros(6, int), n_users=6, n_items=2)

    def loss(weights):
        moved = length * added(weights, everybody, rows, seen)
        vectors = moved + np.where(seen[:, None], alone[rows], mean)
        learnt = np.logaddexp(0, -(vectors @ (items[0] - items[1]))).sum()
        return learnt, learnt + (strengths / 2 * (moved**2).sum(1)).sum()

    before = items.copy()
    learnt, slope = network.learn(
        weights, everybody_of(everybody), rows, seen, *given, alone, mean, length, strengths,
        np.zeros(3, np.bool_), pairs.indptr, pairs.items, items, np.full(2, 1.0),
        np.zeros(2, np.bool_), None, 0.1, 0.0, 1, np.uint64(1),
    )  # fmt: skip
    assert learnt == pytest.approx(loss(weights)[0], rel=1e-6)
    np.testing.assert_array_equal(items, before)
    for name in ("adapt", "out", "shared", "bias", "pad"):
        weight, found = getattr(weights, name), getattr(slope, name)
        for place in [next(np.ndindex(weight.shape)), tuple(n - 1 for n in weight.shape)]:
            ahead, behind = weight.copy(), weight.copy()
            ahead[place] += 1e-5
            behind[place] -= 1e-5
            change = (
                loss(weights._replace(**{name: ahead}))[1]
                - loss(weights._replace(**{name: behind}))[1]
            )
            assert found[place] == pytest.approx(change / 2e-5, rel=1e-4, abs=1e-6)


@dataclass(frozen=True)
class Ready:
    """Everything that stage 3 starts from."""

    data: Planted
    config: RunConfig
    alone: dict[str, Pretrained]
    shared: UserEmbeddings
    aligned: Aligned


def ready(names=("a", "b", "c"), *, n_users=120, known=0.7, common=0.9, seed=0):
    data = planted(
        names, Seed(seed), n_users=n_users, n_items=40, dim=3, common=common, known=known
    )
    config = RunConfig(
        seed=seed,
        dim=6,
        data=DataConfig(domains=dict.fromkeys(names, "-")),
        pretrain=PretrainConfig(max_epochs=15, patience=3, tries=1, regularization=0.05),
        cat=CatConfig(max_epochs=30),
        art=ArtConfig(max_epochs=6, patience=6, batch_size=32, learning_rate=5e-3),
    )
    alone = {
        name: pretrain(
            split, looking(split), config.pretrain, Seed(seed).child("pretrain", name),
            Unwatched(), dim=config.dim,
        )
        for name, split in data.splits.items()
    }  # fmt: skip
    present = {name: split.train.known_users() for name, split in data.splits.items()}
    shared = UserEmbeddings.collect({n: alone[n].factors.users for n in names}, present)
    return Ready(
        data, config, alone, shared, align(shared, config.cat, Seed(seed), Unwatched(), n_threads=2)
    )


def looking(split, n_threads=1):
    return Validation.of(split, Seed(0).child("validation"), n_threads=n_threads)


@pytest.fixture(scope="module")
def three():
    return ready(n_users=500)


def transferred(
    made, target="a", *, told=None, aligned=None, job=None, n_threads=1, seed=0, **art
) -> Transferred:
    split = made.data.splits[target]
    config = made.config.model_copy(update={"art": made.config.art.model_copy(update=art)})
    return transfer(
        target, split, looking(split, n_threads), made.alone[target], told or made.shared,
        made.aligned.users if aligned is None else aligned, config, Seed(seed),
        job or Unwatched(),
    )  # fmt: skip


def bits(result):
    arrays = (result.factors.users, result.factors.items, *result.weights.values())
    return [array.tobytes() for array in arrays]


def test_it_learns_and_starts_from_the_domain_alone(three):
    result = transferred(three)
    history = result.history
    alone = looking(three.data.splits["a"]).ndcg(three.alone["a"].factors)
    assert history.epochs[0].valid == alone
    assert history.best.number > 0
    assert history.best.valid > alone
    assert looking(three.data.splits["a"]).ndcg(result.factors) == history.best.valid


def test_a_transfer_that_only_harms_gives_back_the_domain_alone(three):
    result = transferred(three, learning_rate=50.0, items="fixed")
    assert result.history.best.number == 0
    np.testing.assert_array_equal(result.factors.users, three.alone["a"].factors.users)
    np.testing.assert_array_equal(result.factors.items, three.alone["a"].factors.items)


def test_users_whom_no_source_knows_keep_their_vector(three):
    result = transferred(three)
    lonely = ~three.shared.without("a").known.any(axis=1)
    assert lonely.any()
    assert result.history.best.number > 0
    moved = (result.factors.users != three.alone["a"].factors.users).any(axis=1)
    np.testing.assert_array_equal(moved, ~lonely)


def test_the_items_control_learns_items_and_leaves_users(three):
    result = transferred(three, told=three.shared.hidden())
    alone = three.alone["a"].factors
    assert result.factors.users.tobytes() == alone.users.tobytes()
    # whatever its best epoch, items did move on the way
    assert result.history.epochs[1].train_loss != result.history.epochs[2].train_loss
    assert set(result.attention.values()) <= {0.0}


def test_told_of_what_it_learned_from_it_is_the_model_itself(three):
    result = transferred(three)
    alone, aligned = three.alone["a"], three.aligned
    again = served("a", result, alone, three.shared, aligned.of(three.shared), three.config)
    np.testing.assert_array_equal(again.users, result.factors.users)
    np.testing.assert_array_equal(again.items, result.factors.items)


def test_a_hidden_source_is_one_that_knows_nobody(three):
    """Hidden, its vectors have no influence, and who is known only there keeps the own vector."""
    result, told = transferred(three), three.shared.hidden("b")
    aligned = three.aligned.of(told)
    found = served("a", result, three.alone["a"], told, aligned, three.config)
    noise = dataclasses.replace(told, values=told.values + ~told.known[:, :, None] * np.float32(9))
    other = served("a", result, three.alone["a"], noise, three.aligned.of(noise), three.config)
    np.testing.assert_array_equal(found.users, other.users)
    lonely = ~told.without("a").known.any(axis=1)
    assert lonely.sum() > (~three.shared.without("a").known.any(axis=1)).sum()
    np.testing.assert_array_equal(found.users[lonely], three.alone["a"].factors.users[lonely])
    # the others of whom b knows something change, and those it does not know stay
    changed = (found.users != result.factors.users).any(axis=1)
    np.testing.assert_array_equal(changed, three.shared.known[:, three.shared.index("b")])


def test_fixed_items_stay_bit_by_bit(three):
    result = transferred(three, items="fixed")
    assert result.history.best.number > 0
    assert result.factors.items.tobytes() == three.alone["a"].factors.items.tobytes()


def test_tuned_items_learn_the_first_row_included(three):
    result = transferred(three)
    moved = (result.factors.items != three.alone["a"].factors.items).any(axis=1)
    assert moved.all()


def test_nothing_that_came_in_changes(three):
    before = copy.deepcopy([(made.factors, made.item_squares) for made in three.alone.values()])
    shared = three.shared.values.copy(), three.shared.known.copy(), three.aligned.users.copy()
    transferred(three)
    for (factors, squares), made in zip(before, three.alone.values(), strict=True):
        assert made.factors.users.tobytes() == factors.users.tobytes()
        assert made.factors.items.tobytes() == factors.items.tobytes()
        assert made.item_squares.tobytes() == squares.tobytes()
    np.testing.assert_array_equal(three.shared.values, shared[0])
    np.testing.assert_array_equal(three.shared.known, shared[1])
    np.testing.assert_array_equal(three.aligned.users, shared[2])


def test_mean_attention_is_shared_out_among_the_sources(three):
    attention = transferred(three).attention
    assert attention.keys() == {"b", "c"}
    assert sum(attention.values()) == pytest.approx(1, rel=1e-5)
    assert all(weight > 0 for weight in attention.values())


def known_shares(made):
    """How `a`'s users are known to its sources, one row each; of those whom any source knows."""
    known = made.shared.without("a").known
    return known[made.shared.known[:, 0] & known.any(1)]


def test_the_reported_weights_are_those_in_use(three):
    known = known_shares(three)
    for sources, shares in {"mean": known / known.sum(1, keepdims=True), "sum": known}.items():
        result = transferred(three, sources=sources)
        assert result.kept
        expected = dict(zip("bc", shares.mean(0), strict=True))
        assert result.attention == pytest.approx(expected, rel=1e-5)
    result = transferred(three, sources="none")
    assert result.kept
    assert result.attention == {}


@pytest.mark.parametrize(
    ("art", "idle"),
    [
        ({"sources": "mean"}, QUERY),
        ({"sources": "sum"}, QUERY),
        ({"sources": "none"}, (*QUERY, "adapt", "adapt_bias", "value", "out")),
        ({"shared": False}, ("shared",)),
        ({"shared": False, "sources": "mean"}, (*QUERY, "shared")),
    ],
)
def test_what_an_ablation_does_not_use_stays_at_its_start(three, art, idle):
    result = transferred(three, **art)
    assert result.kept
    assert result.history.best.number > 0
    init = Generator().manual_seed(Seed(0).child("init").integer())
    start = AttentionTransfer(2, 6, generator=init).weights()._asdict()
    for name, weight in result.weights.items():
        assert (weight.tobytes() == start[name].tobytes()) == (name in idle), name
    lonely = ~three.shared.without("a").known.any(axis=1)
    moved = (result.factors.users != three.alone["a"].factors.users).any(axis=1)
    np.testing.assert_array_equal(moved, ~lonely)


def test_without_it_the_shared_embedding_has_no_influence(three):
    other = np.random.default_rng(0).normal(size=three.aligned.users.shape).astype(np.float32)
    first, second = (
        transferred(three, aligned=aligned, shared=False)
        for aligned in (three.aligned.users, other)
    )
    assert bits(first) == bits(second)
    assert bits(first) != bits(transferred(three))


def test_the_variants_are_different_models(three):
    ways = [{"sources": sources} for sources in SOURCES] + [{"shared": False}]
    found = [transferred(three, **way).factors.users.tobytes() for way in ways]
    assert len(set(found)) == len(ways)


def test_dropout_is_on_in_training_and_off_in_validation(three, monkeypatch):
    factors, learn = [], network.learn

    def noted(*args):
        factors.append(args[5].copy())
        return learn(*args)

    monkeypatch.setattr(network, "learn", noted)
    one = transferred(three, dropout=0.25)
    values = np.concatenate(factors)
    np.testing.assert_allclose(np.unique(values), [0, 4 / 3], rtol=1e-6)
    assert np.mean(values == 0) == pytest.approx(0.25, abs=0.05)
    # validation saw what the factors say, which nothing random takes part in
    best = one.history.best
    assert looking(three.data.splits["a"]).ndcg(one.factors) == best.valid


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_seed_and_the_threads_decide_every_bit(three, n_threads):
    torch.manual_seed(1)
    first = bits(transferred(three, n_threads=n_threads, max_epochs=2))
    torch.manual_seed(2)
    assert bits(transferred(three, n_threads=n_threads, max_epochs=2)) == first
    assert bits(transferred(three, n_threads=n_threads, max_epochs=2, seed=1)) != first


@pytest.mark.parametrize("batch_size", [1, 13, 1000])
def test_a_last_batch_of_any_size_will_do(three, batch_size):
    result = transferred(three, batch_size=batch_size, max_epochs=1)
    assert np.isfinite(result.factors.users).all()


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d")])
def test_any_number_of_domains(names):
    made = ready(names, n_users=600)
    result = transferred(made)
    assert result.attention.keys() == set(names[1:])
    assert result.kept
    assert result.factors.users.shape == (600, 6)


def test_vectors_that_stand_for_unknown_users_have_no_influence(three):
    """Each domain holds some vector for everybody; only those of its own users count."""
    present = dict(zip(three.shared.domains, three.shared.known.T, strict=True))
    rng = np.random.default_rng(0)
    tables = {
        name: np.where(
            present[name][:, None],
            made.factors.users,
            rng.normal(size=made.factors.users.shape).astype(np.float32),
        )
        for name, made in three.alone.items()
    }
    shared = UserEmbeddings.collect(tables, present)
    aligned = align(shared, three.config.cat, Seed(0), Unwatched(), n_threads=2)
    result = transferred(three, told=shared, aligned=aligned.users, max_epochs=2)
    assert bits(result) == bits(transferred(three, max_epochs=2))


def test_one_common_scale_of_a_source_makes_no_difference(three):
    """Domains train to different lengths; what is exchanged has length 1."""
    present = dict(zip(three.shared.domains, three.shared.known.T, strict=True))
    tables = {name: made.factors.users for name, made in three.alone.items()}
    louder = UserEmbeddings.collect(tables | {"b": tables["b"] * np.float32(4)}, present)
    assert bits(transferred(three, told=louder, max_epochs=2)) == bits(
        transferred(three, max_epochs=2)
    )


STEP = """
import hashlib
import numpy as np
from musketeers.art import network
from musketeers.art.network import Everybody, Weights
from musketeers.data.interactions import Interactions

rng = np.random.default_rng(0)

def some(*shape):
    return 0.1 * rng.standard_normal(shape, dtype=np.float32)

n, dim, n_items = 300, 64, 200
everybody = Everybody(some(n, 3, dim), rng.random((n, 3)) < 0.7, some(n, dim), 1, np.array([0, 2]))
square = (dim, dim)
weights = Weights(some(2, *square), some(2, dim), some(*square), some(dim), *(
    some(*square) for _ in range(4)), some(dim), some(dim))
pairs = Interactions.from_pairs(
    *np.nonzero(rng.random((n, n_items)) < 0.1), n_users=n, n_items=n_items)
alone, items, seen = some(n, dim), some(n_items, dim), rng.random(n) < 0.9
loss, slopes = network.learn(
    weights, everybody, rng.permutation(n), seen, 0.125, np.ones((n, 2), np.float32), alone,
    alone.mean(0), np.float32(0.7), np.full(n, 0.01, np.float32), seen, pairs.indptr, pairs.items,
    items, np.full(n_items, 0.1, np.float32), np.zeros(n_items, np.bool_), None, np.float32(0.1),
    np.float32(0.01), 4, np.uint64(5))
print(loss, hashlib.sha256(b"".join(a.tobytes() for a in (items, *slopes))).hexdigest())
"""


@pytest.mark.slow
def test_compiled_just_now_or_long_ago_is_bitwise_the_same(tmp_path):
    """A first run must be repeated by a second one, which finds everything compiled."""
    where = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", STEP], env=where, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert first == second
    assert list(tmp_path.rglob("*.nbc"))
