"""Ids of every type, there and back: in bodies, in addresses and in answers."""

from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import in_thread, made, pairs, path_of, problem, version

from musketeers.data.pseudonyms import Secret
from musketeers.data.vocabulary import Vocabulary
from musketeers.serving.ids import Ids

ODD = [
    "a/b", "100%", "%2F", "a b", " a ", "ü", "日本", "😀", '"quoted"', "it's", "a\\b", "a?b=c&d",
    "#x", "a+b", "..", ".", "a/../b", "/", "//", "/recommend", "similar", "a/similar", "nul\0",
    "new\nline", "tab\t", "\x7f", "é", "e\u0301", "1e5", "007", "-0", "null", "true", "{}",
    "x" * 256, "\u202e",
]  # fmt: skip
TYPES = {
    "integers": pl.Series([-(2**63), -7, 0, 5, 2**53 + 1, 2**63 - 1]),
    "large integers": pl.Series([0, 2**53 + 1, 2**63, 2**64 - 1], dtype=pl.UInt64),
    "small integers": pl.Series([-128, -1, 0, 127], dtype=pl.Int8),
    "text": pl.Series(ODD),
    "bytes that are text": pl.Series([one.encode() for one in ODD]),
    "bytes": pl.Series([b"\xff\xfe", b"a", b"/", b"\0", "ü".encode()]),
    "dates": pl.Series([date(1, 1, 1), date(1969, 12, 31), date(2026, 11, 28)]),
    "booleans": pl.Series([True, False]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_written_finds_the_same(kind):
    vocabulary = Vocabulary.of(TYPES[kind])
    ids = Ids.of(vocabulary)
    rows = np.arange(len(vocabulary))
    written = ids.ids(rows)
    assert ids.rows(written).tolist() == rows.tolist()
    assert ids.rows([str(one) for one in written]).tolist() == rows.tolist()
    assert len(set(map(str, written))) == len(rows)
    assert [ids.as_written(str(one)) for one in written] == written
    if kind.endswith("integers"):
        assert written == vocabulary.values.to_list()
    else:
        assert {type(one) for one in written} == {str}
    for unknown in ("no", "", "+5", "5.0", " 5", "05", "\u0665", 2**70, -(2**70), 3):
        assert ids.rows([unknown]).tolist() == [-1]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True)
    | st.lists(st.text(min_size=1).filter(str.strip), min_size=1, unique=True)
    | st.lists(st.binary(min_size=1), min_size=1, unique=True),
)
def test_any_ids_there_and_back(values):
    vocabulary = Vocabulary.of(pl.Series(values))
    ids, rows = Ids.of(vocabulary), np.arange(len(vocabulary))
    written = ids.ids(rows)
    assert ids.rows(written).tolist() == ids.rows(list(map(str, written))).tolist() == rows.tolist()


def sendable(written):
    """Whether an address can have it: dots alone mean another address to every client, and no
    route takes a line's end."""
    return written not in (".", "..", "new\nline")


@pytest.mark.parametrize("kind", TYPES)
def test_ids_in_bodies_addresses_and_answers(kind, tmp_path):
    """Users and items are of that type."""
    made(3, names=("tv", "movie"), users=TYPES[kind], items=TYPES[kind]).save(tmp_path / "model")
    with in_thread(tmp_path / "model") as server, server.client() as client:
        found = server.service.versions.current
        users = found.users.ids(np.arange(len(found.users)))
        options = {"k": 5, "exclude_seen": False}
        answer = client.post(
            "/v1/domains/tv/recommend:batch", json={"user_ids": users, **options}
        ).json()
        assert [one["user_id"] for one in answer["results"]] == users
        frame = found.recommender.recommend(
            "tv", found.recommender.users.values, 5, exclude_seen=False, n_threads=1
        )
        for row, (user, one) in enumerate(zip(users, answer["results"], strict=True)):
            mine = frame.filter(pl.col("user_id") == found.recommender.users.values[row])
            items = found.items["tv"].ids(
                found.recommender.domains["tv"].items.rows(mine["item_id"])
            )
            assert [item for item, _ in pairs(one)] == items
            for form in {user, str(user)}:
                again = client.post("/v1/domains/tv/recommend", json={"user_id": form, **options})
                assert (again.json()["user_id"], pairs(again.json())) == (user, pairs(one))
            if sendable(user):
                path = path_of("/v1/domains/tv/users/{}/recommend?k=5&exclude_seen=false", user)
                assert pairs(client.get(path).json()) == pairs(one)
        check_items(client, found.items["tv"])


def check_items(client, ids):
    """Items of an answer, sent back in each way."""
    everything = ids.ids(np.arange(len(ids)))
    for item in everything:
        wish = {"user_id": "nobody", "allow_ids": [str(item)], "k": 3}
        found = client.post("/v1/domains/tv/recommend", json=wish).json()
        assert [one["id"] for one in found["items"]] == [item]
        wish = {"user_id": "nobody", "exclude_ids": [item], "k": 500}
        found = client.post("/v1/domains/tv/recommend", json=wish).json()
        assert {one["id"] for one in found["items"]} == {*everything} - {item}
        told = {"user_id": "nobody", "recent": {"tv": [item]}, "k": 500}
        found = client.post("/v1/domains/tv/recommend", json=told).json()
        assert {one["id"] for one in found["items"]} == {*everything} - {item}
        if sendable(item):
            path = path_of("/v1/domains/tv/items/{}/similar?k=500", item)
            found = client.get(path).json()
            assert found["item_id"] == item
            assert {one["id"] for one in found["items"]} == {*everything} - {item}


@pytest.mark.parametrize("user", [True, None, 1.5, [], {}, "", "x" * 257, "ü" * 129, 10**30])
def test_what_is_no_id_is_refused(tmp_path, user):
    made(3).save(tmp_path / "model")
    with in_thread(tmp_path / "model") as server, server.client() as client:
        answer = client.post("/v1/domains/tv/recommend", json={"user_id": user})
        pointers = {one["pointer"] for one in problem(answer, 422, "invalid")["errors"]}
        assert pointers == {"/body/user_id"}
        path = "/v1/domains/tv/recommend"
        problem(client.post(path, json={"user_id": "a", "exclude_ids": [user]}), 422, "invalid")
        json = {"content-type": "application/json"}
        lone = client.post(path, content=b'{"user_id": "\\ud800"}', headers=json)
        problem(lone, 422, "invalid")


def test_a_whole_number_may_have_a_point(tmp_path):
    made(3, users=TYPES["integers"]).save(tmp_path / "model")
    with in_thread(tmp_path / "model") as server, server.client() as client:
        json = {"content-type": "application/json"}
        path = "/v1/domains/tv/recommend"
        found = client.post(path, content=b'{"user_id": 5.0, "k": 3.0}', headers=json).json()
        assert (found["user_id"], len(found["items"])) == (5, 3)
        # read as a float it is another user's
        large = client.post(path, content=b'{"user_id": 9007199254740995.0}', headers=json)
        problem(large, 422, "invalid")


def test_callers_of_a_run_of_pseudonyms_send_their_own_ids(tmp_path):
    secret = Secret.make(tmp_path / "secret")
    own = ["anna@example.org", "17", "ü/ö"]
    made(3, users=secret.of(pl.Series(own))).save(tmp_path / "model")
    pseudonyms = secret.of(pl.Series(own)).to_list()

    def load(folder):
        return version(folder, secret)

    with in_thread(tmp_path / "model", load=load) as server, server.client() as client:
        recommender = server.service.versions.current.recommender
        for user, pseudonym in zip(own, pseudonyms, strict=True):
            frame = recommender.recommend("tv", [pseudonym], 5, n_threads=1)
            for form in {user, int(user) if user.isdigit() else user}:
                answer = client.post("/v1/domains/tv/recommend", json={"user_id": form, "k": 5})
                assert pseudonym not in answer.text
                assert [item for item, _ in pairs(answer.json())] == frame["item_id"].to_list()
                assert answer.json()["user_id"] == user
            path = path_of("/v1/domains/tv/users/{}/recommend?k=5", user)
            assert client.get(path).json()["items"] == answer.json()["items"]
