"""A few users told anew of: what they are served after less is told of them, or more."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from test_sources import NAMES, SETTINGS, fit, parts

from musketeers import scorers
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError, UnknownNameError
from musketeers.evaluation.metrics import hits_of, ndcg
from musketeers.evaluation.validation import Validation
from musketeers.latest import Latest
from musketeers.pipeline import Models
from musketeers.ranking import Factors, top_k
from musketeers.sources import without
from musketeers.told import CROSS_DOMAIN, PERSONALISED, POPULAR, Told

KINDS = ("run", "cat_art")


@pytest.fixture(scope="module")
def run():
    """tv is served a linear head with CAT-ART, film a linear head, noise its own EASE with SMF."""
    return fit()


@pytest.fixture(scope="module")
def cat_art():
    """CAT-ART alone, its transfer kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "is_better", lambda *_: True)
        return fit("cat_art")


def known(run, name):
    return run.recommender.domains[name].known


def history(run, name, rows):
    """What users at these rows have in training."""
    return run.splits[name].train.of_each(rows)


def ranked(found, n, k=10, seen=None):
    """Each asked user's list."""
    lists = np.full((n, k), -1, np.int32)
    for part in found:
        its = seen.of_each(part.places) if seen else None
        places = np.arange(len(part.places))
        lists[part.places] = top_k(part.scorer, places, k=k, seen=its, n_threads=1).items
    return lists


def one(found):
    """The only part."""
    (part,) = found
    return part


def same(one, other):
    before, after = (
        {name: array.tobytes() for name, array in scorers.arrays(scorer).items()}
        for scorer in (one, other)
    )
    return before == after


def strangers(n):
    return np.full(n, -1)


# --- what is exchanged


def test_what_is_told_of_some_is_what_was_told_of_all(run):
    everything, latest = run.stages.told(run.splits), Latest.of(run)
    rows = np.array([7, 3, -1, 250])
    found = latest.told(rows)
    assert found.domains == everything.domains
    assert found.lengths.tobytes() == everything.lengths.tobytes()
    assert found.values[[0, 1, 3]].tobytes() == everything.values[rows[[0, 1, 3]]].tobytes()
    assert (found.known[[0, 1, 3]] == everything.known[rows[[0, 1, 3]]]).all()
    assert not found.values[2].any()
    assert not found.known[2].any()


def test_what_was_done_in_a_domain_changes_its_vector_and_nothing_else(run):
    latest = Latest.of(run)
    rows = np.append(np.flatnonzero(known(run, "film"))[:2], [-1])
    film = latest.domains.index("film")
    seen = run.recommender.domains["film"].seen
    new = [np.setdiff1d(np.arange(60), seen.of(row))[:3] for row in rows.tolist()]
    new[2] = np.array([5, 9, 12])  # a stranger's
    pairs = Interactions.from_pairs(
        np.repeat(np.arange(3), 3), np.concatenate(new), n_users=3, n_items=60
    )
    before, after = latest.told(rows), latest.since(rows, {"film": pairs})
    others = [n for n in range(3) if n != film]
    assert (after.values[:, others] == before.values[:, others]).all()
    assert (after.known[:, others] == before.known[:, others]).all()
    assert (after.values[:, film] != before.values[:, film]).any(axis=1).all()
    assert after.known[:, film].tolist() == [True, True, True]
    assert before.known[:, film].tolist() == [True, True, False]
    # a stranger's vector is as long as one that was learned: 1 is the mean
    assert 0.5 < np.linalg.norm(after.values[2, film]) < 1.5


def test_vectors_of_the_same_history_are_near_those_that_were_learned(run):
    latest = Latest.of(run)
    for name in NAMES:
        rows = np.flatnonzero(known(run, name))
        place = latest.domains.index(name)
        told = latest.since(strangers(len(rows)), {name: history(run, name, rows)})
        learned = latest.told(rows).values[:, place]
        cosines = (told.values[:, place] * learned).sum(axis=1)
        lengths = [np.linalg.norm(t, axis=1) for t in (told.values[:, place], learned)]
        assert (cosines / (lengths[0] * lengths[1])).mean() > 0.85
        assert lengths[0].mean() == pytest.approx(lengths[1].mean(), rel=0.1)


# --- told the same


@pytest.mark.parametrize("domain", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_told_the_same_all_users_are_served_bit_by_bit_as_they_are(kind, domain, request):
    run = request.getfixturevalue(kind)
    told, model = Told.of(run, domain), run.recommender.domains[domain]
    everybody = np.arange(len(run.recommender.users))
    shared = told.latest.told(everybody) if told.latest else None
    made = told.scorer(PERSONALISED, everybody, shared)
    assert made is not model.scorer
    assert same(made, model.scorer)
    if model.cold:
        assert same(told.scorer(CROSS_DOMAIN, everybody, shared), model.cold)


@pytest.mark.parametrize("domain", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_told_nothing_new_a_few_are_answered_as_by_the_recommender(kind, domain, request):
    run = request.getfixturevalue(kind)
    rows, model = np.append(np.arange(0, 400, 7), -1), run.recommender.domains[domain]
    wanted, strategies = run.recommender.ranked(domain, rows, 10, n_threads=1)
    found = Told.of(run, domain).since(rows, {})
    lists = ranked(found, len(rows), seen=model.seen.of_each(rows))
    assert (lists == wanted.items).mean() > 0.999  # vectors round by who else is asked for
    names = {part.strategy: part.places.tolist() for part in found}
    for number, strategy in enumerate((PERSONALISED, CROSS_DOMAIN, POPULAR)):
        assert names.get(strategy, []) == np.flatnonzero(strategies == number).tolist()
    # what was prepared of items holds
    for part in found:
        if part.strategy == POPULAR:
            assert part.scorer.items is model.popularity.items
        elif isinstance(part.scorer, Factors):
            served = model.cold if part.strategy == CROSS_DOMAIN and model.cold else model.scorer
            assert part.scorer.items is served.items
        else:
            assert part.scorer.weights is model.scorer.weights
            assert part.scorer.largest is model.scorer.largest


@pytest.mark.parametrize("kind", KINDS)
def test_less_told_of_a_few_is_as_hidden_from_all(kind, request):
    run = request.getfixturevalue(kind)
    told, rows = Told.of(run, "tv"), np.flatnonzero(known(run, "tv"))[:9]
    less = without(run, "tv", "film").domains["tv"].scorer
    part = one(told.parts(rows, told.latest.told(rows).hidden("film")))
    found, wanted = part.scorer.score(np.arange(9)), less.score(rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(found - told.run.recommender.domains["tv"].scorer.score(rows)).max() > 1e-3


# --- told more


@pytest.mark.parametrize(("domain", "source"), [("tv", "film"), ("film", "tv")])
@pytest.mark.parametrize("kind", KINDS)
def test_strangers_get_what_suits_what_they_did_elsewhere(kind, domain, source, request):
    """Nearly as users whose vectors were learned from the same, and far better than popular."""
    run = request.getfixturevalue(kind)
    told, model = Told.of(run, domain), run.recommender.domains[domain]
    rows = np.flatnonzero(known(run, domain) & known(run, source))
    nobody, truth = strangers(len(rows)), model.seen.of_each(rows)
    part = one(told.since(nobody, {source: history(run, source, rows)}))
    assert part.strategy == CROSS_DOMAIN
    learned = told.latest.told(rows).hidden(*(name for name in NAMES if name != source))
    known_users = one(told.parts(nobody, learned))

    def value(lists):
        return ndcg(hits_of(lists, np.arange(len(rows)), truth), truth.counts()).mean()

    ours, theirs = (ranked([found], len(rows)) for found in (part, known_users))
    popular = top_k(model.popularity, nobody + 1, k=10, seen=None, n_threads=1).items
    gain, most = value(ours) - value(popular), value(theirs) - value(popular)
    assert most > 0.05
    assert gain > 0.75 * most
    shared, by_chance = (
        np.mean([len(np.intersect1d(*both)) for both in zip(theirs, lists, strict=True)]) / 10
        for lists in (ours, popular)
    )
    assert shared > 0.7 > by_chance + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_user_who_did_more_elsewhere_is_told_so(kind, request):
    run = request.getfixturevalue(kind)
    told, model = Told.of(run, "tv"), run.recommender.domains["tv"]
    rows = np.flatnonzero(known(run, "tv") & ~known(run, "film"))[:5]
    recent = {"film": history(run, "film", np.flatnonzero(known(run, "film"))[:5])}
    before, after = (one(told.since(rows, given)) for given in ({}, recent))
    assert before.strategy == after.strategy == PERSONALISED
    scores = [part.scorer.score(np.arange(5)) for part in (before, after)]
    assert (np.abs(scores[1] - scores[0]).max(axis=1) > 1e-3).all()
    if kind == "run":
        n_items, dim = model.scorer.n_items, SETTINGS["dim"]
        inputs = [part.scorer.inputs.toarray() for part in (before, after)]
        film = slice(n_items, n_items + dim)
        assert not inputs[0][:, film].any()
        place = told.latest.domains.index("film")
        vectors = told.latest.since(rows, recent).values[:, place]
        weight = run.learning.verdicts["tv"].chosen.source_weight
        np.testing.assert_array_equal(inputs[1][:, film], np.float32(weight) * vectors)
        kept = np.r_[:n_items, n_items + dim : n_items + 2 * dim]  # the history, and noise
        np.testing.assert_array_equal(inputs[1][:, kept], inputs[0][:, kept])


def test_what_a_domain_knows_already_tells_nothing(run):
    told, rows = Told.of(run, "tv"), np.arange(20)
    again = {name: run.recommender.domains[name].seen.of_each(rows) for name in NAMES}
    for before, after in zip(told.since(rows, {}), told.since(rows, again), strict=True):
        assert before.strategy == after.strategy
        assert (before.places == after.places).all()
        assert same(before.scorer, after.scorer)


def test_where_nothing_is_told_of_others_what_was_done_there_changes_nothing(run):
    told, rows = Told.of(run, "noise"), np.array([0, 1, -1])
    assert told.latest is None
    recent = {"film": history(run, "film", np.flatnonzero(known(run, "film"))[:3])}
    before, after = told.since(rows, {}), told.since(rows, recent)
    assert [part.strategy for part in after] == [part.strategy for part in before]
    assert all(same(*(part.scorer for part in both)) for both in zip(before, after, strict=True))
    assert after[-1].strategy == POPULAR


@pytest.mark.parametrize("domain", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_done_here_alone_is_folded_in_as_by_the_recommender(kind, domain, request):
    run = request.getfixturevalue(kind)
    served, model = run.recommender, run.recommender.domains[domain]
    rows = np.append(np.flatnonzero(~model.known)[:1], [-1])
    ids = [served.users.values[int(rows[0])], "somebody new"]
    new = np.setdiff1d(np.arange(60), model.seen.of(int(rows[0])))[:3]
    pairs = Interactions.from_pairs(np.repeat([0, 1], 3), np.tile(new, 2), n_users=2, n_items=60)
    found = Told.of(run, domain).since(rows, {domain: pairs})
    assert one(found).strategy == PERSONALISED
    seen = model.seen.of_each(rows).union(pairs)
    lists = ranked(found, 2, k=5, seen=seen)
    wanted = served.fold_in(
        domain, np.repeat(ids, 3), model.items.ids(np.tile(new, 2)), k=5, n_threads=1
    )
    for place, user in enumerate(ids):
        items = wanted.filter(user_id=user)["item_id"].to_list()
        assert model.items.ids(lists[place]).to_list() == items


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_done_here_comes_on_top_of_what_was_done_elsewhere(kind, request):
    run = request.getfixturevalue(kind)
    told, rows = Told.of(run, "tv"), np.flatnonzero(known(run, "tv") & known(run, "film"))
    truth, nobody = run.splits["tv"].test.of_each(rows), strangers(len(rows))
    mine = {name: history(run, name, rows) for name in ("tv", "film")}

    def value(recent):
        found = told.since(nobody, recent)
        assert one(found).strategy == (PERSONALISED if "tv" in recent else CROSS_DOMAIN)
        lists = ranked(found, len(rows), seen=mine["tv"])
        users = np.flatnonzero(truth.known_users())
        return ndcg(hits_of(lists[users], users, truth), truth.counts()[users]).mean()

    both, here = value(mine), value({"tv": mine["tv"]})
    assert both > here + 0.02


def test_it_may_be_asked_from_threads(run):
    told, rows = Told.of(run, "tv"), np.array([3, -1])
    recent = {"film": history(run, "film", np.flatnonzero(known(run, "film"))[:2])}
    wanted, found = told.since(rows, recent), {}

    def ask(number):
        found[number] = told.since(rows, recent)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for parts_found in found.values():
        assert all(
            same(*(p.scorer for p in both)) for both in zip(parts_found, wanted, strict=True)
        )


def test_nothing_of_the_run_is_changed(run):
    before = parts(run.recommender.domains["tv"])
    told = Told.of(run, "tv")
    rows = np.arange(5)
    told.since(rows, {name: history(run, name, rows + 20) for name in NAMES})
    assert parts(run.recommender.domains["tv"]) == before


# --- what cannot be told


def test_what_cannot_be_told_is_said(run):
    with pytest.raises(UnknownNameError, match=r"domain 'tvv' is not among .*; did you mean 'tv'"):
        Told.of(run, "tvv")
    with pytest.raises(UnknownNameError, match="domain 'radio' is not among"):
        Told.of(run, "tv").since(np.array([0]), {"radio": history(run, "film", np.array([0]))})
    bare = replace(run, stages=Models())
    with pytest.raises(
        ConfigError, match=r"film is served by linear.cat_art, whose stages are not"
    ):
        Told.of(bare, "film")
    with pytest.raises(ConfigError, match=r"run keeps no stage 1 of film, .*; fit without --only"):
        Latest.of(bare)
    # what is told of no others needs no stages
    assert Told.of(bare, "noise").latest is None


@pytest.mark.slow
@pytest.mark.parametrize("only", ["linear", "ials_head"])
def test_a_head_by_itself_is_told_too(only):
    run = fit(only, seed=8)
    told, model = Told.of(run, "tv"), run.recommender.domains["tv"]
    everybody = np.arange(len(run.recommender.users))
    assert same(told.scorer(PERSONALISED, everybody, told.latest.told(everybody)), model.scorer)
    rows = np.flatnonzero(known(run, "film"))[:9]
    part = one(told.since(strangers(9), {"film": history(run, "film", rows)}))
    assert part.strategy == CROSS_DOMAIN
    wanted = model.scorer.score(rows)
    found = part.scorer.score(np.arange(9))
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, wanted, strict=True)]
    assert np.mean(alike) > 0.3
