"""Stores of fresh interactions: what they promise, on real files, servers and killed processes."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from threading import Event

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musketeers.__main__ import main
from musketeers.config import DataConfig
from musketeers.data.readers import read
from musketeers.errors import ArtifactError, ConfigError, DataError
from musketeers.serving import fresh, writer
from musketeers.serving.fresh import open_store
from musketeers.serving.harvest import Layout, harvest
from musketeers.serving.writer import Turn, Writer

DAY = 86_400
REDIS = shutil.which("redis-server")
ADDER = """
import os, sys
from threading import Thread
from musketeers.serving.fresh import open_store

def add(store, life, thread, most):
    for n in range(most):
        store.add(f"user-{n % 7}", "tv", [f"{life}-{thread}-{n}"], 1_700_000_000 + n)
        os.write(1, f"{life}-{thread}-{n}\\n".encode())

def live(place, life, threads, most):
    store = open_store(place)
    some = [Thread(target=add, args=(store, life, n, most)) for n in range(threads)]
    for one in some:
        one.start()
    for one in some:
        one.join()
    store.close()
"""
"""A process that adds and says what was acknowledged, a line each."""


class Redis:
    """A server of its own on a socket in a folder of its own, as durable as Redis can be."""

    def __init__(self, folder, *settings):
        self.folder, self.url = folder, f"unix://{folder}/socket"
        self.command = [
            REDIS, "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", folder, "--save", "",
            "--appendonly", "yes", "--appendfsync", "always", *settings,
        ]  # fmt: skip
        self.start()

    def start(self):
        import redis

        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with closing(redis.Redis.from_url(self.url)) as client:
            while time.monotonic() < deadline:
                with suppress(redis.RedisError):
                    client.ping()
                    return
                time.sleep(0.01)
        self.kill()
        pytest.fail("redis-server did not start")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def lasting_server():
    if REDIS is None:
        pytest.skip("needs redis-server")
    pytest.importorskip("redis", reason="needs musketeers[redis]")
    folder = tempfile.mkdtemp()  # the path of a socket must be short
    server = Redis(folder)
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def redis_server(lasting_server):
    """A server that runs and holds nothing; it may be killed."""
    import redis

    if lasting_server.process.poll() is not None:
        lasting_server.start()
    with closing(redis.Redis.from_url(lasting_server.url)) as client:
        client.flushdb()
    return lasting_server


@pytest.fixture(params=["sqlite", "redis"])
def place(request, tmp_path):
    """Where an empty store is, of either kind."""
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return str(tmp_path / "fresh.db")


@pytest.fixture
def store(place):
    with closing(open_store(place)) as store:
        yield store


@pytest.fixture
def path(tmp_path):
    """A file with a store of one row."""
    path = tmp_path / "fresh.db"
    with closing(open_store(str(path))) as store:
        store.add("anna", "tv", ["1"], now())
    return path


def now():
    return int(time.time())


def child(code, *arguments, **more):
    """A Python process whose lines can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def items_in(place):
    with closing(open_store(str(place))) as store:
        return {item for _, _, item, _ in store.rows()}


# --- what any store promises


def test_newest_come_first_each_once_by_domain(store):
    at = now()
    store.add("anna", "tv", ["1", "2"], at - 50)
    store.add("anna", "film", ["9"], at - 40)
    store.add("anna", "tv", ["3", "1"], at - 30)
    store.add("bert", "tv", ["7"], at)
    assert store.recent(["anna", "nobody", "bert", "anna"]) == [
        anna := {"tv": ["3", "1", "2"], "film": ["9"]},
        {},
        {"tv": ["7"]},
        anna,
    ]
    assert store.recent([]) == []


def test_what_is_said_again_is_kept_once_with_its_latest_time(store):
    at = now()
    for moment in (at - 5, at, at - 9):
        store.add("anna", "tv", ["1", "1"], moment)
    assert list(store.rows()) == [("anna", "tv", "1", at)]


def test_only_the_last_items_and_days_are_recent_but_all_is_kept(store):
    at = now()
    store.add("anna", "tv", [str(n) for n in range(150)], at - 3)
    store.add("anna", "film", ["old"], at - 31 * DAY)
    store.add("anna", "film", ["new"], at - 29 * DAY)
    [found] = store.recent(["anna"])
    assert list(found) == ["tv"]
    assert len(found["tv"]) == fresh.MOST == 100
    assert store.recent(["anna"], most=1000)[0]["film"] == ["new"]
    assert store.recent(["anna"], most=1000, days=40)[0]["film"] == ["new", "old"]
    assert len(list(store.rows())) == 152


def test_who_is_forgotten_is_gone_and_nobody_else(store):
    store.add("anna", "tv", ["1"], now())
    store.add("ann", "tv", ["2"], now())
    store.forget("anna")
    store.forget("nobody")
    assert store.recent(["anna", "ann"]) == [{}, {"tv": ["2"]}]


def test_pruning_drops_what_is_older_and_counts_it(store, monkeypatch):
    monkeypatch.setattr("musketeers.serving.sqlite_store._PAGE", 4)
    for user in range(30):
        store.add(f"user-{user}", "tv", ["1", "2", "3"], 1_000 + user)
    assert store.prune(1_000) == 0
    assert store.prune(1_010) == 30
    assert {at for *_, at in store.rows()} == set(range(1_010, 1_030))
    assert store.prune(fresh._LATEST) == 60
    assert list(store.rows()) == []


def test_many_threads_lose_nothing(store):
    def add(thread):
        for n in range(20):
            store.add(f"user-{n}", "tv", [f"{thread}-{n}"], now())
            assert f"{thread}-{n}" in store.recent([f"user-{n}"])[0]["tv"]

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(add, range(32)))
    assert len(list(store.rows())) == 32 * 20


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"domain": "a/b"}, "'a/b' is no domain name"),
        ({"user": " "}, "the user id ' ' is blank"),
        ({"items": ["1", ""]}, "the item id '' is blank"),
        ({"items": ["\ud800"]}, r"the item id '\\ud800' is no Unicode text"),
        ({"user": "é" * 129}, "has 258 bytes, more than 256; is it an id"),
        ({"at": -1}, "the time -1 is no number of seconds"),
        ({"at": 1_764_000_000_000}, "the time 1764000000000 is no number of seconds"),
    ],
)
def test_what_could_not_be_read_back_is_refused_whole(store, wrong, told):
    with pytest.raises(DataError, match=told):
        store.add(**{"user": "anna", "domain": "tv", "items": ["1"], "at": now(), **wrong})
    assert list(store.rows()) == []


def test_a_store_is_found_again(place):
    with closing(open_store(place)) as store:
        store.add("anna", "tv", ["1", "naïve \0 id"], 5)
    store.close()
    with closing(open_store(place, create=False)) as store:
        assert set(store.rows()) == {("anna", "tv", "1", 5), ("anna", "tv", "naïve \0 id", 5)}


NAMES = st.sampled_from(["a", "b", "A", "17", "é", "a\0b", "\U0001f600", "\uffff"])
STEPS = st.one_of(
    st.tuples(
        st.just("add"), NAMES, st.sampled_from(["tv", "tv 2", "é"]), st.lists(NAMES, max_size=4),
        st.integers(0, 50),
    ),
    st.tuples(st.just("forget"), NAMES),
    st.tuples(st.just("prune"), st.integers(0, 50)),
)  # fmt: skip


def expected(model, user, *, most, since):
    rows = [(at, d.encode(), i.encode()) for (u, d, i), at in model.items() if u == user]
    last = sorted((row for row in rows if row[0] >= since), reverse=True)[:most]
    found = {}
    for _, domain, item in last:
        found.setdefault(domain.decode(), []).append(item.decode())
    return found


def follow(store, steps, most, days):
    """Do the steps to the store and to a dictionary; both must tell the same."""
    model, start = {}, now() - DAY // 2  # half a day from where days end
    for step in steps:
        match step:
            case "add", user, domain, items, age:
                at = start - age * DAY
                store.add(user, domain, items, at)
                for item in items:
                    key = user, domain, item
                    model[key] = max(at, model.get(key, at))
            case "forget", user:
                store.forget(user)
                model = {key: at for key, at in model.items() if key[0] != user}
            case "prune", age:
                before = start - age * DAY
                left = {key: at for key, at in model.items() if at >= before}
                assert store.prune(before) == len(model) - len(left)
                model = left
        rows = list(store.rows())
        assert dict(zip([row[:3] for row in rows], [row[3] for row in rows], strict=True)) == model
    users = ["a", "b", "17", "nobody", "a\0b", "é"]
    since = now() - days * DAY
    wanted = [expected(model, user, most=most, since=since) for user in users]
    got = store.recent(users, most=most, days=days)
    assert got == wanted
    assert [list(found) for found in got] == [list(found) for found in wanted]


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=12), st.integers(1, 6), st.integers(1, 40))
def test_a_file_does_what_a_dictionary_does(steps, most, days):
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_store(f"{folder}/fresh.db")) as store,
    ):
        follow(store, steps, most, days)


def test_redis_does_what_a_dictionary_does(redis_server):
    @settings(max_examples=60)
    @given(st.lists(STEPS, max_size=12), st.integers(1, 6), st.integers(1, 40))
    def same(steps, most, days):
        with closing(open_store(redis_server.url)) as store:
            store.prune(fresh._LATEST)
            follow(store, steps, most, days)

    same()


# --- a file


def test_what_was_acknowledged_survives_the_killed_process(tmp_path):
    place = tmp_path / "fresh.db"
    forks = (
        ADDER + "for life in map(str.strip, sys.stdin):\n"
        "    if not (child := os.fork()):\n"
        "        live(sys.argv[1], life, 4, 1 << 30)\n"
        "    os.write(1, f'pid {child}\\n'.encode())\n"
        "    os.waitpid(child, 0)\n"
        "    os.write(1, b'dead\\n')\n"
    )
    acknowledged, chance = set(), random.Random(7)
    with child(forks, place) as process:
        for life in range(20):
            process.stdin.write(f"{life}\n")
            process.stdin.flush()
            pid = int(process.stdout.readline().removeprefix("pid "))
            first = process.stdout.readline().strip()
            time.sleep(chance.uniform(0, 0.1))
            os.kill(pid, signal.SIGKILL)
            told = {first, *map(str.strip, iter(process.stdout.readline, "dead\n"))}
            acknowledged |= told
            assert all(line.startswith(f"{life}-") for line in told)
            found = items_in(place)
            assert acknowledged <= found
            # each of the four threads may have been about to say one more
            assert len(found - acknowledged) <= 4 * (life + 1)
        process.stdin.close()
    assert len(acknowledged) > 100


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_an_acknowledged_addition_was_synced_before(tmp_path):
    log = tmp_path / "log"
    command = ["strace", "-f", "-y", "-o", log, "-e", "trace=fsync,fdatasync,write,pwrite64"]
    subprocess.run(
        [*command, sys.executable, "-c", f"{ADDER}\nlive(sys.argv[1], 'x', 1, 9)",
         tmp_path / "fresh.db"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    unsynced, acknowledged = False, 0
    for line in log.read_text().splitlines():
        if "fresh.db-wal>" in line and "pwrite64(" in line:
            unsynced = True
        elif "fresh.db-wal>" in line and "sync(" in line:
            unsynced = False
        elif '"x-0-' in line:
            assert not unsynced, line
            acknowledged += 1
    assert acknowledged == 9


def test_all_that_wait_are_committed_at_once(tmp_path):
    database = sqlite3.connect(tmp_path / "some.db", isolation_level=None, check_same_thread=False)
    database.execute("CREATE TABLE t (n INTEGER)")
    said, turn, other = [], Turn.of(tmp_path / "some.db"), Turn.of(tmp_path / "some.db")
    database.set_trace_callback(said.append)
    one = Writer.start(database, turn)
    add = "INSERT INTO t VALUES (1)"
    with ThreadPoolExecutor(32) as threads:
        with other.taken():
            waiting = [threads.submit(one.do, lambda c: c.execute(add).rowcount) for _ in range(32)]
            time.sleep(0.3)
            assert not any(answer.done() for answer in waiting)
        assert sum(answer.result() for answer in waiting) == 32
    # what the writer had taken before it waited, and the rest
    assert said.count("COMMIT") == 2
    one.close()
    for opened in (database, turn, other):
        opened.close()


def test_a_group_fails_whole_and_the_next_is_written(tmp_path):
    with closing(open_store(str(tmp_path / "fresh.db"))) as store:

        def fail(connection):
            connection.execute("DELETE FROM interactions")
            raise ValueError("not today")

        store.add("anna", "tv", ["1"], now())
        with pytest.raises(ValueError, match="not today"):
            store._writer.do(fail)
        assert store.recent(["anna"]) == [{"tv": ["1"]}]
        store.add("anna", "tv", ["2"], now())


def test_who_waits_for_too_long_is_told(path, monkeypatch):
    monkeypatch.setattr(writer, "_PATIENCE", 0.1)
    other = Turn.of(path)
    with closing(open_store(str(path))) as store:
        with other.taken(), pytest.raises(ArtifactError, match=r"not answered for 0\.1 sec"):
            store.add("anna", "tv", ["2"], now())
        monkeypatch.undo()
        store.add("anna", "tv", ["3"], now())
    other.close()


def test_reading_does_not_wait_for_writing(path):
    with closing(open_store(str(path))) as store:
        begun, end = Event(), Event()

        def slow(connection):
            connection.execute("DELETE FROM interactions")
            begun.set()
            return int(end.wait(20))

        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(store._writer.do, slow)
            assert begun.wait(20)
            assert store.recent(["anna"]) == [{"tv": ["1"]}]
            end.set()
            assert writing.result() == 1
        assert store.recent(["anna"]) == [{}]


def test_two_processes_share_a_file(tmp_path):
    place = tmp_path / "fresh.db"
    code = f"{ADDER}\nlive(sys.argv[1], sys.argv[2], 4, 50)"
    with closing(open_store(str(place))) as store:
        others = [child(code, place, life) for life in "ab"]
        lines = set()
        for n in range(50):
            store.add("me", "tv", [f"me-{n}"], now())
            assert store.recent(["me"])[0]["tv"]
        for process in others:
            lines |= set(process.communicate(timeout=60)[0].split())
            assert process.returncode == 0
        assert len(lines) == 2 * 4 * 50
        assert {item for *_, item, _ in store.rows()} == lines | {f"me-{n}" for n in range(50)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh.db", "fresh.db-lock"]


FULL = """
import sys, resource
from musketeers.errors import ArtifactError
from musketeers.serving.fresh import open_store

store = open_store(sys.argv[1])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, most))
n = 0
try:
    while True:
        store.add("anna", "tv", [f"{n}-{k}" for k in range(50)], 5)
        n += 1
except ArtifactError as error:
    print(n, error)
for again in range(2):
    try:
        store.add("anna", "tv", ["refused"], 5)
    except ArtifactError:
        print("refused")
    print(sum(map(len, store.recent(["anna"], most=10**6, days=10**5)[0].values())))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
store.add("anna", "tv", ["last"], 5)
store.close()
"""


def test_a_disk_that_refuses_is_told_and_the_store_stays(tmp_path):
    place = tmp_path / "fresh.db"
    with child(FULL, place) as process:
        answer, *rest = process.communicate(timeout=60)[0].splitlines()
    n, told = answer.split(" ", 1)
    assert told.startswith(f"{place}: cannot be used (disk I/O error)")
    assert rest == ["refused", str(int(n) * 50)] * 2
    found = items_in(place)
    assert found == {f"{k}-{j}" for k in range(int(n)) for j in range(50)} | {"last"}


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_the_store_stays(small_disk):
    filler, kept = small_disk / "filler", []
    filler.write_bytes(bytes(200_000))
    with closing(open_store(str(small_disk / "fresh.db"))) as store:
        with pytest.raises(ArtifactError, match=r"fresh\.db: the disk is full, nothing was stored"):
            add_until_refused(store, kept)
        assert {row[0] for row in store.rows()} == set(kept)
        filler.unlink()
        store.add("anna", "tv", ["last"], now())
    assert len(items_in(small_disk / "fresh.db")) == 51
    assert len(kept) > 1


def add_until_refused(store, kept):
    while True:
        store.add(f"user-{len(kept)}", "tv", [f"item {n}" for n in range(50)], now())
        kept.append(f"user-{len(kept)}")


def spoilt_header(path):
    path.write_bytes(b"x" * 50 + path.read_bytes()[50:])


def no_database(path):
    path.write_text("user,item\n" * 100)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:5000])


def of_the_future(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")


def of_others(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE interactions (user TEXT)")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoilt_header, "is damaged, or no store of interactions"),
        (no_database, "is damaged, or no store of interactions"),
        (cut_off, "is damaged, or no store of interactions"),
        (of_the_future, "is a store of format 2, this version reads 1; use the version"),
        (of_others, "is a database, but no store of interactions; give another place"),
    ],
)
def test_a_file_that_is_no_store_is_told_in_one_line_and_left(path, spoil, told):
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=told) as caught:
        items_in(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_damage_inside_is_told_when_it_is_met(path):
    with closing(open_store(str(path))) as store:
        for user in range(100):
            store.add(f"user-{user}", "tv", [f"item {n}" for n in range(30)], now())
    content = bytearray(path.read_bytes())
    content[8192:-4096] = random.Random(0).randbytes(len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"fresh\.db: is damaged, or no store"):
        items_in(path)


def test_no_folder_no_store(tmp_path):
    with pytest.raises(ArtifactError, match="there is no such store"):
        open_store(str(tmp_path / "fresh.db"), create=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match="cannot be written: No such file or directory"):
        open_store(str(tmp_path / "nowhere" / "fresh.db"))
    with pytest.raises(ArtifactError, match="cannot be used"):
        open_store(str(tmp_path))


def test_an_empty_file_of_a_killed_process_becomes_a_store(tmp_path):
    (tmp_path / "fresh.db").touch()
    assert items_in(tmp_path / "fresh.db") == set()


def test_others_may_not_read_the_file(path):
    assert path.stat().st_mode & 0o777 == 0o600


def test_who_is_forgotten_leaves_no_trace_in_the_file(path):
    with closing(open_store(str(path))) as store:
        store.add("the-secret-user", "tv", ["1"], now())
        store.forget("the-secret-user")
    assert b"the-secret-user" not in path.read_bytes()


def test_a_closed_file_refuses(path):
    store = open_store(str(path))
    store.close()
    with pytest.raises(ArtifactError, match="is closed"):
        store.add("anna", "tv", ["2"], now())
    store.close()


# --- Redis


def test_redis_keeps_what_it_acknowledged_when_it_is_killed(redis_server):
    acknowledged, chance = set(), random.Random(7)

    def add(store, life, thread):
        n = 0
        with suppress(ArtifactError):
            while True:
                store.add(f"user-{n % 7}", "tv", [f"{life}-{thread}-{n}"], now())
                acknowledged.add(f"{life}-{thread}-{n}")
                n += 1

    with closing(open_store(redis_server.url)) as store:
        for life in range(5):
            with ThreadPoolExecutor(4) as threads:
                for thread in range(4):
                    threads.submit(add, store, life, thread)
                time.sleep(chance.uniform(0.05, 0.2))
                redis_server.kill()
            redis_server.start()
            assert acknowledged <= {item for *_, item, _ in store.rows()}
            assert any(item.startswith(f"{life}-") for item in acknowledged)


def test_without_its_client_redis_is_refused_with_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['redis'] = None\n"
        "from musketeers.errors import MissingExtraError\n"
        "from musketeers.serving.fresh import open_store\n"
        "try: open_store('redis://127.0.0.1:1/0')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    with child(code) as process:
        assert "pip install 'musketeers[redis]'" in process.communicate(timeout=60)[0]


def test_redis_out_of_reach_is_told_without_the_password(redis_server):
    store = open_store(redis_server.url)
    redis_server.kill()
    with pytest.raises(ArtifactError, match=r"unix://.*/socket: cannot be used \(.*\); see"):
        store.recent(["anna"])
    store.close()
    with pytest.raises(ArtifactError) as caught:
        open_store("redis://me:hidden@127.0.0.1:1/0")
    assert str(caught.value).startswith("redis://127.0.0.1:1/0: cannot be used")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"redis://h:x/0: is no address of Redis"):
        open_store("redis://h:x/0")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("--appendonly no", "has appendonly no: a restart loses what came after"),
        ("--appendfsync everysec", "has appendfsync everysec: a power cut loses the last"),
        ("--no-appendfsync-on-rewrite yes", "has no-appendfsync-on-rewrite yes: a power cut"),
        ("--maxmemory-policy allkeys-lru", "has maxmemory-policy allkeys-lru: what is kept is"),
        ("--rename-command CONFIG OTHER", "does not tell how durable it is"),
    ],
)
def test_redis_that_may_lose_says_so(redis_server, setting, told):
    server = Redis(tempfile.mkdtemp(dir=redis_server.folder), *setting.split())
    with closing(open_store(server.url)) as store:
        [risk] = store.risks
    server.kill()
    assert told in risk


def test_the_most_durable_redis_has_no_risk(store):
    assert tuple(store.risks) == ()


def test_redis_of_another_format_is_told(redis_server):
    import redis

    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.set("musketeers:fresh-format", "2")
    with pytest.raises(ArtifactError, match="holds a store of format b'2', this version reads"):
        open_store(redis_server.url)


def test_full_redis_acknowledges_nothing(redis_server):
    import redis

    with closing(open_store(redis_server.url)) as store:
        store.add("anna", "tv", ["1"], now())
        with closing(redis.Redis.from_url(redis_server.url)) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(ArtifactError, match=r"cannot be used .*maxmemory"):
                store.add("anna", "tv", ["2"], now())
            assert store.recent(["anna"]) == [{"tv": ["1"]}]
            client.config_set("maxmemory", 0)
        store.add("anna", "tv", ["2"], now())


# --- to the next fit


def columns(path):
    frame = pl.read_parquet(path)
    return frame.sort(frame.columns).to_dict(as_series=False), [str(t) for t in frame.dtypes]


def test_what_is_written_stands_beside_the_data_of_before(store, tmp_path):
    old = {"user_id": [17, 18], "item_id": ["a", "b"], "timestamp": [100, 100]}
    (tmp_path / "data/old").mkdir(parents=True)
    pl.DataFrame(old).write_parquet(tmp_path / "data/old/tv.parquet")
    store.add("17", "tv", ["a", "c"], 200)
    store.add("19", "tv", ["c"], 300)
    store.add("19", "film", ["5"], 300)
    counts = harvest(store, tmp_path / "data/new", Layout())
    assert counts == {"tv": 3, "film": 1}
    config = DataConfig(
        domains={"tv": "data/*/tv.parquet", "film": "data/*/film.parquet"},
        min_user=1, min_item=1, timestamp="timestamp",
    )  # fmt: skip
    domains = read(config, base=tmp_path).domains
    tv = domains.domains["tv"]
    users = domains.users.ids(tv.pairs.users()).to_list()
    items = tv.items.ids(tv.pairs.items).to_list()
    assert list(zip(users, items, tv.times.tolist(), strict=True)) == [
        (17, "a", 200), (17, "c", 200), (18, "b", 100), (19, "c", 300),
    ]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "data/new").iterdir()) == [
        "film.parquet",
        "tv.parquet",
    ]


def test_ids_are_integers_where_all_are_and_times_as_wanted(store, tmp_path):
    store.add("17", "tv", ["1", "007"], 86_400)
    harvest(store, tmp_path / "a", Layout())
    assert columns(tmp_path / "a/tv.parquet") == (
        {"user_id": [17, 17], "item_id": ["007", "1"], "timestamp": [86_400, 86_400]},
        ["Int64", "String", "Int64"],
    )
    harvest(store, tmp_path / "b", Layout("u", "i", "t", text=True, dates=True))
    found, types = columns(tmp_path / "b/tv.parquet")
    assert found["u"] == ["17", "17"]
    assert [str(t) for t in found["t"]] == ["1970-01-02 00:00:00+00:00"] * 2
    assert types[:2] == ["String", "String"]


def test_many_rows_are_written_block_by_block(store, tmp_path, monkeypatch):
    monkeypatch.setattr("musketeers.serving.harvest._ROWS", 7)
    monkeypatch.setattr("musketeers.serving.sqlite_store._PAGE", 4)
    for user in range(20):
        store.add(str(user), "tv", ["1", "2", "3"], user)
    store.add("last", "film", ["1"], 1)
    assert harvest(store, tmp_path / "out", Layout()) == {"tv": 60, "film": 1}
    found, _ = columns(tmp_path / "out/tv.parquet")
    assert found["user_id"] == [user for user in range(20) for _ in range(3)]


def test_only_what_is_in_the_files_is_pruned(store, tmp_path):
    at = now()
    store.add("anna", "tv", ["old"], at - 2 * DAY)
    store.add("anna", "tv", ["new"], at)
    with pytest.raises(ConfigError, match="prune is 0 days; give at least 1"):
        harvest(store, tmp_path / "out", Layout(), prune=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(ArtifactError, match="already exists"):
        harvest(store, tmp_path / "out", Layout(), prune=1)
    assert len(list(store.rows())) == 2
    assert harvest(store, tmp_path / "other", Layout(), prune=1) == {"tv": 2}
    assert [row[2] for row in store.rows()] == ["new"]
    assert pl.read_parquet(tmp_path / "other/tv.parquet")["item_id"].sort().to_list() == [
        "new",
        "old",
    ]


def test_nothing_is_written_of_a_store_that_breaks_off(path, tmp_path):
    class Broken:
        def rows(self):
            yield "anna", "tv", "1", 5
            raise ArtifactError("broken off")

    with pytest.raises(ArtifactError, match="broken off"):
        harvest(Broken(), tmp_path / "out", Layout())
    assert not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".saving-")]


def test_an_empty_store_gives_an_empty_folder(store, tmp_path):
    assert harvest(store, tmp_path / "out", Layout()) == {}
    assert list((tmp_path / "out").iterdir()) == []


def test_a_column_cannot_be_named_twice(store, tmp_path):
    with pytest.raises(ConfigError, match="columns are a, a, timestamp; give three"):
        harvest(store, tmp_path / "out", Layout("a", "a"))


def test_the_command_writes_and_says_how_much(path, tmp_path, monkeypatch, capsys):
    words = ["musketeers", "interactions", str(path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == "tv: 1 interactions\n"
    assert columns(tmp_path / "out/tv.parquet")[0]["item_id"] == [1]
