"""Recommender: every strategy by hand and by definition, ids as given, saving, refusals."""

import dataclasses
import datetime as dt
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pytest
from contract import PersonalScorerContract, brute_force
from hypothesis import given, settings

from musketeers import artifacts
from musketeers.data.domains import Domain
from musketeers.data.interactions import Interactions
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from musketeers.ranking import Factors
from musketeers.recommender import STRATEGIES, DomainModel, Recommender
from musketeers.seeding import Seed

# ann has a history in tv and film, bob in tv, cyd in film; dan's only pairs are held out
ANN, BOB, CYD, DAN = range(4)
DATES = [dt.date(2020, 1, 1), dt.date(2021, 1, 1), dt.date(2022, 1, 1)]
ABOUT = {"models": {"tv": "cat_art", "film": "smf"}, "seed": 7, "versions": {"numpy": "2"}}


def table(pairs, *, n_users=4, n_items):
    users, items = np.array(pairs, dtype=int).reshape(-1, 2).T
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def model(ids, users, items, *, train, held=(), n_users=4, transfers=True):
    pairs = table([*train, *held], n_users=n_users, n_items=len(ids))
    factors = Factors(np.array(users, np.float32), np.array(items, np.float32))
    known = table(list(train), n_users=n_users, n_items=len(ids))
    domain = Domain(Vocabulary.of(pl.Series(values=list(ids))), pairs)
    return DomainModel.of(domain, factors, train=known, transfers=transfers)


def tv():
    return model(
        [10, 20, 30, 40],
        [[1, 0], [0, 1], [1, 1], [5, 5]],
        [[1, 4], [2, 3], [3, 2], [3, 1]],
        train=[(ANN, 2), (BOB, 0), (BOB, 1)],
        held=[(ANN, 1), (BOB, 2), (DAN, 1)],
    )


def film():
    return model(DATES, [[1], [0], [2], [0]], [[1], [2], [3]], train=[(ANN, 0), (CYD, 0), (CYD, 2)])


def small(user_ids=("ann", "bob", "cyd", "dan")):
    users = Vocabulary.of(pl.Series(user_ids))
    return Recommender.of(users, {"tv": tv(), "film": film()}, ABOUT)


def rows(frame):
    return list(frame.drop("user_id", "rank").iter_rows())


def test_a_history_here_a_history_elsewhere_and_none_at_all():
    frame = small().recommend("tv", ["cyd", "ann", "zoe", "dan"], k=2)
    assert frame.schema == pl.Schema(
        {
            "user_id": pl.String,
            "rank": pl.Int32,
            "item_id": pl.Int64,
            "score": pl.Float64,
            "strategy": pl.Enum(STRATEGIES),
        }
    )
    # all equal for cyd, so the first rows; 30 and the held-out 20 are ann's already; 20 is dan's
    assert list(frame.iter_rows()) == [
        ("cyd", 1, 10, 5.0, "cross_domain"),
        ("cyd", 2, 20, 5.0, "cross_domain"),
        ("ann", 1, 40, 3.0, "personalised"),
        ("ann", 2, 10, 1.0, "personalised"),
        ("zoe", 1, 20, 3.0, "popular"),
        ("zoe", 2, 30, 2.0, "popular"),
        ("dan", 1, 30, 2.0, "popular"),
        ("dan", 2, 10, 1.0, "popular"),
    ]


def test_seen_items_come_back_when_asked_for():
    frame = small().recommend("tv", ["ann", "dan"], k=1, exclude_seen=False)
    assert rows(frame) == [(30, 3.0, "personalised"), (20, 3.0, "popular")]


def test_fewer_unseen_items_than_k_give_fewer_rows():
    frame = small().recommend("film", ["cyd", "ann", "bob"], k=10**9)
    assert frame["user_id"].to_list() == ["cyd", "ann", "ann", "bob", "bob", "bob"]
    assert frame["rank"].to_list() == [1, 1, 2, 1, 2, 3]
    assert frame["item_id"].to_list() == [DATES[1], *DATES[:0:-1], *DATES]
    everything = model(["x"], [[1]] * 4, [[1]], train=[(ANN, 0)])
    full = Recommender.of(small().users, {"one": everything}, {})
    assert full.recommend("one", ["ann"]).is_empty()


def test_a_repeated_id_is_answered_each_time():
    frame = small().recommend("tv", ["bob", "zoe", "bob", "zoe"], k=1)
    assert frame["user_id"].to_list() == ["bob", "zoe", "bob", "zoe"]
    assert rows(frame[:2]) == rows(frame[2:])


@pytest.mark.parametrize(
    ("fitted", "asked", "dtype"),
    [
        ("abcd", ["a", "b", "c", "d", "e"], pl.String),
        ("abcd", pd.Series(["a", "b", "c", "d", "e"], dtype="category"), pl.String),
        ([1, 2, 3, 4], [1, 2, 3, 4, 5], pl.Int64),
        ([1, 2, 3, 4], np.arange(1, 6, dtype=np.uint16), pl.UInt16),
        ([1, 2, 3, 4], ["1", "2", "3", "4", "04"], pl.String),
        (["1", "2", "3", "4"], [1, 2, 3, 4, 5], pl.Int64),
        ([b"a", b"b", b"c", b"d"], [b"a", b"b", b"c", b"d", b"e"], pl.Binary),
        (pl.date_range(DATES[0], dt.date(2020, 1, 4), eager=True),
         pl.date_range(DATES[0], dt.date(2020, 1, 5), eager=True), pl.Date),
    ],
)  # fmt: skip
def test_users_are_named_in_the_type_that_was_asked(fitted, asked, dtype):
    frame = small(list(fitted)).recommend("tv", asked, k=1)
    assert frame["user_id"].dtype == dtype
    assert frame["user_id"].to_list() == list(asked)
    assert rows(frame) == rows(small().recommend("tv", ["ann", "bob", "cyd", "dan", "?"], k=1))


@pytest.mark.parametrize(
    ("nobody", "dtype"),
    [
        ([], pl.Int64),
        (np.array([]), pl.Int64),
        (pl.Series([], dtype=pl.UInt8), pl.UInt8),
        (pl.Series([], dtype=pl.String), pl.String),
    ],
)
def test_nobody_asked_gives_an_empty_frame_of_the_same_columns(nobody, dtype):
    numbered = small([1, 2, 3, 4])
    frame = numbered.recommend("film", nobody)
    assert frame.is_empty()
    assert frame.schema == numbered.recommend("film", [1]).schema | {"user_id": dtype}


def drawn(n_users, sizes, *, entropy, dim=3, share=0.3):
    """Domains with small whole numbers as factors, so that many scores are equal."""
    domains = {}
    for name, n_items in sizes.items():
        make = Seed(entropy).child(name).numpy()
        purpose = make.random((n_users, n_items))
        purpose[n_users // 2 :: 2] = 1
        train, held = np.argwhere(purpose < share / 2), np.argwhere(abs(purpose - share) < 0.1)
        domains[name] = model(
            [f"{name}{i:04}" for i in range(n_items)],
            np.rint(make.standard_normal((n_users, dim))),
            np.rint(make.standard_normal((n_items, dim))),
            train=train,
            held=held,
            n_users=n_users,
        )
    return Recommender.of(Vocabulary.of(pl.Series(range(n_users))), domains, {})


def expected(recommender, name, asked, *, k, exclude_seen):
    """The definition, one user after the other."""
    domain, lines = recommender.domains[name], []
    for user in asked:
        fitted = user < len(recommender.users)
        known = {n for n, d in recommender.domains.items() if fitted and d.known[user]}
        strategy = STRATEGIES[0 if name in known else 1 if known else 2]
        scorer = domain.popularity if strategy == "popular" else domain.scorer
        row = np.array([user if fitted else 0])
        seen = domain.seen if exclude_seen and fitted else None
        items, scores = brute_force(scorer, row, k=k, seen=seen)
        lines += [
            (user, rank + 1, domain.items.values[int(item)], scores[0, rank], strategy)
            for rank, item in enumerate(items[0])
            if item >= 0
        ]
    return lines


@given(
    asked=st.lists(st.integers(0, 9), max_size=12),
    k=st.integers(1, 12),
    exclude_seen=st.booleans(),
    n_threads=st.integers(1, 3),
    entropy=st.integers(0, 50),
)
@settings(deadline=None, max_examples=60)
def test_matches_the_definition(asked, k, exclude_seen, n_threads, entropy):
    recommender = drawn(8, {"a": 7, "b": 10, "c": 2}, entropy=entropy)
    for name in recommender.domains:
        frame = recommender.recommend(
            name, asked, k, exclude_seen=exclude_seen, n_threads=n_threads
        )
        wanted = expected(recommender, name, asked, k=k, exclude_seen=exclude_seen)
        assert list(frame.iter_rows()) == wanted


def test_the_definition_meets_every_strategy():
    frame = drawn(8, {"a": 7, "b": 10, "c": 2}, entropy=1).recommend("a", range(10))
    assert set(frame["strategy"]) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("tvv", "domain 'tvv' is not among 'tv', 'film'; did you mean 'tv'?"),
        ("books", "domain 'books' is not among 'tv', 'film'; name one of those"),
        (["tv"], r"domain \['tv'\] is not among"),
    ],
)
def test_an_unknown_domain_is_refused_with_those_there_are(domain, message):
    with pytest.raises(UnknownNameError, match=message):
        small().recommend(domain, ["ann"])


@pytest.mark.parametrize("bad", [True, 2.0, "3", None])
def test_counts_must_be_integers(bad):
    with pytest.raises(ConfigError, match=r"k is .*, no integer; give one of at least 1"):
        small().recommend("tv", ["ann"], k=bad)


def test_counts_must_be_positive():
    with pytest.raises(ConfigError, match="k is 0; give at least 1"):
        small().recommend("tv", ["ann"], k=0)
    with pytest.raises(ConfigError, match="n_threads is -1; give at least 1"):
        small().recommend("tv", ["ann"], n_threads=-1)
    assert len(small().recommend("tv", ["bob"], k=np.int64(1), n_threads=np.int64(2))) == 1


@pytest.mark.parametrize(
    ("user_ids", "message"),
    [
        ("ann", "of type str, no column of ids of one type; give a list or array, also for a"),
        (b"ann", "of type bytes, no column"),
        (7, "of type int, no column"),
        (None, "of type NoneType, no column"),
        (["ann", 7], "of type list, no column of ids of one type"),
        (np.array(["ann", 7], dtype=object), "of type ndarray, no column"),
        (["ann", None], r"user_ids: 1 of 2 ids are missing .* the first in row 2"),
        ([None], "user_ids: 1 of 1 ids are missing"),
        (["ann", " "], "1 of 2 ids are missing"),
        ([1.0, float("nan")], "1 of 2 ids are missing"),
        ([1.5], "user_ids: ids are Float64; use integers"),
        ([["ann"]], r"user_ids: ids are List\(String\)"),
        ([object()], "user_ids: ids are Object"),
        (["a" * 300], "has 300 bytes, more than 256"),
    ],
)
def test_what_are_no_ids_is_refused(user_ids, message):
    with pytest.raises(DataError, match=message):
        small().recommend("tv", user_ids)


def test_ids_that_nobody_here_can_have_are_refused():
    numbered = small([1, 2, 3, 4])
    with pytest.raises(DataError, match="user_ids are dates, those of this model integers; conv"):
        numbered.recommend("tv", DATES)
    with pytest.raises(DataError, match="user_ids are booleans, those of this model integers"):
        numbered.recommend("tv", [True, False])


def test_parts_that_disagree_are_refused():
    users, good = small().users, tv()
    five = Vocabulary.of(pl.Series([1, 2, 3, 4, 5]))
    short = Factors(good.scorer.users[:3], good.scorer.items)
    domain = Domain(good.items, good.seen)
    refused = {
        "0 domains and 4 users, one of each is needed": (users, {}),
        "1 domains and 0 users": (Vocabulary.of(pl.Series([], dtype=pl.Int64)), {"tv": good}),
        r"'\.\./tv' is no domain name": (users, {"../tv": good}),
        "domain tv: 4 user vectors for 5 users; take all parts": (five, {"tv": good}),
        "domain tv: 3 user vectors for 4 users": (
            users, {"tv": DomainModel.of(domain, short, train=good.seen, transfers=True)},
        ),
        "5 marks of known users for 4 users": (
            users,
            {"tv": DomainModel.of(
                domain, good.scorer, train=table([], n_users=5, n_items=4), transfers=True
            )},
        ),
        "4 item vectors for 5 items": (
            users, {"tv": DomainModel.of(
                Domain(five, good.seen), good.scorer, train=good.seen, transfers=True
            )},
        ),
    }  # fmt: skip
    for message, (vocabulary, domains) in refused.items():
        with pytest.raises(DataError, match=message):
            Recommender.of(vocabulary, domains, {})


@pytest.mark.parametrize(
    "user_ids", [("ann", "bob", "cyd", "dan"), (1, 2, 3, 4), (*DATES, dt.date.max)]
)
def test_what_is_saved_comes_back(tmp_path, user_ids):
    saved = small(user_ids)
    saved.save(tmp_path / "model")
    found = Recommender.load(str(tmp_path / "model"))
    assert found.about == ABOUT
    assert list(found.domains) == ["tv", "film"]
    assert found.users.values.to_list() == list(user_ids)
    assert found.users.values.dtype == saved.users.values.dtype
    for name, domain in saved.domains.items():
        again = found.domains[name]
        assert again.items.values.equals(domain.items.values, check_dtypes=True)
        for one, other in (
            (domain.scorer.users, again.scorer.users),
            (domain.scorer.items, again.scorer.items),
            (domain.popularity.items, again.popularity.items),
            (domain.seen.indptr, again.seen.indptr),
            (domain.seen.items, again.seen.items),
            (domain.known, again.known),
        ):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        answers = [r.recommend(name, list(user_ids)) for r in (saved, found)]
        assert answers[0].equals(answers[1])


def test_nothing_is_overwritten(tmp_path):
    small().save(tmp_path / "model")
    with pytest.raises(ArtifactError, match="model: already exists"):
        small().save(tmp_path / "model")


def test_a_description_that_is_not_plain_is_refused(tmp_path):
    odd = Recommender.of(small().users, {"tv": tv()}, {"when": DATES[0]})
    with pytest.raises(ArtifactError, match="cannot be written as JSON"):
        odd.save(tmp_path / "model")


class TestLoadedFactors(PersonalScorerContract):
    """What was loaded scores as what was saved."""

    def fit(self, train):
        likes = np.zeros((train.n_users, train.n_items), dtype=np.float32)
        likes[train.users(), train.items] = 1
        ids = Vocabulary.of(pl.Series(range(train.n_users)))
        factors = Factors(likes, (likes.T @ likes).T.copy())
        domain = DomainModel.of(Domain(ids, train), factors, train=train, transfers=True)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            Recommender.of(ids, {"camps": domain}, {}).save(place)
            return Recommender.load(place).domains["camps"].scorer


def resaved(folder, *, kind="recommender", about=None, tensors=None, files=None):
    """The artifact with some parts replaced, and sums that agree; a part of None is left out."""
    found = artifacts.load(folder, "recommender")
    other = folder.with_name(uuid.uuid4().hex)
    parts = found.tensors | (tensors or {})
    artifacts.save(
        other,
        kind,
        {name: array for name, array in parts.items() if array is not None},
        found.about | (about or {}),
        files=found.files | (files or {}),
        durable=False,
    )
    return other


def ids_file(ids):
    return Vocabulary.of(pl.Series(values=list(ids))).to_bytes()


def pairs_of(rows):
    return np.array(rows, dtype=np.int32)


SEEN = [1, 2, 0, 1, 2, 1]  # tv: the ends of the rows are 0 2 5 5 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "smf"}, "holds 'smf' where 'recommender' is needed"),
        ({"about": {"domains": "tv"}}, "'domains' is no list of names; save the model again"),
        ({"about": {"domains": [1]}}, "'domains' is no list of names"),
        ({"about": {"domains": ["tv", "film", "tv"]}}, "'domains' repeats a name"),
        ({"about": {"domains": ["tv"]}}, "'film/items' is missing, or belongs to no domain"),
        ({"about": {"about": []}}, "'about' is no mapping"),
        ({"tensors": {"tv/users": None}}, "'tv/users' is missing"),
        ({"tensors": {"more": np.ones(1)}}, "'more' is missing, or belongs"),
        ({"files": {"more": b""}}, "'more' is missing, or belongs"),
        ({"files": {"users.parquet": b"PAR1"}}, r"users\.parquet: the vocabulary is no Parquet"),
        ({"files": {"users.parquet": ids_file("abc")}}, "tv: 4 user vectors for 3 users"),
        ({"files": {"items-tv.parquet": ids_file([1, 2, 3, 4, 5])}}, "4 item vectors for 5 items"),
        ({"files": {"items-tv.parquet": ids_file([1])}}, r"span rows 0\.\.2, outside 0\.\.0"),
        ({"tensors": {"tv/users": np.ones((3, 2), np.float32)}}, "3 user vectors for 4 users"),
        ({"tensors": {"tv/users": np.ones((4, 3), np.float32)}}, "3 dimensions, item vectors 2"),
        ({"tensors": {"tv/users": np.ones(4, np.float32)}}, "'users' is float32 with 1 axes, not"),
        ({"tensors": {"tv/items": np.ones((4, 2))}}, "'items' is float64 with 2 axes, not float32"),
        ({"tensors": {"tv/known": np.ones(4, np.int8)}}, "'known' is int8 with 1 axes, not bool"),
        ({"tensors": {"tv/known": np.ones(3, bool)}}, "3 marks of known users for 4 users"),
        ({"tensors": {"tv/seen_items": pairs_of([1, 4, 0, 1, 2, 1])}}, r"span rows 0\.\.4, out"),
        ({"tensors": {"tv/seen_items": pairs_of([-1, 2, 0, 1, 2, 1])}}, r"span rows -1\.\.2"),
        ({"tensors": {"tv/seen_items": pairs_of([1, 2, 0, 2, 1, 1])}}, "of row 1 do not asc"),
        ({"tensors": {"tv/seen_items": pairs_of([1, 1, 0, 1, 2, 1])}}, "of row 0 do not asc"),
        ({"tensors": {"tv/seen_items": pairs_of(SEEN[:5])}}, "are 5 pairs that the ends of the"),
        ({"tensors": {"tv/seen_indptr": np.array([1, 2, 5, 5, 6])}}, "6 pairs that the ends"),
        ({"tensors": {"tv/seen_indptr": np.array([0, 5, 2, 5, 6])}}, "6 pairs that the ends"),
        ({"tensors": {"tv/seen_indptr": np.array([0, 2**63 - 1, -5, 5, 6])}}, "6 pairs that the"),
        ({"tensors": {"tv/seen_indptr": np.array([], dtype=int)}}, "6 pairs that the ends"),
        ({"tensors": {"tv/seen_indptr": np.array([0, 2, 5, 6])}}, "3 rows of seen items for 4"),
    ],
)  # fmt: skip
def test_parts_that_make_no_whole_are_not_loaded(tmp_path, changes, message):
    small().save(tmp_path / "model")
    np.testing.assert_array_equal(small().domains["tv"].seen.items, SEEN)
    other = resaved(tmp_path / "model", **changes)
    with pytest.raises(ArtifactError, match=message):
        Recommender.load(other)


def test_names_that_lead_elsewhere_are_not_loaded(tmp_path):
    small().save(tmp_path / "model")
    found = artifacts.load(tmp_path / "model", "recommender")
    tensors = {n.replace("tv/", "con/"): a for n, a in found.tensors.items()}
    files = {n.replace("items-tv", "items-con"): data for n, data in found.files.items()}
    about = found.about | {"domains": ["con", "film"]}
    artifacts.save(tmp_path / "other", "recommender", tensors, about, files=files)
    with pytest.raises(ArtifactError, match="'con' is no domain name"):
        Recommender.load(tmp_path / "other")


@pytest.fixture(scope="module")
def of_three_users(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "model"
    whole = model("abc", [[1]] * 3, [[1]] * 3, train=[], n_users=3)
    Recommender.of(Vocabulary.of(pl.Series([1, 2, 3])), {"x": whole}, {}).save(folder)
    return folder


@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=3).map(sorted)
    | st.lists(st.integers(-1, 4), max_size=4),
    st.lists(st.integers(0, 2), max_size=4) | st.lists(st.integers(-1, 3), max_size=4),
)
@settings(deadline=None, max_examples=100)
def test_only_rows_that_keep_the_rules_of_interactions_are_loaded(of_three_users, ends, items):
    indptr = np.array([0, *ends])
    changed = {"x/seen_indptr": indptr, "x/seen_items": pairs_of(items)}
    other = resaved(of_three_users, tensors=changed)
    parts = [items[start:end] for start, end in pairwise(indptr)]
    divides = len(parts) == 3 and sorted(indptr) == indptr.tolist() and ends[-1] == len(items)
    if divides and all(part == sorted(set(part) & {0, 1, 2}) for part in parts):
        seen = Recommender.load(other).domains["x"].seen
        assert [seen.of(user).tolist() for user in range(3)] == parts
    else:
        with pytest.raises(ArtifactError, match="seen items"):
            Recommender.load(other)


ELSEWHERE = """
import hashlib, sys
from musketeers.recommender import Recommender
loaded = Recommender.load(sys.argv[1])
frame = loaded.recommend("a", range(70), k=20, n_threads=3)
print(hashlib.sha256(repr(list(frame.iter_rows())).encode()).hexdigest())
assert "torch" not in sys.modules
"""


def test_another_machine_gives_the_same_bits(tmp_path):
    """Other vector instructions and thread counts, which change the fast matrix product."""
    make = Seed(3).numpy()
    real = drawn(60, {"a": 900, "b": 30}, entropy=3, dim=48)
    for domain in real.domains.values():  # no ties, but sums that depend on their order
        domain.scorer.users[:] = make.standard_normal(domain.scorer.users.shape)
        domain.scorer.items[:] = make.standard_normal(domain.scorer.items.shape)
    real.save(tmp_path / "model")
    here = repr(list(real.recommend("a", range(70), k=20, n_threads=1).iter_rows()))
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    elsewhere = {"OPENBLAS_NUM_THREADS": "2", "NPY_DISABLE_CPU_FEATURES": ",".join(simd["found"])}
    if platform.machine() == "x86_64":
        elsewhere |= {"OPENBLAS_CORETYPE": "Prescott"}
    there = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "model")],
        env=os.environ | elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_a_saved_model_is_plain_files(tmp_path):
    small().save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "items-film.parquet", "items-tv.parquet", "manifest.json", "tensors.safetensors",
        "users.parquet",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["kind"] == "recommender"
    assert manifest["about"] == {"domains": ["tv", "film"], "about": ABOUT}


def test_a_model_without_transfer_calls_nobody_cross_domain():
    here = [[1, 0], [0, 1], [1, 1], [5, 5]]
    for transfers, expected in ((True, "cross_domain"), (False, "popular")):
        parts = {
            "tv": model([1, 2], here, [[1, 0], [0, 1]], train=[(0, 0)], transfers=transfers),
            "film": model([1, 2], here, [[1, 0], [0, 1]], train=[(1, 0)], transfers=transfers),
        }
        users = Vocabulary.of(pl.Series(["ann", "bob", "cat", "dan"]))
        answer = Recommender.of(users, parts, {}).recommend("tv", ["bob"], k=1)
        assert answer["strategy"].to_list() == [expected]


def with_cold():
    """As `small`, but that tv scores who is known elsewhere alone by other vectors."""
    vectors = Factors(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[::-1].copy())
    new = dataclasses.replace(tv(), transfers=False, cold=vectors)
    return Recommender.of(small().users, {"tv": new, "film": film()}, ABOUT)


def test_cold_users_have_a_scorer_of_their_own(tmp_path):
    users = ["ann", "bob", "cyd", "dan", "zoe"]
    found, without = (r.recommend("tv", users, k=2) for r in (with_cold(), small()))
    assert rows(found.filter(user_id="cyd")) == [
        (20, 1.0, "cross_domain"), (10, 0.0, "cross_domain"),
    ]  # fmt: skip
    others = pl.col("user_id") != "cyd"
    assert found.filter(others).equals(without.filter(others))
    with_cold().save(tmp_path / "model")
    again = Recommender.load(tmp_path / "model")
    assert again.recommend("tv", users, k=2).equals(found)
    assert again.domains["film"].cold is None


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("users", None, "'tv/cold/users' is missing"),
        ("items", np.ones((4, 4)), "'cold/items' is float64 with 2 axes, not float32"),
        ("items", np.ones((3, 4), np.float32), "tv: 3 item vectors for 4 items"),
        ("users", np.ones((3, 4), np.float32), "tv: 3 user vectors for 4 users"),
    ],
)
def test_damaged_vectors_of_cold_users_are_refused(tmp_path, name, array, message):
    with_cold().save(tmp_path / "model")
    with pytest.raises(ArtifactError, match=message):
        Recommender.load(resaved(tmp_path / "model", tensors={f"tv/cold/{name}": array}))
