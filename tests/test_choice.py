"""Blends, the gate's test, and which model a domain gets."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from test_ease import only, pairs

from musketeers import scorers
from musketeers.baselines.ease import EaseSettings, ease
from musketeers.baselines.linear import Linear
from musketeers.baselines.popularity import popularity
from musketeers.config import ChoiceConfig
from musketeers.data.synthetic import planted
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.heads import ladder
from musketeers.heads.blend import (
    beside,
    blend,
    equal_weight,
    of_inputs,
    with_history,
)
from musketeers.heads.candidates import LEVEL, p_of_best
from musketeers.heads.choice import choose
from musketeers.heads.cold import cold_linear
from musketeers.heads.gate import Gated, groups
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import Unwatched

USERS = np.arange(40)


def vectors(*, n_items=7, dim=3, entropy=0):
    make = Seed(entropy).numpy()
    users, items = (make.standard_normal((n, dim)).astype(np.float32) for n in (40, n_items))
    return Factors(users, items)


# --- blends


@pytest.mark.parametrize("sparse", [False, True])
def test_a_blend_scores_as_both_together(sparse):
    first, second = ease(only(pairs(40, 7, entropy=1)), EaseSettings(5.0)), vectors()
    if sparse:
        first = Linear.of(first.inputs, csr_array(first.weights))
    made = blend(first, second, 0.3)
    everything = np.tile(np.arange(7), (40, 1))
    wanted = first.exact(USERS, everything) + 0.3 * second.exact(USERS, everything)
    np.testing.assert_allclose(made.exact(USERS, everything), wanted, rtol=1e-5, atol=1e-6)


def test_a_model_of_vectors_is_blended_into_vectors():
    first, second = vectors(), vectors(dim=5, entropy=1)
    made = blend(first, second, 0.3)
    everything = np.tile(np.arange(7), (40, 1))
    wanted = first.exact(USERS, everything) + 0.3 * second.exact(USERS, everything)
    np.testing.assert_allclose(made.exact(USERS, everything), wanted, rtol=1e-5, atol=1e-6)


def test_told_their_history_users_are_scored_as_if_it_had_been_there():
    train = pairs(40, 7, entropy=1)
    made = blend(ease(only(train), EaseSettings(5.0)), vectors(), 0.3)
    inputs = made.inputs.toarray()
    inputs[:, :7] = 0
    forgotten = Linear.of(csr_array(inputs), made.weights)
    everything = np.tile(np.arange(7), (40, 1))
    again = with_history(forgotten, train)
    assert again.exact(USERS, everything).tobytes() == made.exact(USERS, everything).tobytes()
    assert (again.error(USERS) == made.error(USERS)).all()
    assert forgotten.exact(USERS, everything).tobytes() != made.exact(USERS, everything).tobytes()


@pytest.mark.parametrize("first", ["linear", "vectors"])
def test_a_blend_with_other_vectors_is_the_blend_that_these_would_have_made(first):
    one = ease(only(pairs(40, 7, entropy=1)), EaseSettings(5.0)) if first == "linear" else vectors()
    second, other = vectors(dim=5, entropy=1), vectors(dim=5, entropy=2)
    other = Factors(other.users, second.items)
    made, wanted = blend(one, second, 0.3), blend(one, other, 0.3)
    before = {name: array.tobytes() for name, array in scorers.arrays(made).items()}
    first_inputs = one.inputs if first == "linear" else one.users
    told = of_inputs(made, beside(first_inputs, other.users, 0.3))
    arrays = (scorers.arrays(model) for model in (told, wanted))
    found, expected = ({n: a.tobytes() for n, a in of.items()} for of in arrays)
    assert found == expected != before
    assert {name: array.tobytes() for name, array in scorers.arrays(made).items()} == before
    # whatever was prepared of items or weights holds
    kept = ("weights", "largest") if first == "linear" else ("items",)
    assert all(getattr(told, name) is getattr(made, name) for name in kept)


def test_equal_weights_spread_scores_alike():
    first, second = ease(only(pairs(40, 7, entropy=1)), EaseSettings(5.0)), vectors()
    weight = equal_weight(first, second, USERS)
    spread = [model.score(USERS).std(axis=1).mean() for model in (first, second)]
    assert weight * spread[1] == pytest.approx(spread[0])
    flat = Factors(second.users, np.zeros_like(second.items))
    assert equal_weight(first, flat, USERS) == 0


# --- the gate's test


def test_the_best_of_many_without_gain_passes_as_rarely_as_stated():
    make = Seed(5).numpy()
    passed = 0
    for number in range(200):
        common = make.standard_normal((1, 150))
        gains = common + make.standard_normal((12, 150))
        passed += p_of_best(gains, Seed(number)) < LEVEL
    # 200 draws at a risk of .2: within three deviations
    assert abs(passed / 200 - LEVEL) < 3 * np.sqrt(LEVEL * (1 - LEVEL) / 200)


def test_a_gain_passes_a_loss_does_not_and_equal_ones_take_no_part():
    noise = Seed(6).numpy().standard_normal((3, 400))
    assert p_of_best(noise + np.array([[0.0], [0.3], [-0.3]]), Seed(0)) < 0.01
    assert p_of_best(noise - 0.3, Seed(0)) > 0.9
    nothing = np.zeros((1, 400))
    assert p_of_best(nothing, Seed(0)) == 1
    both = np.concatenate([nothing, noise[:1] + 0.2])
    assert p_of_best(both, Seed(0)) == p_of_best(both[1:], Seed(0))


# --- the choice


@pytest.fixture(scope="module")
def world():
    """Two domains that share a taste: the target's validation, what is exchanged, its vectors."""
    splits = planted(("tv", "film"), Seed(0), n_users=800, n_items=100, common=1.0).splits
    looked_at = {name: Validation.of(one, Seed(0), n_threads=1) for name, one in splits.items()}
    alone = {
        name: ials(one, looked_at[name], IalsSettings(max_epochs=5), Seed(0), Unwatched(), dim=8)
        for name, one in splits.items()
    }
    known = {name: one.train.known_users() for name, one in splits.items()}
    shared = UserEmbeddings.collect({name: m.factors.users for name, m in alone.items()}, known)
    return looked_at["film"], shared, alone["film"].factors


def forgotten(factors):
    """As SMF serves users without history."""
    mean = factors.users.mean(axis=0, keepdims=True)
    return Factors(np.repeat(mean, len(factors.users), axis=0), factors.items)


def film(validation, shared, factors, *, seed=0, max_bytes=2**30, aligned=None, **config):
    return choose(
        "film", validation, shared, alone=factors, aligned=aligned, transferred=factors,
        hidden=forgotten(factors), config=ChoiceConfig(**config), seed=Seed(seed), job=Unwatched(),
        max_bytes=max_bytes,
    )  # fmt: skip


def test_a_domain_is_told_of_others_where_that_helps(world):
    validation, _shared, factors = world
    made = film(*world)
    verdict, chosen = made.verdict, made.verdict.chosen
    assert verdict.transfers
    assert verdict.p < LEVEL
    assert chosen == verdict.told
    assert chosen.kind in ("linear", "linear+cat_art")
    assert chosen.name.startswith("linear(")
    assert made.tried[chosen.name] == chosen.valid == max(made.tried.values())
    assert validation.ndcg(made.scorer) == chosen.valid
    split = validation.split
    own = max((name for name in made.tried if name.startswith(("ease", "smf"))),
              key=made.tried.__getitem__)  # fmt: skip
    assert (verdict.own.name, verdict.own.valid) == (own, made.tried[own])
    assert chosen.valid > 1.05 * verdict.own.valid
    assert verdict.gain == pytest.approx(chosen.valid / verdict.own.valid - 1)
    test = [
        evaluate(model, split.test, split.seen(), ks=(10,), n_threads=1).values["ndcg@10"].mean()
        for model in (made.scorer, factors, ease(split, EaseSettings()))
    ]
    assert test[0] > 1.05 * max(test[1:])


def test_it_keeps_its_own_where_nobody_is_who_they_seem(world):
    validation, shared, factors = world
    own: list[bool] = []
    for seed in range(5):
        order = Seed(seed).numpy().permutation(len(shared.values))
        mixed = UserEmbeddings(
            shared.domains, shared.values[order], shared.known[order], shared.lengths
        )
        verdict = film(validation, mixed, factors, seed=seed).verdict
        own.append(not verdict.transfers)
        assert verdict.transfers == (verdict.p < LEVEL)
        assert verdict.chosen == (verdict.told if verdict.transfers else verdict.own)
    assert sum(own) >= 4


def test_cold_users_get_what_is_best_without_their_history(world):
    validation, shared, factors = world
    made = film(*world)
    verdict, train = made.verdict, validation.split.train
    assert verdict.cold.kind in ("linear", "linear+cat_art")
    assert verdict.cold.valid > 1.3 * verdict.popular
    # of users known elsewhere, all of whom have a history here
    elsewhere = shared.without("film").known.any(axis=1)[validation.users]
    some = Validation(validation.split, validation.users[elsewhere], 1)
    assert some.ndcg(made.cold) == verdict.cold.valid
    assert some.ndcg(popularity(train)) == verdict.popular
    # what a user did here counts for nothing
    assert made.cold.users.shape[1] < train.n_items
    order = Seed(1).numpy().permutation(len(shared.values))
    mixed = UserEmbeddings(
        shared.domains, shared.values[order], shared.known[order], shared.lengths
    )
    stranger = film(validation, mixed, factors)
    assert (stranger.cold is None) == (stranger.verdict.cold is None)
    best = stranger.verdict.cold.valid if stranger.cold else stranger.verdict.popular
    assert best < 1.1 * verdict.popular


def test_cold_weights_are_the_least_squares_of_a_general_solver(world):
    validation, shared, _factors = world
    train, told = validation.split.train, shared.without("film")
    made = cold_linear(train, told)(7.0)
    both = train.known_users() & told.known.any(axis=1)
    inputs = np.hstack([told.values[:, 0], np.ones((len(both), 1))])[both]
    # a penalty is a row of its own for each weight, but for the constant's
    rows = np.sqrt(7.0) * np.eye(inputs.shape[1])[:-1]
    liked = np.zeros((train.n_users, train.n_items))
    liked[train.users(), train.items] = 1
    targets = np.vstack([liked[both], np.zeros((len(rows), train.n_items))])
    wanted, *_ = np.linalg.lstsq(np.vstack([inputs, rows]), targets, rcond=None)
    np.testing.assert_allclose(made.items.T, wanted, rtol=1e-3, atol=1e-4)
    scores = made.score(np.flatnonzero(both))
    np.testing.assert_allclose(scores, inputs @ wanted, rtol=1e-3, atol=1e-3)
    # held back without bounds, they leave what all of these users like
    flat = cold_linear(train, told)(1e9).score(np.flatnonzero(both)[:1])[0]
    np.testing.assert_allclose(flat, liked[both].mean(axis=0), atol=1e-3)


def test_nobody_is_cold_where_nobody_is_known_elsewhere(world):
    validation, shared, factors = world
    made = film(validation, shared.hidden("tv"), factors)
    assert made.cold is None
    assert made.verdict.cold is None
    assert made.verdict.popular is None


def test_the_search_goes_on_until_the_best_regularisation_has_neighbours(world):
    tried = film(*world).tried
    by_strength = {}
    for name, value in tried.items():
        if name.startswith("ease(") and "+" not in name:
            by_strength[float(name[5:-1])] = value
    strengths = sorted(by_strength)
    best = strengths.index(max(by_strength, key=by_strength.__getitem__))
    assert 0 < best < len(strengths) - 1
    assert np.allclose(np.diff(np.log(strengths)), np.log(3), atol=0.01)


def test_without_the_memory_for_linear_models_vectors_are_all_there_is(world):
    made = film(*world, max_bytes=1000)
    assert set(made.tried) == {"smf", "cat_art"}
    assert made.verdict.chosen.kind == "smf"
    assert made.scorer is world[2]
    assert made.verdict.p == 1


def test_where_linear_models_do_not_fit_items_are_solved_by_least_squares(world):
    validation, _shared, factors = world
    made = film(*world, max_bytes=500_000)
    kinds = {name.split("(")[0] for name in made.tried}
    assert kinds == {"smf", "cat_art", "smf_ials", "ials_head"}
    verdict = made.verdict
    assert verdict.transfers
    assert verdict.chosen.kind in ("ials_head", "ials_head+cat_art")
    assert validation.ndcg(made.scorer) == verdict.chosen.valid == max(made.tried.values())
    assert verdict.own.kind in ("smf", "smf_ials", "smf_ials+smf")
    split = validation.split
    test = [
        evaluate(model, split.test, split.seen(), ks=(10,), n_threads=1).values["ndcg@10"].mean()
        for model in (made.scorer, factors)
    ]
    assert test[0] > 1.05 * test[1]
    strengths = sorted(
        float(name[9:-1]) for name in made.tried if name.startswith("smf_ials(") and "+" not in name
    )
    assert np.allclose(np.diff(np.log(strengths)), np.log(3), atol=0.01)


def test_work_that_would_take_too_long_is_left_out(world, monkeypatch):
    everything = film(*world).tried
    n_items = world[0].split.train.n_items
    monkeypatch.setattr(ladder, "MOST_WORK", 2 * n_items**3)
    two = film(*world).tried
    assert two.items() <= everything.items()
    assert [name for name in two if name.startswith("ease(") and "+" not in name] == [
        "ease(100)", "ease(300)",
    ]  # fmt: skip
    monkeypatch.setattr(ladder, "MOST_WORK", n_items**3 - 1)
    assert set(film(*world).tried) == {"smf", "cat_art"}


def test_a_domain_without_others_gets_the_best_of_its_own(world):
    validation, _shared, factors = world
    known = validation.split.train.known_users()
    alone = UserEmbeddings.collect({"film": factors.users}, {"film": known})
    made = choose(
        "film",
        validation,
        alone,
        alone=factors,
        aligned=None,
        transferred=None,
        hidden=None,
        config=ChoiceConfig(gate="activity", global_embedding=True),
        seed=Seed(0),
        job=Unwatched(),
        max_bytes=2**30,
    )
    assert {name.split("(")[0] for name in made.tried} == {"smf", "ease"}
    assert made.verdict.told is None
    assert made.verdict.groups == ()
    assert not made.verdict.transfers
    assert np.isnan(made.verdict.gain)
    assert made.verdict.chosen.valid == max(made.tried.values()) == validation.ndcg(made.scorer)


def test_the_same_again(world):
    one, two = film(*world), film(*world)
    assert (one.verdict, one.tried) == (two.verdict, two.tried)
    assert one.scorer.weights.tobytes() == two.scorer.weights.tobytes()


# --- a gate for each group of users


@pytest.fixture(scope="module")
def uneven(world):
    """The same, but of most users' pairs some were never seen."""
    validation, shared, factors = world
    split = validation.split
    chances = np.repeat(Seed(7).numpy().random(split.train.n_users), split.train.counts())
    keep = Seed(8).numpy().random(len(split.train)) < 0.3 + 0.7 * chances
    kept = replace(split, train=split.train.only(keep))
    known = shared.known.copy()
    known[::3, shared.index("tv")] = False
    told = UserEmbeddings(shared.domains, shared.values * known[:, :, None], known, shared.lengths)
    return replace(validation, split=kept), told, factors


def half_mixed(world, mixed):
    """What is shared, but of the users that `mixed` marks, who then are not who they seem."""
    validation, shared, factors = world
    rows = np.arange(len(shared.values))
    rows[mixed] = Seed(1).numpy().permutation(rows[mixed])
    told = UserEmbeddings(shared.domains, shared.values[rows], shared.known[rows], shared.lengths)
    return validation, told, factors


def test_groups_are_thirds_of_activity_or_how_many_domains_know_a_user(uneven):
    validation, shared, _ = uneven
    counts = validation.split.train.counts()
    found = groups("activity", validation, shared)
    assert len(found.names) == 3
    sizes = np.bincount(found.of[validation.users])
    assert sizes.sum() == len(validation.users)
    assert sizes.min() > len(validation.users) / 5
    bounds = [counts[validation.users][found.of[validation.users] == n] for n in range(3)]
    assert bounds[0].max() < bounds[1].min() <= bounds[1].max() < bounds[2].min()
    low, high = bounds[1].min(), bounds[2].min()
    assert found.names == (
        f"{bounds[0].min()}..{low - 1} pairs", f"{low}..{high - 1} pairs", f"{high} or more pairs",
    )  # fmt: skip
    by_domains = groups("domains", validation, shared)
    assert by_domains.names == ("1 known domains", "2 or more known domains")
    assert (by_domains.of == shared.known.all(axis=1)).all()
    assert groups("domain", validation, shared).names == ("all",)


def test_users_who_did_equally_much_are_one_group():
    validation = Validation.of(
        planted(("tv",), Seed(0), n_users=50, n_items=30).splits["tv"], Seed(0), n_threads=1
    )
    same = np.full((50, 1, 2), 1, np.float32)
    shared = UserEmbeddings(("tv",), same, np.ones((50, 1), np.bool_), np.ones(1, np.float32))
    assert groups("domains", validation, shared).names == ("1 or more known domains",)


def test_each_group_gets_what_is_surely_better_for_it(uneven):
    validation = uneven[0]
    active = groups("activity", validation, uneven[1]).of == 2
    told_wrong = half_mixed(uneven, active)
    made = film(*told_wrong, gate="activity")
    few, _, many = made.verdict.groups
    assert few.takes
    assert not many.takes
    assert few.gain > many.gain
    assert all(one.takes == (one.p < LEVEL / 3) for one in made.verdict.groups)
    assert sum(one.users for one in made.verdict.groups) == len(validation.users)
    assert isinstance(made.scorer, Gated)
    assert made.verdict.transfers
    known = validation.split.train.known_users()
    assert not made.scorer.takes[active & known].any()
    assert made.scorer.takes[~known].all()
    values, of = validation.by_user(made.scorer), made.scorer.takes[validation.users]
    told, own = (validation.by_user(side) for side in (made.scorer.told, made.scorer.own))
    np.testing.assert_array_equal(values, np.where(of, told, own))
    # over all users together the gate is one
    whole = film(*told_wrong)
    assert whole.verdict.groups == ()
    assert not isinstance(whole.scorer, Gated)


def test_where_all_groups_agree_there_is_one_model(uneven):
    validation, shared, factors = uneven
    told = film(*uneven, gate="domains")
    order = Seed(3).numpy().permutation(len(shared.values))
    mixed = UserEmbeddings(
        shared.domains, shared.values[order], shared.known[order], shared.lengths
    )
    own = film(validation, mixed, factors, gate="activity")
    for made in (told, own):
        takes = {one.takes for one in made.verdict.groups}
        assert isinstance(made.scorer, Gated) == (len(takes) == 2)
        assert made.verdict.transfers == (True in takes)
    assert not any(one.takes for one in own.verdict.groups)


def test_behind_a_gate_scores_are_those_of_each_side():
    sides = (ease(only(pairs(40, 7, entropy=1)), EaseSettings(5.0)), vectors())
    takes = Seed(0).numpy().random(40) < 0.5
    gated = Gated(*sides, takes)
    everything = np.tile(np.arange(7), (40, 1))
    for rows in (USERS, USERS[::-1], USERS[takes], USERS[:0]):
        for of in ("score", "error"):
            found, (told, own) = (
                getattr(gated, of)(rows), [getattr(side, of)(rows) for side in sides],
            )  # fmt: skip
            wanted = [told[n] if takes[row] else own[n] for n, row in enumerate(rows)]
            assert found.tolist() == [np.asarray(one).tolist() for one in wanted]
        exact = gated.exact(rows, everything[rows])
        for n, row in enumerate(rows):
            side = sides[0] if takes[row] else sides[1]
            assert (exact[n] == side.exact(rows[n : n + 1], everything[:1])[0]).all()


# --- the global embedding beside the others'


def test_heads_can_be_told_the_global_embedding_too(world):
    validation, shared, factors = world
    taste = shared.values[:, shared.index("tv")]
    # what tv says comes in by the global embedding alone
    silent = shared.hidden("tv")
    without = film(validation, silent, factors, aligned=taste)
    told = film(validation, silent, factors, aligned=taste, global_embedding=True)
    assert told.verdict.transfers
    assert told.verdict.told.valid > 1.05 * without.verdict.told.valid
    assert told.verdict.told.source_weight > 0
    _, n_domains, dim = shared.values.shape
    width = told.scorer.inputs.shape[1] - validation.split.train.n_items
    blended = "cat_art" in told.verdict.told.kind
    assert width == n_domains * dim + blended * factors.users.shape[1]


def test_the_global_embedding_is_of_those_whom_any_domain_knows(world):
    _, shared, _ = world
    found = shared.hidden("film").beside("global embedding", np.ones_like(shared.values[:, 0]))
    assert found.domains == (*shared.domains, "global embedding")
    anywhere = shared.known[:, shared.index("tv")]
    assert (found.known[:, -1] == anywhere).all()
    assert (found.values[:, -1] == anywhere[:, None]).all()
