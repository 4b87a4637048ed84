"""Versions of the model that follow each other while they are served, good and damaged ones."""

import gc
import json
import shutil
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file
from serving import by_command, in_thread, made, pairs, problem, until, version

from musketeers.errors import ArtifactError
from musketeers.serving.keys import Key, Keys
from musketeers.serving.versions import CURRENT, Versions

SECRET = "k" * 40
KEYS = Keys((Key("all", frozenset({"read", "admin"}), None, sha256(SECRET.encode()).digest()),))
ASK = "/v1/domains/tv/recommend"


class Place:
    """A folder of several versions with a file that names the one to serve."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, name, **options):
        made(**options).save(self.folder / name)
        return self.folder / name

    def point(self, name):
        """Change the file at once, as others are told to."""
        draft = self.folder / ".draft"
        draft.write_text(f"{name}\n")
        draft.replace(self.folder / CURRENT)


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path)
    found.add("a", seed=1)
    found.point("a")
    return found


@contextmanager
def opened(place, **options):
    with in_thread(place.folder, keys=KEYS, **options) as server, server.client(SECRET) as client:
        yield server, client


def lists_of(folder):
    """A version's name, and what it lists for some users."""
    found = version(folder)
    users = found.recommender.users.values.to_list()
    frame = found.recommender.recommend("tv", users, 5, n_threads=1)
    rows = {user: [] for user in users}
    for row in frame.to_dicts():
        rows[row["user_id"]].append((row["item_id"], row["score"]))
    return found.name, rows


def reload(client):
    return client.post("/v1/admin/reload")


def test_a_new_version_serves_and_the_old_one_can_again(place):
    place.add("b", seed=2)
    (one, lists), (two, other) = (lists_of(place.folder / name) for name in "ab")
    with opened(place) as (_, client):

        def serves(name, rows):
            answer = client.post(ASK, json={"user_id": "user-020", "k": 5}).json()
            assert (answer["model_version"], pairs(answer)) == (name, rows["user-020"])

        serves(one, lists)
        problem(client.post("/v1/admin/rollback"), 409, "no_previous")
        place.point("b")
        serves(one, lists)
        found = reload(client).json()
        assert (found["model_version"], found["previous"]) == (two, one)
        serves(two, other)
        states = [(v["state"], v["model_version"], v["run"], v["fault"]) for v in known(client)]
        assert states == [("serving", two, "b", None), ("previous", one, "a", None)]
        for name, rows in ((one, lists), (two, other)):
            found = client.post("/v1/admin/rollback").json()
            assert (found["model_version"], found["previous"]) == (
                name,
                two if name == one else one,
            )
            serves(name, rows)
        assert reload(client).json()["model_version"] == two
        serves(two, other)


def known(client):
    return client.get("/v1/models/versions").json()["versions"]


def flip(folder):
    file = folder / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def drop(folder):
    (folder / "items-tv.parquet").unlink()


def cut(folder):
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def foreign(folder):
    (folder / "manifest.json").write_text("{}")


def no_manifest(folder):
    (folder / "manifest.json").unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def dangling(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "gone")


def with_nan(folder, part):
    """As somebody else's program might write it: all else fits, the digests too."""
    file, manifest = folder / "tensors.safetensors", folder / "manifest.json"
    old = sha256(file.read_bytes()).hexdigest()
    tensors = load_file(file)
    tensors[part][-1, 0] = np.nan
    save_file(tensors, file)
    new = sha256(file.read_bytes()).hexdigest()
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))


DAMAGES = {
    "flipped byte": (flip, "tensors.safetensors"),
    "missing file": (drop, "items-tv.parquet"),
    "cut file": (cut, "tensors.safetensors"),
    "foreign": (foreign, "manifest.json"),
    "no manifest": (no_manifest, "is no finished run and no saved model"),
    "empty": (empty, "is no finished run and no saved model"),
    "dangling": (dangling, "is no folder beside it"),
    "NaN in an item": (lambda folder: with_nan(folder, "movie/items"), "only finite numbers"),
    "NaN in a user": (lambda folder: with_nan(folder, "movie/users"), "only finite numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_refused_and_the_old_one_goes_on(place, damage):
    spoil, said = DAMAGES[damage]
    (name, lists) = lists_of(place.folder / "a")
    spoil(place.add("b", seed=2))
    with opened(place) as (_, client):
        place.point("b")
        refused(client, said, "b" if damage != "dangling" else place.folder.name)
        answer = client.post(ASK, json={"user_id": "user-020", "k": 5}).json()
        assert (answer["model_version"], pairs(answer)) == (name, lists["user-020"])
        place.add("c", seed=3)
        place.point("c")
        assert reload(client).json()["previous"] == name


def refused(client, said, run):
    answer = reload(client)
    detail = problem(answer, 422, "refused")["detail"]
    assert said in detail
    assert "\n" not in detail
    last = known(client)[-1]
    assert (last["state"], last["run"], last["model_version"]) == ("refused", run, None)
    assert last["fault"] in detail
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ("tv", "movie")}, "has no domain 'music'"),
        ({"users": pl.Series(range(30))}, "users have ids of integers, text are being served"),
        (
            {"items": pl.Series(range(25))},
            "items of tv have ids of integers, text are being served",
        ),
    ],
)
def test_a_version_that_callers_could_not_go_on_with_is_refused(place, options, said):
    place.add("b", seed=2, **options)
    with opened(place) as (_, client):
        place.point("b")
        refused(client, said, "b")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../b", "gone", "/", "{}", "b\0", "é" * 5000])
def test_a_name_that_is_no_folder_beside_the_file_is_refused(place, name):
    place.add("b", seed=2)
    with opened(place) as (_, client):
        (place.folder / CURRENT).write_text(name.format(place.folder / "b"))
        refused(client, "which is no folder beside it", place.folder.name)
        (place.folder / CURRENT).write_bytes(b"\xff\xfe")
        assert "cannot be read" in problem(reload(client), 422, "refused")["detail"]


def test_an_unfinished_run_is_refused(finished, tmp_path):
    place = Place(tmp_path)
    for name in "ab":
        shutil.copytree(finished.path, tmp_path / name)
    manifest = tmp_path / "b" / "manifest.json"
    found = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**found, "status": "running"}))
    place.point("a")
    with opened(place) as (_, client):
        place.point("b")
        refused(client, "unfinished", "b")
        assert known(client)[0]["state"] == "serving"


def test_only_some_refused_versions_are_remembered(place):
    versions = Versions.begin(place.folder, version, lambda *_, **__: None)
    for number in range(20):
        place.point(f"gone-{number}")
        with pytest.raises(ArtifactError, match=f"names 'gone-{number}'"):
            versions.reload()
    assert [one.fault.split("'")[1] for one in versions.refused] == [
        f"gone-{number}" for number in range(12, 20)
    ]


def test_one_version_is_read_at_a_time(place):
    place.add("b", seed=2)
    go_on, reading = threading.Event(), threading.Event()

    def slowly(folder):
        if folder.name == "b":
            reading.set()
            assert go_on.wait(30)
        return version(folder)

    with opened(place, load=slowly) as (_, client):
        place.point("b")
        first = []
        thread = threading.Thread(target=lambda: first.append(reload(client)))
        thread.start()
        assert reading.wait(30)
        problem(reload(client), 409, "busy")
        problem(client.post("/v1/admin/rollback"), 409, "busy")
        assert client.post(ASK, json={"user_id": "user-020"}).status_code == 200
        assert client.get("/readyz").status_code == 200
        go_on.set()
        thread.join(30)
        assert first[0].status_code == 200


def test_a_failure_that_nobody_foresaw_is_a_refusal_too(place):
    def out_of_memory(folder):
        if folder.name == "b":
            raise MemoryError
        return version(folder)

    place.add("b", seed=2)
    with opened(place, load=out_of_memory) as (_, client):
        place.point("b")
        refused(client, "cannot be served: MemoryError", "b")


def ask(server, seed, ended):
    """Lists, one after the other, until it is over."""
    stream, answers = np.random.default_rng(seed), []
    with server.client(SECRET) as client:
        while not ended.is_set():
            users = [f"user-{n:03}" for n in stream.integers(30, size=4)]
            if stream.random() < 0.5:
                answers.append(client.post(f"{ASK}:batch", json={"user_ids": users, "k": 5}))
            else:
                answers.append(client.post(ASK, json={"user_id": users[0], "k": 5}))
    return answers


@pytest.mark.slow
def test_a_hundred_swaps_under_load_mix_nothing(place):
    """Each answer is what the version that it names gives, and there is one for each request."""
    for number, name in enumerate("bcd"):
        # other users and items, so that a row of one is another's in the next
        place.add(name, seed=number + 2, n_users=30 + number, n_items=25 + number)
    flip(place.add("damaged", seed=9))
    expected = dict(lists_of(place.folder / name) for name in "abcd")
    ended = threading.Event()
    with opened(place) as (server, client), ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, server, seed, ended) for seed in range(4)]
        for number in range(100):
            name = ("b", "damaged", "c", "d", "a")[number % 5]
            place.point(name)
            assert reload(client).status_code == (422 if name == "damaged" else 200)
            if number % 7 == 0 and name != "damaged":
                assert client.post("/v1/admin/rollback").status_code == 200
        ended.set()
        answers = [answer for one in asking for answer in one.result(60)]
    assert {answer.status_code for answer in answers} == {200}
    found = [answer.json() for answer in answers]
    assert {one["model_version"] for one in found} == expected.keys()
    for answer in found:
        lists = expected[answer["model_version"]]
        for one in answer.get("results", [answer]):
            assert pairs(one) == lists[one["user_id"]]
    assert len(found) > 200


def test_the_version_before_the_previous_one_is_let_go(place):
    versions = Versions.begin(place.folder, version, lambda *_, **__: None)
    alive = []
    for number in range(6):
        alive.append(weakref.ref(versions.current.recommender.domains["tv"].scorer.users))
        place.add(str(number), seed=number + 5)
        place.point(number)
        if number % 2:
            flip(place.folder / str(number))
            with pytest.raises(ArtifactError):
                versions.reload()
        else:
            versions.reload()
        gc.collect()
    assert versions.previous is None
    there = [one for one in alive if one() is not None]
    assert {id(one()) for one in there} == {
        id(versions.current.recommender.domains["tv"].scorer.users)
    }


@pytest.mark.slow
def test_the_server_notices_by_itself(place):
    """By the link that it was given, and by the file CURRENT of a folder."""
    link, draft = place.folder / "link", place.folder / "draft"
    link.symlink_to("a")
    names = {name: lists_of(place.add(name, seed=ord(name)))[0] for name in "bc"}
    flip(place.add("damaged", seed=1))

    def relink(target):
        draft.symlink_to(target)
        draft.replace(link)

    with by_command(link, "--watch", 0.05, MUSKETEERS_KEY=SECRET) as server:
        relink("b")
        server.heard("serving", run="b", model_version=names["b"])
        relink("damaged")
        assert "tensors.safetensors" in server.heard("refused")["fault"]
        relink("gone")
        until(lambda: len([e for e in server.events() if e["event"] == "refused"]) == 2)
        place.point("c")
        relink(place.folder)
        server.heard("serving", run="c", model_version=names["c"])
        place.point("a")
        server.heard("serving", run="a")
        place.point("..")
        until(lambda: len([e for e in server.events() if e["event"] == "refused"]) == 3)
        # what was refused is not read again and again
        with server.client(SECRET) as client:
            for _ in range(10):
                answer = client.get("/v1/models").json()
            assert answer["run"] == "a"
        refusals = [e for e in server.events() if e["event"] == "refused"]
        assert len(refusals) == 3


# --- what the stages made


def with_stages(folder, future):
    return replace(version(folder), stages=future)


def there(found):
    """What is read already; what it is says nothing to versions."""
    future = Future()
    future.set_result(found)
    return future


def test_a_version_waits_for_its_stages_where_the_old_one_has_them(place):
    coming = {"a": there("old"), "b": Future()}
    place.add("b", seed=2)
    versions = Versions.begin(
        place.folder, lambda f: with_stages(f, coming[f.name]), lambda *_, **__: None
    )
    old = versions.current
    place.point("b")
    with ThreadPoolExecutor(1) as thread:
        swap = thread.submit(versions.reload)
        assert not wait([swap], timeout=0.5).done
        assert versions.current is old
        coming["b"].set_result("new")
        assert swap.result() is versions.current
    assert versions.current.stages_now() == "new"
    assert versions.previous is old


def test_a_version_whose_stages_cannot_be_read_is_refused_where_the_old_one_has_them(place):
    broken = Future()
    broken.set_exception(ArtifactError("cat/tensors.safetensors: is damaged"))
    coming = {"a": there("old"), "b": broken}
    place.add("b", seed=2)
    versions = Versions.begin(
        place.folder, lambda f: with_stages(f, coming[f.name]), lambda *_, **__: None
    )
    old = versions.current
    place.point("b")
    with pytest.raises(ArtifactError, match="is damaged"):
        versions.reload()
    assert versions.current is old
    assert versions.refused[-1].run == "b"
