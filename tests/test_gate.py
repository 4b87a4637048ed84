"""A run whose domains are told of others for some users alone, and whose heads know the global
embedding: saved, served, folded in and explained."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from test_recommender import resaved
from test_sources import COLUMNS, NAMES, SETTINGS, tables

from musketeers import config as configuration
from musketeers import scorers
from musketeers.data.interactions import Interactions
from musketeers.errors import ArtifactError
from musketeers.evaluation.evaluate import evaluate
from musketeers.heads import choice
from musketeers.heads.gate import Gated
from musketeers.recommender import Recommender
from musketeers.run_files import open_run
from musketeers.runs import fit_run
from musketeers.sources import Explainer, helped, without
from musketeers.told import PERSONALISED, Told


def first_takes(grouped, *_):
    """Of each domain the users of the first group, whatever validation says."""
    return tuple(
        choice.GroupVerdict(name, 10, 0.1, 0.01, takes=not place)
        for place, name in enumerate(grouped.names)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    for name, frame in tables().items():
        frame.write_parquet(folder / f"{name}.parquet")
    settings = {
        **SETTINGS,
        "choice": {"gate": "domains", "global_embedding": True},
        "data": {**COLUMNS, "domains": {name: f"{name}.parquet" for name in NAMES}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "_by_group", first_takes)
        return fit_run(configuration.parse(settings, "test"), folder, folder / "run", threads=1)


def gate(run, name="tv"):
    scorer = run.recommender.domains[name].scorer
    assert isinstance(scorer, Gated)
    return scorer


def known(run, name="tv"):
    return run.recommender.domains[name].known


def one_of_each(run):
    """An own user of tv who is told of others, and one who is not."""
    rows, takes = np.flatnonzero(known(run)), gate(run).takes
    users = run.recommender.users.values
    return users[int(rows[takes[rows]][0])], users[int(rows[~takes[rows]][0])]


def test_each_user_is_served_by_one_side(run):
    served, model = run.recommender, run.recommender.domains["tv"]
    domains = np.sum([known(run, name) for name in NAMES], axis=0)
    assert (gate(run).takes == ((domains == 1) | ~known(run))).all()
    users = one_of_each(run)
    found = served.recommend("tv", users)
    for side, is_its, is_not in (("told", *users), ("own", *users[::-1])):
        only = replace(model, scorer=getattr(model.scorer, side))
        wanted = replace(served, domains={**served.domains, "tv": only}).recommend("tv", users)
        for user, same in ((is_its, True), (is_not, False)):
            its = pl.col("user_id") == user
            assert found.filter(its).equals(wanted.filter(its)) == same


def test_a_saved_gate_is_the_same_bit_by_bit(run):
    loaded = Recommender.load(run.path / "model")
    for name in NAMES:
        before = scorers.arrays(run.recommender.domains[name].scorer)
        after = scorers.arrays(loaded.domains[name].scorer)
        assert {n: a.tobytes() for n, a in before.items()} == {
            n: a.tobytes() for n, a in after.items()
        }
    again = open_run(run.path)
    assert again.learning.verdicts == run.learning.verdicts
    assert again.learning.verdicts["tv"].transfers
    split = again.splits["tv"]
    found = evaluate(gate(again), split.test, split.seen(), n_threads=1).values["ndcg@10"]
    kind = again.recommender.about["model"]["tv"]
    assert (found == again.metrics[kind]["tv"].values["ndcg@10"]).all()


def test_the_page_says_who_is_told(run):
    page = (run.path / "report.html").read_text()
    assert "Which users of a domain are told of others" in page
    assert "tv, 1 known domains" in page
    assert json.loads((run.path / "metrics.json").read_text())["chosen"]["tv"].startswith("linear")


@pytest.mark.parametrize(
    ("part", "array", "message"),
    [
        ("takes", np.ones(3, np.bool_), "tv: 3 marks of a gate for"),
        ("takes", np.ones(3, np.int8), "'takes' is int8"),
        ("own/inputs_values", np.ones(3, np.float32), "tv: inputs have 3 values"),
        ("told/weights", None, "'tv/told/inputs_columns' is missing, or belongs"),
    ],
)
def test_a_damaged_gate_is_refused(run, tmp_path, part, array, message):
    run.recommender.save(tmp_path / "model")
    with pytest.raises(ArtifactError, match=message):
        Recommender.load(resaved(tmp_path / "model", tensors={f"tv/{part}": array}))


def test_sources_are_explained_for_those_who_are_told(run):
    found = Explainer.of(run, "tv").explain(one_of_each(run))
    assert found["source"].to_list() == ["film", "noise", None]
    # whom tv alone knows nobody tells anything of
    assert found["kept"].to_list()[:2] == [1.0, 1.0]
    assert set(helped(run, "tv")["source"]) == {"film", "noise"}


def test_nothing_hidden_is_what_is_served_and_the_own_side_never_changes(run):
    users = np.flatnonzero(known(run, "film"))
    for sources in ((), ("tv",), ("tv", "noise")):
        less = without(run, "film", *sources).domains["film"].scorer
        assert isinstance(less, Gated)
        for side in ("told", "own"):
            before, after = getattr(gate(run, "film"), side), getattr(less, side)
            same = before.score(users).tobytes() == after.score(users).tobytes()
            assert same == (side == "own" or not sources)


def test_a_hidden_source_leaves_the_global_embedding_too(run):
    """Of a user whom both know, what CAT makes without the source is what the head is told."""
    verdict = run.learning.verdicts["film"].told
    assert verdict.source_weight > 0
    hidden = without(run, "film", "tv").domains["film"].scorer.told
    n_items, dim = len(run.recommender.domains["film"].items), SETTINGS["dim"]
    columns = slice(n_items + 2 * dim, n_items + 3 * dim)
    before, after = (
        model.inputs[:, columns].toarray() for model in (gate(run, "film").told, hidden)
    )
    moved = (before != after).any(axis=1)
    assert (moved == known(run, "tv")).all()
    only_tv = known(run, "tv") & ~known(run, "film") & ~known(run, "noise")
    assert not after[only_tv].any()


def test_new_pairs_are_folded_into_both_sides_and_a_stranger_gets_the_own_one(run):
    served, (first, second) = run.recommender, run.recommender.domains["tv"].items.values[:2]
    users = [*one_of_each(run), "never seen"]
    found = served.fold_in("tv", 2 * users, 3 * [first] + 3 * [second])
    assert set(found["user_id"]) == set(users)
    assert found["strategy"].unique().to_list() == ["personalised"]
    assert not {first, second} & set(found["item_id"])
    own = replace(served.domains["tv"], scorer=gate(run).own)
    alone = replace(served, domains={**served.domains, "tv": own})
    wanted = alone.fold_in("tv", 2 * users, 3 * [first] + 3 * [second])
    same = {
        user: found.filter(pl.col("user_id") == user).equals(
            wanted.filter(pl.col("user_id") == user)
        )
        for user in users
    }
    assert same == dict(zip(users, (False, True, True), strict=True))


def test_known_users_stay_on_their_side_and_who_is_new_is_told_once_others_know(run):
    told, model = Told.of(run, "tv"), run.recommender.domains["tv"]
    everybody = np.arange(len(run.recommender.users))
    made = told.scorer(PERSONALISED, everybody, told.latest.told(everybody))
    before, after = (scorers.arrays(scorer) for scorer in (model.scorer, made))
    # the told side is made anew, of global embeddings too
    assert {n: a.tobytes() for n, a in before.items()} == {n: a.tobytes() for n, a in after.items()}
    rows = np.array([*run.recommender.users.rows(one_of_each(run)), -1, -1])
    film = run.splits["film"].train.of_each(np.flatnonzero(known(run, "film"))[:4])
    here = Interactions.from_pairs(
        np.arange(4), np.arange(4), n_users=4, n_items=model.scorer.n_items
    )
    elsewhere = film.only(film.users() != 3)  # nothing is known of the last
    (part,) = told.since(rows, {"film": elsewhere, "tv": here})
    assert part.strategy == PERSONALISED
    assert part.scorer.takes.tolist() == [True, False, True, False]
    scores = part.scorer.score(np.arange(4))
    (alone,) = told.since(rows, {"tv": here})
    changed = (scores != alone.scorer.score(np.arange(4))).any(axis=1)
    assert changed.tolist() == [True, False, True, False]
