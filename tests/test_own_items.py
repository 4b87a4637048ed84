"""Which of a user's own items moved the list, where it is known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array
from test_sources import COLUMNS, SETTINGS, fit

import musketeers
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError, DataError, UnknownNameError
from musketeers.heads.fold_in import Folding
from musketeers.heads.gate import Gated
from musketeers.own_items import OwnItems
from musketeers.ranking import Factors, top_k


@pytest.fixture(scope="module")
def run():
    """tv is served a linear head with CAT-ART, film a linear head, noise its own EASE with SMF."""
    return fit()


def tastes(n_users=300, seed=0):
    """Two tastes of twenty items each: most users have one, ``torn`` much of a and one of b."""
    make = np.random.default_rng(seed)
    rows = [
        (f"u{user:03}", f"{'ab'[user % 2]}{item:02}")
        for user in range(n_users)
        for item in make.choice(20, 8, replace=False)
    ]
    rows += [("torn", f"a{item:02}") for item in range(6)] + [("torn", "b03")]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


@pytest.fixture(scope="module", params=["ease", "smf"])
def alone(request):
    """One domain served by a linear model, or by vectors."""
    return musketeers.fit(
        {"shop": tastes()}, threads=1, only=request.param, data=COLUMNS, **SETTINGS
    )


def of_taste(items, taste):
    return sum(item.startswith(taste) for item in items)


def test_leaving_out_the_only_item_of_a_taste_takes_that_taste_from_the_list(alone):
    """Of the many of the other taste each changes little."""
    trained = learned(alone, "torn")
    found = OwnItems.of(alone, "shop").explain(["torn"], k=20)
    assert sorted(found["item_id"]) == sorted(trained)
    rows = {row["item_id"]: row for row in found.to_dicts()}
    assert "b03" in rows  # in training, by this seed
    lone = rows.pop("b03")
    moved = of_taste(lone["leaves"], "b") - of_taste(lone["enters"], "b")
    assert moved > 0
    assert lone["kept"] < min(row["kept"] for row in rows.values())
    assert found["item_id"][0] == "b03"  # what moved most stands first
    # nothing of what the user has comes in
    seen = set(tastes().filter(user_id="torn")["item_id"])
    assert not any(seen & set(row["enters"]) for row in found.to_dicts())


def learned(run, user, domain="shop"):
    row = int(run.recommender.users.rows([user])[0])
    return run.recommender.domains[domain].items.ids(run.splits[domain].train.of(row)).to_list()


def lists_of(scorer, run, domain, row, n, k=10):
    seen = run.recommender.domains[domain].seen.of_each(np.full(n, row))
    return top_k(scorer, np.arange(n), k=k, seen=seen, n_threads=1).items


def test_in_a_linear_model_an_item_left_out_is_an_input_of_0(run):
    """film's head has vectors of others beside what the user did; these stay."""
    model, train = run.recommender.domains["film"], run.splits["film"].train
    found = OwnItems.of(run, "film").explain(run.recommender.users.values[:30])
    for row in range(30):
        items = train.of(row)
        mine = found.filter(user_id=run.recommender.users.values[row])
        if not len(items):
            assert mine["item_id"].to_list() == [None]
            continue
        inputs = np.tile(model.scorer.inputs[[row]].toarray(), (len(items) + 1, 1))
        inputs[np.arange(len(items)), items] = 0
        less = lists_of(
            replace(model.scorer, inputs=csr_array(inputs)), run, "film", row, len(inputs)
        )
        whole = less[-1]
        names = model.items.ids
        for place, item in enumerate(items):
            (one,) = mine.filter(item_id=names(items[[place]])[0]).to_dicts()
            assert one["leaves"] == names(whole[~np.isin(whole, less[place])]).to_list()
            assert one["enters"] == names(less[place][~np.isin(less[place], whole)]).to_list()
            assert one["kept"] == pytest.approx(np.isin(whole, less[place]).mean())
            assert item not in less[place]
    assert found["kept"].min() < 1


def test_a_vector_that_was_folded_in_changes_as_if_the_item_had_not_been_there(alone):
    """Which is exact, whatever its length: users are ranked as by the vectors without it."""
    train, model = alone.splits["shop"].train, alone.recommender.domains["shop"]
    make = np.random.default_rng(1)
    items = make.standard_normal((train.n_items, 5)).astype(np.float32)
    users = make.standard_normal((train.n_users, 5)).astype(np.float32)
    folding = Folding.of(Factors(users, items), seen=model.seen, known=model.known)
    users = 3 * folding.told(np.full(train.n_users, -1), train).users
    served = replace(
        alone.recommender, domains={"shop": replace(model, scorer=Factors(users, items))}
    )
    mine = train.of(4)
    pairs = [(place, item) for place, left in enumerate(mine) for item in mine if item != left]
    places, kept = np.array(pairs).T
    given = Interactions.from_pairs(places, kept, n_users=len(mine), n_items=train.n_items)
    folding = Folding.of(Factors(users, items), seen=model.seen, known=model.known)
    wanted = lists_of(folding.told(np.full(len(mine), -1), given), alone, "shop", 4, len(mine))
    found = OwnItems.of(replace(alone, recommender=served), "shop").explain(
        alone.recommender.users.values[4:5]
    )
    whole = served.ranked("shop", np.array([4]), 10)[0].items[0]
    for place, item in enumerate(model.items.ids(mine)):
        (one,) = found.filter(item_id=item).to_dicts()
        gone = whole[~np.isin(whole, wanted[place])]
        assert one["leaves"] == model.items.ids(gone).to_list()
    assert found["kept"].min() < 1


@pytest.mark.parametrize(("domain", "second"), [("tv", "transferred"), ("noise", "alone")])
def test_in_a_blend_both_models_change(run, domain, second):
    train, model = run.splits[domain].train, run.recommender.domains[domain]
    row = int(np.argmax(train.counts()))
    mine, chosen = train.of(row), run.learning.verdicts[domain].chosen
    (side,) = OwnItems.of(run, domain).sides
    found = side.without_each(row, mine, mine[:2]).inputs.toarray()
    wanted = np.tile(model.scorer.inputs[[row]].toarray(), (2, 1))
    wanted[[0, 1], mine[:2]] = 0
    dim = SETTINGS["dim"]
    assert (found[:, :-dim] == wanted[:, :-dim]).all()
    # the definition, of the second model's vector
    factors = getattr(run.stages, second)[domain].factors
    folding = Folding.of(factors, seen=model.seen, known=model.known)
    whole, *less = (
        folding.told(np.array([-1]), history_of(train, row, without)).users[0]
        for without in (None, *mine[:2])
    )
    length = np.linalg.norm(factors.users[row]) / np.linalg.norm(whole)
    for place, one in enumerate(less):
        vector = factors.users[row] + length * (one - whole)
        np.testing.assert_allclose(found[place, -dim:], chosen.weight * vector, rtol=1e-4)
        assert np.abs(found[place, -dim:] / wanted[place, -dim:] - 1).max() > 0.01


def history_of(train, row, without):
    items = np.array([item for item in train.of(row) if item != without])
    users = np.zeros(len(items), int)
    return Interactions.from_pairs(users, items, n_users=1, n_items=train.n_items)


def test_behind_a_gate_the_side_changes_that_serves_the_user(run):
    """Made of two models that serve domains by themselves."""
    model, rows = run.recommender.domains["film"], np.arange(40)
    own = Factors(*(getattr(run.stages.alone["film"].factors, part) for part in ("users", "items")))
    takes = np.arange(len(run.recommender.users)) % 2 == 0
    found = {}
    for name, scorer in (
        ("gated", Gated(model.scorer, own, takes)), ("told", model.scorer), ("own", own),
    ):  # fmt: skip
        domains = {**run.recommender.domains, "film": replace(model, scorer=scorer)}
        changed = replace(run, recommender=replace(run.recommender, domains=domains))
        found[name] = OwnItems.of(changed, "film").explain(run.recommender.users.values[rows])
    for row in rows:
        user = run.recommender.users.values[int(row)]
        its = "told" if takes[row] else "own"
        assert found["gated"].filter(user_id=user).equals(found[its].filter(user_id=user))
    assert not found["told"].equals(found["own"])


def test_of_many_items_the_rarest_are_left_out(alone):
    model, train = alone.recommender.domains["shop"], alone.splits["shop"].train
    mine, counts = train.of(7), train.item_counts()
    user = alone.recommender.users.values[7:8]
    found = OwnItems.of(alone, "shop").explain(user, most=3)
    rarest = sorted(mine.tolist(), key=lambda item: counts[item])[:3]
    assert sorted(found["item_id"]) == sorted(model.items.ids(np.array(rarest)))
    everything = OwnItems.of(alone, "shop").explain(user)
    assert len(everything) == len(mine)
    assert everything["kept"].is_sorted()


def test_a_users_rows_do_not_depend_on_who_else_is_asked_for(run):
    own, users = OwnItems.of(run, "tv"), run.recommender.users.values[[9, 4, 9, 30]]
    found = own.explain(users, k=5)
    assert found["user_id"].unique(maintain_order=True).to_list() == users[[0, 1, 3]].to_list()
    assert own.explain(users[1:2], k=5).equals(found.filter(user_id=users[1]))
    assert own.explain([]).is_empty()
    assert own.explain([]).schema == found.schema


def test_requests_that_cannot_be_answered(run):
    with pytest.raises(UnknownNameError, match="domain 'tvv' is not among"):
        OwnItems.of(run, "tvv")
    own = OwnItems.of(run, "tv")
    with pytest.raises(UnknownNameError, match="user 'nobody' is in no domain of this run; check"):
        own.explain(["nobody"])
    with pytest.raises(DataError, match="of type str, no column of ids"):
        own.explain("user-001")
    for wrong, line in (
        ({"k": 0}, "k is 0; give at least 1"),
        ({"most": 0}, "most is 0; leave out"),
    ):
        with pytest.raises(ConfigError, match=line):
            own.explain(run.recommender.users.values[:1], **wrong)
    bare = replace(run, stages=replace(run.stages, transferred={}))
    with pytest.raises(ConfigError, match=r"tv is served by linear.cat_art, whose stages are not"):
        OwnItems.of(bare, "tv")
