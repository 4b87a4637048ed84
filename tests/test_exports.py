"""Exports: other systems' lists against ours, exports that replace others, refusals."""

import datetime as dt
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import tracemalloc
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import databases
import numpy as np
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis as redis_py
from psycopg import sql
from scipy.sparse import csr_array

import musketeers
from musketeers import config as configuration
from musketeers import run_files
from musketeers.__main__ import main
from musketeers.baselines.linear import Linear
from musketeers.baselines.popularity import popularity, ranked_by
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import frames, planted
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import (
    ArtifactError,
    ConfigError,
    MissingExtraError,
    RunError,
    UnknownNameError,
)
from musketeers.exports import command, parquet, pgvector
from musketeers.exports import redis as redis_export
from musketeers.exports.addresses import without_secrets
from musketeers.exports.vectors import Space, served_by
from musketeers.heads.gate import Gated
from musketeers.protocols import untold
from musketeers.ranking import Factors
from musketeers.recommender import STRATEGIES, DomainModel, Recommender, version_of
from musketeers.run_folder import RunFolder
from musketeers.runs import Quiet
from musketeers.seeding import Seed

ROOT = Path(__file__).parent.parent
AWKWARD = [
    " a ",
    "it's",
    'a"b',
    "a:b",
    "a*b?[x]^",
    "\\",
    "ü",
    "日本",
    "x\ny",
    "%s",
    "{tag}",
    "'; DROP",
]
BLACK = "TV 2.ö"
K = 7

# --- recommenders of each kind, of which everything is drawn at random


def vectors(rng, n_users, n_items, dim):
    return Factors(
        rng.normal(size=(n_users, dim)).astype(np.float32),
        rng.normal(size=(n_items, dim)).astype(np.float32),
    )


def pairs(rng, n_users, n_items, share):
    users, items = np.nonzero(rng.random((n_users, n_items)) < share)
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def domain(rng, items, scorer, *, n_users, known, transfers, cold=None):
    """Some users have a history, some have pairs that are held out, too, some have neither."""
    marks = rng.random(n_users) < known
    seen = pairs(rng, n_users, len(items), 0.05)
    return DomainModel(items, scorer, seen, popularity(seen), marks, transfers, cold)


def recommender(users, models):
    about = {"model": dict.fromkeys(models, "cat_art")}
    return Recommender.of(Vocabulary.of(users), models, about)


def smf_with_text_ids(rng):
    n_users, items = 90, Vocabulary.of(pl.Series([f"item {n}" for n in range(60)]))
    made = domain(
        rng, items, vectors(rng, n_users, 60, 8), n_users=n_users, known=0.7, transfers=False
    )
    return recommender(pl.Series([f"user-{n:03}" for n in range(n_users)]), {"tv": made})


def cat_art_with_cold_users_and_integer_ids(rng):
    n_users, models = 120, {}
    for name, n_items, cold in (("tv", 50, True), ("movie", 70, False)):
        items = Vocabulary.of(pl.Series(range(-10, n_items - 10)))
        models[name] = domain(
            rng, items, vectors(rng, n_users, n_items, 8), n_users=n_users, known=0.4,
            transfers=True, cold=vectors(rng, n_users, n_items, 5) if cold else None,
        )  # fmt: skip
    return recommender(pl.Series([3 * n - 100 for n in range(n_users)]), models)


def a_gate_and_awkward_ids(rng):
    users = pl.Series([*AWKWARD, *(f"u{n}" for n in range(40))])
    items = Vocabulary.of(pl.Series([*AWKWARD, *(f"i{n}" for n in range(30))]))
    n_users, n_items = len(users), len(items)
    gate = Gated(
        vectors(rng, n_users, n_items, 6), vectors(rng, n_users, n_items, 4),
        rng.random(n_users) < 0.5,
    )  # fmt: skip
    made = domain(rng, items, gate, n_users=n_users, known=0.8, transfers=False)
    return recommender(users, {BLACK: made})


def bytes_and_dates(rng):
    users = pl.Series([bytes([n, 0, 255 - n]) for n in range(40)])
    items = Vocabulary.of(pl.Series([dt.date(2020, 1, 1) + dt.timedelta(n) for n in range(30)]))
    made = domain(rng, items, vectors(rng, 40, 30, 3), n_users=40, known=0.5, transfers=False)
    return recommender(users, {"tv": made})


def numbers_beyond_64_bits_with_a_sign(rng):
    users = pl.Series([2**64 - 1 - n for n in range(30)], dtype=pl.UInt64)
    items = Vocabulary.of(pl.Series(range(20), dtype=pl.UInt8))
    made = domain(rng, items, vectors(rng, 30, 20, 3), n_users=30, known=0.5, transfers=False)
    return recommender(users, {"tv": made})


WORLDS = (
    smf_with_text_ids,
    cat_art_with_cold_users_and_integer_ids,
    a_gate_and_awkward_ids,
    bytes_and_dates,
    numbers_beyond_64_bits_with_a_sign,
)


def run_of(path, model):
    """A finished run that has a model and nothing else."""
    with RunFolder.create(path, "", data={}, threads=1) as folder:
        model.save(path / "model")
        folder.finish()
    return path


@pytest.fixture(params=WORLDS, ids=lambda world: world.__name__)
def world(request, tmp_path):
    """A run and its recommender."""
    model = request.param(np.random.default_rng(5))
    return run_of(tmp_path / "run", model), model


# --- the systems, each asked for a list as docs/exports.md has it


@pytest.fixture(scope="module")
def database():
    with databases.postgres() as url:
        yield url


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with databases.redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def tables(database):
    """The address of a database without any table."""
    with psycopg.connect(database) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        connection.execute("CREATE EXTENSION vector")
    return database


@pytest.fixture
def keys(server):
    """The address of a server without any key."""
    redis_py.Redis.from_url(server).flushall()
    return server


def of_files(folder, domain):
    """What answers from the Parquet files alone."""
    table = {
        name: pl.read_parquet(folder / domain / f"{name}.parquet")
        for name in ("users", "items", "seen")
    }
    unknown = json.loads((folder / domain / "about.json").read_text())["unknown"]
    items = table["items"]["vector"].to_numpy()

    def ask(user, k, exclude_seen):
        found = table["users"].filter(pl.col("user_id") == user)["vector"].to_numpy()
        vector = found[0] if len(found) else np.array(unknown, np.float32)
        scores = items @ vector
        ids = table["items"]["item_id"]
        gone = table["seen"].filter(pl.col("user_id") == user)["item_id"].implode()
        free = ~ids.is_in(gone).to_numpy() | (not exclude_seen)
        order = [n for n in np.argsort(-scores, kind="stable") if free[n]][:k]
        return [(ids[int(n)], float(scores[n])) for n in order]

    return ask


def of_faiss(folder, domain):
    import faiss

    index = faiss.read_index(str(folder / domain / "items.faiss"))
    table = {
        name: pl.read_parquet(folder / domain / f"{name}.parquet")
        for name in ("users", "items", "seen")
    }
    unknown = json.loads((folder / domain / "about.json").read_text())["unknown"]

    def ask(user, k, exclude_seen):
        found = table["users"].filter(pl.col("user_id") == user)["vector"].to_numpy()
        vector = found if len(found) else np.array([unknown], np.float32)
        seen = set(table["seen"].filter(pl.col("user_id") == user)["item_id"])
        seen = seen if exclude_seen else set()
        scores, rows = index.search(vector, min(k + len(seen), index.ntotal))
        ids = table["items"]["item_id"].gather(rows[0]).to_list()
        return [one for one in zip(ids, scores[0].tolist(), strict=True) if one[0] not in seen][:k]

    return ask


LIST = """
    WITH asked AS (
        SELECT coalesce((SELECT vector FROM {users} WHERE user_id = %(user)s),
                        (SELECT unknown FROM {about})) AS vector
    )
    SELECT item_id, -(items.vector <#> asked.vector)
    FROM {items} AS items, asked
    WHERE NOT %(exclude)s OR NOT EXISTS (
        SELECT FROM {seen} AS seen
        WHERE seen.user_id = %(user)s AND seen.item_id = items.item_id
    )
    ORDER BY items.vector <#> asked.vector, item_id
    LIMIT %(k)s
"""


@contextmanager
def of_postgres(url, domain, as_kept=lambda user: user):
    names = {
        part: sql.Identifier(f"musketeers_{domain}_{part}")
        for part in ("users", "items", "seen", "about")
    }
    with psycopg.connect(url, autocommit=True) as connection:

        def ask(user, k, exclude_seen):
            values = {"user": as_kept(user), "k": k, "exclude": exclude_seen}
            return connection.execute(sql.SQL(LIST).format(**names), values).fetchall()

        yield ask


def script():
    """The Lua script of docs/exports.md."""
    page = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    return re.search(r"<<'LUA'\n(.*?)^LUA$", page, re.M | re.S)[1]


def of_redis(url, domain):
    client = redis_py.Redis.from_url(url)
    best = client.register_script(script())

    def ask(user, k, exclude_seen):
        user = user if isinstance(user, bytes) else str(user)
        found = best([f"musketeers:{domain}"], [user, k, int(exclude_seen)])
        return [
            (item.decode(), float(score))
            for item, score in zip(found[::2], found[1::2], strict=True)
        ]

    return ask


# --- lists are equal as far as float32 can tell


def check_lists(model, domain, ask, back=lambda item: item):
    """All users' lists and a stranger's, with and without what they have seen.

    With s an exact score, and every score of the other system off by at most e: its r-th best
    score is off by at most e from the r-th best there is, and so is its score of that item.
    """
    users = model.users.values
    stranger = {pl.String: "nobody", pl.Binary: b"nobody"}.get(users.dtype, 12345)
    everybody = pl.concat([users, pl.Series([stranger], dtype=users.dtype)])
    part, items, strategies = model.domains[domain], model.domains[domain].items, set()
    for exclude in (False, True):
        lists = model.recommend(domain, everybody, K, exclude_seen=exclude, n_threads=1)
        lists = lists.partition_by("user_id", as_dict=True)
        for row, user in enumerate(everybody):
            ours = lists[user,]
            strategy = ours["strategy"][0]
            strategies.add((strategy, row < len(users)))
            scorer, at = part.scorer, np.array([row % len(users)])
            if strategy == "popular":
                scorer = part.popularity
            elif strategy == "cross_domain" and part.cold:
                scorer = part.cold
            (error,) = scorer.error(at)
            theirs = ask(user, K, exclude)
            ids = [back(item) for item, _ in theirs]
            rows = items.rows(pl.Series(ids, dtype=items.values.dtype))
            assert rows.min() >= 0
            assert len(set(rows)) == len(rows) == len(ours)
            exact, best = scorer.exact(at, rows[None])[0], ours["score"].to_numpy()
            assert (np.abs(exact - best) <= 2 * error).all(), (user, exclude)
            sure = items.rows(ours["item_id"])[best > best[-1] + 2 * error]
            assert set(sure) <= set(rows), (user, exclude)
            told = np.array([score for _, score in theirs])
            assert (np.abs(told - exact) <= error).all(), (user, exclude)
            if exclude and row < len(users):
                assert not set(rows) & set(part.seen.of(row))
    return strategies


def test_lists_of_parquet_files(world, tmp_path):
    run, model = world
    command.run(run, "parquet", watch=Quiet(), out=tmp_path / "out")
    for name in model.domains:
        check_lists(model, name, of_files(tmp_path / "out", name))


def test_every_strategy_is_met():
    rng = np.random.default_rng(5)
    found = set()
    for make in WORLDS:
        model = make(rng)
        for name in model.domains:
            space = Space.of(model, name, "")

            def ask(user, k, exclude, space=space, model=model, name=name):
                rows = model.users.rows(pl.Series([user], dtype=model.users.values.dtype))
                row = int(rows[0])
                vector = space.user_vectors(slice(row, row + 1))[0] if row >= 0 else space.unknown()
                scores = space.item_vectors(slice(None)) @ vector
                if exclude and row >= 0:
                    scores[space.seen.of(row)] = -np.inf
                order = np.argsort(-scores, kind="stable")[:k]
                kept = [n for n in order if scores[n] > -np.inf]
                return [(space.items.values[int(n)], scores[n]) for n in kept]

            found |= check_lists(model, name, ask)
    assert found == {
        ("personalised", True), ("cross_domain", True), ("popular", True), ("popular", False),
    }  # fmt: skip


def test_lists_of_faiss(world, tmp_path):
    run, model = world
    command.run(run, "faiss", watch=Quiet(), out=tmp_path / "out")
    for name in model.domains:
        check_lists(model, name, of_faiss(tmp_path / "out", name))


def of_type(ids):
    """As PostgreSQL and Redis give them -> as the model has them."""
    if ids.dtype == pl.Date:
        return dt.date.fromisoformat
    return int if ids.dtype.is_integer() else (lambda item: item)


def test_lists_of_pgvector(world, tables):
    run, model = world
    command.run(run, "pgvector", watch=Quiet(), url=tables)
    kept = str if model.users.values.dtype == pl.UInt64 else lambda user: user
    for name, part in model.domains.items():
        with of_postgres(tables, name, kept) as ask:
            check_lists(model, name, ask, of_type(part.items.values))


def test_lists_of_redis(world, keys):
    run, model = world
    command.run(run, "redis", watch=Quiet(), url=keys)
    for name, part in model.domains.items():
        check_lists(model, name, of_redis(keys, name), of_type(part.items.values))


def test_of_what_serves_nobody_there_are_no_numbers():
    rng = np.random.default_rng(5)
    items = Vocabulary.of(pl.Series(range(9)))
    linear = Linear.of(csr_array(np.eye(4, 9, dtype=np.float32)), np.eye(9, dtype=np.float32))
    gate = Gated(linear, vectors(rng, 4, 9, 6), np.zeros(4, bool))
    cold = vectors(rng, 4, 9, 5)
    made = domain(rng, items, gate, n_users=4, known=1, transfers=True, cold=cold)
    space = Space.of(recommender(pl.Series(range(4)), {"tv": made}), "tv", "")
    assert space.dim == 6 + 1
    np.testing.assert_array_equal(space.item_vectors(slice(None))[:, :6], gate.own.items)
    np.testing.assert_array_equal(
        space.user_vectors(slice(1, 3)), np.pad(gate.own.users[1:3], [(0, 0), (0, 1)])
    )
    np.testing.assert_array_equal(space.unknown(), [0] * 6 + [1])


def test_counts_beyond_float32_keep_their_order():
    """As `popularity` holds them: what rounding takes from a count stands beside it."""
    rng, items = np.random.default_rng(5), Vocabulary.of(pl.Series(range(3)))
    made = domain(rng, items, vectors(rng, 4, 3, 2), n_users=4, known=0, transfers=False)
    popular = ranked_by(np.array([2**24, 2**24 + 1, 5]), n_users=4)
    model = recommender(pl.Series(range(4)), {"tv": replace(made, popularity=popular)})
    space = Space.of(model, "tv", "")
    scores = space.item_vectors(slice(None)).astype(float) @ space.unknown()
    assert scores.tolist() == [2**24, 2**24 + 1, 5]


def linear_world():
    rng, n_items = np.random.default_rng(5), 9
    items = Vocabulary.of(pl.Series(range(n_items)))
    linear = Linear.of(csr_array(np.eye(4, 9, dtype=np.float32)), np.eye(9, dtype=np.float32))
    plain = domain(rng, items, vectors(rng, 4, 9, 2), n_users=4, known=1, transfers=False)
    made = domain(rng, items, linear, n_users=4, known=1, transfers=False)
    model = recommender(pl.Series(range(4)), {"tv": plain, "movie": made})
    return Recommender.of(model.users, model.domains, {"model": {"tv": "smf", "movie": "ease+smf"}})


def test_a_linear_model_is_refused_with_what_to_do(tmp_path):
    run = run_of(tmp_path / "run", linear_world())
    wanted = (
        "movie is served by EASE + SMF, a linear model, which has no small vectors; add --model "
        "smf or --model cat_art to export another of the run's models, with other lists, or write "
        "the lists themselves: musketeers recommend RUN --domain 'movie' --all-users --out FILE"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(wanted)}$"):
        command.run(run, "parquet", watch=Quiet(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    command.run(run, "parquet", watch=Quiet(), out=tmp_path / "out", domains=["tv", "tv"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tv"]


# --- what the stages made


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of all stages in which the domains are served by linear models."""
    place = tmp_path_factory.mktemp("fitted")
    data = planted(("tv", "movie"), Seed(3), n_users=120, n_items=30, known=0.8)
    for name, frame in frames(data.domains).items():
        frame.write_parquet(place / f"{name}.parquet")
    config = configuration.parse(
        {
            "dim": 8,
            "data": {"domains": {"tv": "tv.parquet", "movie": "movie.parquet"}},
            "pretrain": {"method": "bpr", "tries": 1, "max_epochs": 5},
            "cat": {"max_epochs": 2},
            "art": {"max_epochs": 3},
        },
        "test",
    )
    musketeers.fit_run(config, place, place / "run", threads=1)
    only = musketeers.fit_run(config, place, place / "smf", threads=1, only="smf")
    assert only.recommender.about["model"] == {"tv": "smf", "movie": "smf"}
    return place


class Listening(Quiet):
    """A watch that keeps what it is told."""

    def __init__(self):
        self.said, self.n_rows = [], {}

    def say(self, line):
        self.said.append(line)

    @contextmanager
    def rows(self, stage, domain):
        self.n_rows[domain] = 0

        def add(n):
            self.n_rows[domain] += n

        yield add


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smf", "cat_art"])
def test_what_a_stage_made(fitted, tmp_path, model):
    watch, found = Listening(), run_files.open_run(fitted / "run")
    command.run(fitted / "run", "parquet", watch=watch, out=tmp_path / "out", model=model)
    made = served_by(found, model, ["tv", "movie"])
    for name, part in made.domains.items():
        stages = found.stages.alone if model == "smf" else found.stages.transferred
        assert part.scorer is stages[name].factors
        check_lists(made, name, of_files(tmp_path / "out", name))
        about = json.loads((tmp_path / "out" / name / "about.json").read_text())
        assert about["model"] == model
        assert watch.n_rows[name] == len(part.items) + len(made.users)
    serves = found.recommender.about["model"]
    told = [name for name, served in serves.items() if served != model]
    assert told, "a run of which both domains are served by that tells nothing"
    assert [line.split()[1] for line in watch.said] == told
    assert all("exported is " in line for line in watch.said)


@pytest.mark.slow
def test_a_run_has_what_its_fit_made(fitted, tmp_path):
    wanted = "the run made no CAT-ART of tv; leave --model out, or fit one: musketeers fit"
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        command.run(fitted / "smf", "parquet", watch=Quiet(), out=tmp_path, model="cat_art")
    watch = Listening()
    command.run(fitted / "smf", "parquet", watch=watch, out=tmp_path / "out", model="smf")
    assert not watch.said
    with pytest.raises(ConfigError, match="model is 'ease'; give smf or cat_art, or leave it out"):
        command.run(fitted / "run", "parquet", watch=Quiet(), out=tmp_path, model="ease")


# --- files


def test_files_have_ids_in_their_type_and_vectors_of_fixed_size(tmp_path):
    model = bytes_and_dates(np.random.default_rng(5))
    run = run_of(tmp_path / "run", model)
    said = command.run(run, "parquet", watch=Quiet(), out=tmp_path / "out")
    digest = hashlib.sha256((run / "model" / "manifest.json").read_bytes()).hexdigest()
    assert said == f"{tmp_path / 'out'}: tv (4 numbers a vector), model version {digest[:12]}"
    vector = pl.Array(pl.Float32, 4)
    tables = {
        path.stem: pl.read_parquet(path) for path in (tmp_path / "out" / "tv").glob("*.parquet")
    }
    assert tables["users"].schema == {
        "user_id": pl.Binary, "strategy": pl.Enum(STRATEGIES), "vector": vector,
    }  # fmt: skip
    assert tables["items"].schema == {"item_id": pl.Date, "vector": vector}
    assert tables["seen"].schema == {"user_id": pl.Binary, "item_id": pl.Date}
    seen = model.domains["tv"].seen
    assert tables["seen"]["user_id"].equals(model.users.ids(seen.users()), check_names=False)
    about = json.loads((tmp_path / "out" / "tv" / "about.json").read_text())
    assert about.pop("use").startswith("The score of an item for a user is the inner product")
    assert about == {
        "domain": "tv", "model": "cat_art", "model_version": digest[:12], "dims": 4,
        "metric": "inner product", "users": 40, "items": 30, "seen": len(seen),
        "unknown": [0.0, 0.0, 0.0, 1.0],
    }  # fmt: skip


@pytest.mark.parametrize("to", ["parquet", "faiss"])
def test_a_folder_is_never_overwritten_and_never_half_there(tmp_path, to):
    run = run_of(tmp_path / "run", smf_with_text_ids(np.random.default_rng(5)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ArtifactError, match="already exists"):
        command.run(run, to, watch=Quiet(), out=tmp_path / "out")
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, allowed[1]))
    try:
        with pytest.raises(ArtifactError, match="was not written; free some space"):
            command.run(run, to, watch=Quiet(), out=tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_large_table_is_written_in_pieces(tmp_path):
    """Of 64 MB of vectors a small part is in memory a second time."""
    n_users, dim = 250_000, 64
    users = np.ones((n_users, dim), np.float32)
    items = Vocabulary.of(pl.Series(range(5)))
    nothing = Interactions.from_csr(
        np.zeros(n_users + 1, np.int64), np.empty(0, np.int32), n_items=5
    )
    scorer = Factors(users, np.ones((5, dim), np.float32))
    made = DomainModel(
        items, scorer, nothing, popularity(nothing), np.ones(n_users, bool), transfers=False
    )
    space = Space.of(recommender(pl.Series(range(n_users)), {"tv": made}), "tv", "")
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    parquet.write(tmp_path / "out", [space], untold)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak + pool.max_memory() - before < users.nbytes
    file = pq.ParquetFile(tmp_path / "out" / "tv" / "users.parquet")
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sum(sizes) == n_users
    assert 10_000 < sizes[0] < 100_000


# --- PostgreSQL


def shown(url, query):
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


def two_domains(rng, *, last_item):
    """The second has one item that is given."""
    models = {}
    for name in ("tv", "zoo"):
        ids = ["a", "b", last_item] if name == "zoo" else ["a", "b", "c"]
        items = Vocabulary.of(pl.Series(ids))
        models[name] = domain(
            rng, items, vectors(rng, 20, 3, 4), n_users=20, known=0.5, transfers=False
        )
    return recommender(pl.Series([f"u{n}" for n in range(20)]), models)


def test_tables_are_replaced_at_once_and_read_until_then(tmp_path, tables):
    rng = np.random.default_rng(5)
    runs = [run_of(tmp_path / f"{n}", two_domains(rng, last_item="c")) for n in range(2)]
    old, new = (version_of(run / "model") for run in runs)
    command.run(runs[0], "pgvector", watch=Quiet(), url=tables)
    names = [
        f"musketeers_{name}_{part}"
        for name in ("tv", "zoo") for part in ("about", "items", "seen", "users")
    ]  # fmt: skip
    assert [name for (name,) in shown(tables, TABLES)] == names
    versions = "SELECT a.model_version, b.model_version FROM musketeers_tv_about a, "
    versions += "musketeers_zoo_about b"

    class Looking(Listening):
        @contextmanager
        def rows(self, stage, domain):
            with super().rows(stage, domain) as add:
                yield lambda n: (add(n), self.said.append(shown(tables, versions)))

    watch = Looking()
    said = command.run(runs[1], "pgvector", watch=watch, url=tables)
    assert watch.said == [[(old, old)]] * 4
    assert shown(tables, versions) == [(new, new)]
    assert [name for (name,) in shown(tables, TABLES)] == names
    assert said.startswith("postgresql://")
    command.run(runs[0], "pgvector", watch=Quiet(), url=tables, prefix="Other's", domains=["tv"])
    assert ("Other's_tv_items",) in shown(tables, TABLES)
    assert shown(tables, versions) == [(new, new)]


def test_an_export_that_fails_leaves_the_tables(tmp_path, tables):
    rng = np.random.default_rng(5)
    good = run_of(tmp_path / "good", two_domains(rng, last_item="c"))
    bad = run_of(tmp_path / "bad", two_domains(rng, last_item="no text of PostgreSQL: \0"))
    command.run(good, "pgvector", watch=Quiet(), url=tables)
    before = shown(tables, TABLES)
    with pytest.raises(ArtifactError, match=r'encoding "UTF8": 0x00.*, old tables stand$'):
        command.run(bad, "pgvector", watch=Quiet(), url=tables)
    assert shown(tables, TABLES) == before
    version = shown(tables, "SELECT model_version FROM musketeers_tv_about")
    assert version == [(version_of(good / "model"),)]


def test_others_who_use_the_old_tables_keep_the_new_ones_out(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(pgvector, "_PATIENCE", 0.5)
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    command.run(run, "pgvector", watch=Quiet(), url=tables)
    with psycopg.connect(tables) as reader:
        reader.execute("SELECT FROM musketeers_tv_items")
        with pytest.raises(ArtifactError, match="lock timeout"):
            command.run(run, "pgvector", watch=Quiet(), url=tables)
    with psycopg.connect(tables) as owner:
        owner.execute("CREATE VIEW theirs AS SELECT * FROM musketeers_zoo_items")
    with pytest.raises(ArtifactError, match="other objects depend on them"):
        command.run(run, "pgvector", watch=Quiet(), url=tables)


@contextmanager
def asked_all_along(ask):
    """What `ask` gives, again and again in another thread, until the block ends."""
    answers, ended = [], threading.Event()

    def reader():
        while not ended.is_set():
            answers.append(ask())

    # what goes wrong in there is a warning, and so an error
    thread = threading.Thread(target=reader)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


def alternating(tmp_path):
    """Two runs that differ in an item, and each version with its items."""
    rng = np.random.default_rng(5)
    runs = [run_of(tmp_path / name, two_domains(rng, last_item=name)) for name in ("x", "y")]
    return runs, {version_of(run / "model"): {"a", "b", run.name} for run in runs}


def test_whoever_reads_tables_while_they_are_replaced_reads_one_export(tmp_path, tables):
    runs, wanted = alternating(tmp_path)
    command.run(runs[0], "pgvector", watch=Quiet(), url=tables)
    query = LIST.format(
        **{part: f"musketeers_zoo_{part}" for part in ("users", "items", "seen", "about")}
    )
    query = query.replace(
        "item_id, -", "item_id, (SELECT model_version FROM musketeers_zoo_about), -"
    )
    with psycopg.connect(tables, autocommit=True) as reader:

        def ask():
            values = {"user": "u3", "k": 3, "exclude": False}
            rows = reader.execute(query, values).fetchall()
            return {version for _, version, _ in rows}, {item for item, _, _ in rows}

        with asked_all_along(ask) as answers:
            for n in range(1, 9):
                command.run(runs[n % 2], "pgvector", watch=Quiet(), url=tables)
    assert {version for versions, _ in answers for version in versions} == set(wanted)
    for versions, items in answers:
        (version,) = versions
        assert items == wanted[version]


def test_a_database_without_the_extension(tmp_path, tables):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    with psycopg.connect(tables) as owner:
        owner.execute("DROP EXTENSION vector")
    with pytest.raises(ConfigError, match="lacks the extension pgvector; install it on the server"):
        command.run(run, "pgvector", watch=Quiet(), url=tables)


def wide(dim):
    rng = np.random.default_rng(5)
    items = Vocabulary.of(pl.Series(range(3)))
    made = domain(rng, items, vectors(rng, 2, 3, dim - 1), n_users=2, known=1, transfers=False)
    return Space.of(recommender(pl.Series(range(2)), {"tv": made}), "tv", "")


def test_the_widest_vectors(tables):
    pgvector.write(tables, "wide", [wide(16_000)], untold)
    assert shown(tables, "SELECT vector_dims(vector) FROM wide_tv_items") == [(16_000,)] * 3
    with pytest.raises(ConfigError, match="tv: vectors of 16,001 numbers are more than the 16,000"):
        pgvector.write(tables, "wide", [wide(16_001)], untold)


@pytest.mark.parametrize(
    ("dim", "kind", "note"),
    [
        (2_000, "vector", None),
        (2_001, "halfvec", "these of 2,001 can be indexed as halfvec, less exactly"),
        (4_000, "halfvec", "these of 4,000 can be indexed as halfvec, less exactly"),
        (4_001, None, "these of 4,001 can be indexed not at all"),
    ],
)
def test_what_is_said_of_an_index_is_what_pgvector_takes(tables, dim, kind, note):
    space = wide(dim)
    found = pgvector.index_note(space)
    assert found is None if note is None else note in found
    pgvector.write(tables, "wide", [space], untold)
    for name in ("vector", "halfvec"):
        column = f"((vector::{name}({dim})) {name}_ip_ops)"
        fits = name == kind or (name == "halfvec" and kind == "vector")
        with (
            psycopg.connect(tables) as owner,
            suppress(psycopg.Error) if not fits else nullcontext(),
        ):
            owner.execute(f"CREATE INDEX ON wide_tv_items USING hnsw {column}")
            assert fits


def test_a_name_that_postgresql_would_cut_off(tables):
    space = wide(3)
    longest = "p" * (63 - len("_tv_items__new"))
    pgvector.write(tables, longest, [space], untold)
    assert (f"{longest}_tv_items",) in shown(tables, TABLES)
    with pytest.raises(ConfigError, match="64 bytes, at most 63 of which count; give a shorter"):
        pgvector.write(tables, longest + "p", [space], untold)


# --- Redis


@pytest.fixture
def client(keys):
    with redis_py.Redis.from_url(keys, decode_responses=True) as found:
        yield found


def generations(client, pattern="musketeers:*:*"):
    return {key.split(":")[2] for key in client.scan_iter(pattern)}


def test_a_pointer_moves_when_everything_is_there(tmp_path, keys, client):
    rng = np.random.default_rng(5)
    runs = [run_of(tmp_path / f"{n}", two_domains(rng, last_item="c")) for n in range(2)]
    command.run(runs[0], "redis", watch=Quiet(), url=keys)
    old = [client.get(f"musketeers:{name}") for name in ("tv", "zoo")]
    assert len(set(old)) == 1
    assert old[0].startswith(version_of(runs[0] / "model") + "-")
    client.set("musketeers:tv:mine", "stays")
    client.set("musketeers:tvs:000000000000-00000000:item:a", "stays")

    class Looking(Listening):
        @contextmanager
        def rows(self, stage, domain):
            yield lambda n: self.said.append(client.mget("musketeers:tv", "musketeers:zoo"))

    watch = Looking()
    command.run(runs[1], "redis", watch=watch, url=keys)
    assert watch.said[:4] == [old] * 4
    new = client.mget("musketeers:tv", "musketeers:zoo")
    assert new[0] == new[1] != old[0]
    for key in client.scan_iter("*"):
        gone = 0 < client.ttl(key) <= redis_export.GRACE
        assert gone == (f":{old[0]}:" in key), key
    assert client.hget(f"musketeers:tv:{old[0]}:about", "model_version")
    assert not client.exists("musketeers:tv:lock", "musketeers:zoo:lock")


def test_whoever_reads_keys_while_they_are_replaced_reads_one_export(tmp_path, keys, client):
    runs, wanted = alternating(tmp_path)
    command.run(runs[0], "redis", watch=Quiet(), url=keys)

    def ask():
        place = f"musketeers:zoo:{client.get('musketeers:zoo')}:"
        items = client.lrange(f"{place}items", 0, -1)
        vectors = [raw(keys).hget(f"{place}item:{item}", "vector") for item in items]
        assert all(len(vector) == 5 * 4 for vector in vectors)
        return client.hget(f"{place}about", "model_version"), set(items)

    with asked_all_along(ask) as answers:
        for n in range(1, 9):
            command.run(runs[n % 2], "redis", watch=Quiet(), url=keys)
    assert {version for version, _ in answers} == set(wanted)
    assert all(items == wanted[version] for version, items in answers)


def test_an_export_that_fails_leaves_the_pointer_and_nothing_else(tmp_path, keys, client):
    rng = np.random.default_rng(5)
    command.run(
        run_of(tmp_path / "old", two_domains(rng, last_item="c")), "redis", watch=Quiet(), url=keys
    )
    before = {key: client.dump(key) for key in raw(keys).scan_iter("*")}
    big = vectors(rng, 9_000, 20, 64)
    items = Vocabulary.of(pl.Series(range(20)))
    made = domain(rng, items, big, n_users=9_000, known=1, transfers=False)
    run = run_of(tmp_path / "new", recommender(pl.Series(range(9_000)), {"tv": made}))
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
    try:
        with pytest.raises(ArtifactError, match=r"'maxmemory'.*what was there stands$"):
            command.run(run, "redis", watch=Quiet(), url=keys)
    finally:
        client.config_set("maxmemory", 0)
    assert {key: client.dump(key) for key in raw(keys).scan_iter("*")} == before
    command.run(run, "redis", watch=Quiet(), url=keys)


def test_one_export_at_a_time(tmp_path, keys, client):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    client.set("musketeers:zoo:lock", "another")
    with pytest.raises(
        ArtifactError, match="another export is writing musketeers:zoo, or was killed"
    ):
        command.run(run, "redis", watch=Quiet(), url=keys)
    assert list(client.scan_iter("*")) == ["musketeers:zoo:lock"]

    class Stealing(Quiet):
        @contextmanager
        def rows(self, stage, domain):
            yield lambda n: client.set("musketeers:zoo:lock", "another")

    client.delete("musketeers:zoo:lock")
    with pytest.raises(ArtifactError, match="took too long"):
        command.run(run, "redis", watch=Stealing(), url=keys)
    assert list(client.scan_iter("*")) == ["musketeers:zoo:lock"]


def test_what_a_killed_export_left_goes_with_the_next(tmp_path, keys, client):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    left = "musketeers:tv:0123456789ab-01234567:item:a"
    client.hset(left, "vector", "half")
    command.run(run, "redis", watch=Quiet(), url=keys)
    assert 0 < client.ttl(left) <= redis_export.GRACE


def test_the_index_of_a_query_engine(tmp_path, keys, client):
    try:
        client.execute_command("FT._LIST")
    except redis_py.ResponseError:
        pytest.skip("this redis-server has no query engine")
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    command.run(run, "redis", watch=Quiet(), url=keys)
    place = f"musketeers:tv:{client.get('musketeers:tv')}:"
    vector = raw(keys).hget(f"{place}user:u3", "vector")
    found = raw(keys).execute_command(
        "FT.SEARCH", f"{place}index", "*=>[KNN 3 @vector $vector AS distance]", "PARAMS", 2,
        "vector", vector, "SORTBY", "distance", "LIMIT", 0, 3, "RETURN", 1, "item_id",
        "DIALECT", 2,
    )  # fmt: skip
    ours = of_redis(keys, "tv")("u3", 3, False)
    assert [name.decode() for name in found[2::2]] == [f"{place}item:{item}" for item, _ in ours]


# --- secrets, options, packages


REFUSED = {
    "pgvector": [
        "postgresql://ann:s3cret@127.0.0.1:1/shop",
        "postgresql://ann:s3%2Fcret@127.0.0.1:1/shop",
        "postgresql://ann:s3/cret@127.0.0.1/shop",
        "postgresql://ann@127.0.0.1:1/shop?password=s3cret",
        "postgresql://ann@127.0.0.1:1/shop?s3cret=s3cret",
        "mysql://ann:s3cret@127.0.0.1:1/shop",
        "s3cret",
    ],
    "redis": [
        "redis://:s3cret@127.0.0.1:1",
        "redis://:s3/cret@127.0.0.1:1",
        "redis://:s3cret@127.0.0.1:1?s3cret=s3cret",
        "redis://:s3cret@127.0.0.1:1/0?health_check_interval=s3cret",
        "http://:s3cret@127.0.0.1:1",
    ],
}


@pytest.mark.parametrize(("to", "url"), [(to, url) for to, urls in REFUSED.items() for url in urls])
def test_what_goes_wrong_is_one_line_without_the_secret(tmp_path, capsys, to, url):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    assert musketeers_command("export", str(run), "--to", to, "--url", url) == 1
    said = capsys.readouterr()
    assert "s3" not in said.err + said.out
    assert "cret" not in said.err + said.out
    assert said.err.startswith("musketeers: ")
    assert said.err.count("\n") == 1


def test_secrets_are_hidden_in_what_others_say():
    url = "redis://ann:s3%2Fcret@h:1/0?sslpassword=more&db=1"
    said = without_secrets("no\n s3/cret at s3%2Fcret,\tmore or db 1", url)
    assert said == "no *** at ***, *** or db 1"
    assert without_secrets("as it is", "redis://h:1/0") == "as it is"


def test_a_wrong_password(tmp_path, keys, capsys):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    wrong = keys.replace("op%2Fen", "s3cret")
    assert musketeers_command("export", str(run), "--to", "redis", "--url", wrong) == 1
    said = capsys.readouterr().err
    assert "invalid username-password pair" in said
    assert "s3cret" not in said


def musketeers_command(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["musketeers", *words])
        try:
            main()
        except SystemExit as ended:
            return ended.code or 0


def test_the_address_may_stand_in_a_variable(tmp_path, keys, client, monkeypatch, capsys):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    monkeypatch.setenv("MUSKETEERS_EXPORT_URL", keys)
    monkeypatch.chdir(tmp_path)
    words = ("export", str(run), "--to", "redis", "--domain", "tv", "--prefix", "mine")
    assert musketeers_command(*words) == 0
    said = capsys.readouterr()
    assert re.fullmatch(
        r"redis://127\.0\.0\.1:\d+/0: tv \(5 numbers a vector\), model version [0-9a-f]{12}\n",
        said.out,
    )
    assert "the server has no query engine" in said.err or client.execute_command("FT._LIST")
    assert musketeers_command("export", str(run), "--to", "parquet", "--out", "files") == 0
    assert client.exists("mine:tv")
    assert not client.exists("mine:zoo")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "parquet"}, ConfigError, "--to parquet writes files; give --out DIR"),
        ({"to": "faiss", "url": "u"}, ConfigError, "--to faiss writes files; give --out DIR"),
        ({"to": "redis"}, ConfigError, "--to redis writes to a server; give --url URL"),
        ({"to": "pgvector", "out": "x"}, ConfigError, "--to pgvector writes to a server"),
        (
            {"to": "parquet", "out": "x", "domains": ["tw"]},
            UnknownNameError,
            "domain 'tw' is not among",
        ),
        ({"to": "parquet", "out": "x", "run": "none"}, RunError, "holds no run"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    run_of(Path("run"), two_domains(np.random.default_rng(5), last_item="c"))
    given = {**options, **({"out": Path(options["out"])} if "out" in options else {})}
    with pytest.raises(error, match=re.escape(message)):
        command.run(Path(given.pop("run", "run")), given.pop("to"), watch=Quiet(), **given)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("to", "package"), [("faiss", "faiss"), ("pgvector", "psycopg"), ("redis", "redis")]
)
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, to, package):
    run = run_of(tmp_path / "run", two_domains(np.random.default_rng(5), last_item="c"))
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"musketeers.exports.{to}", raising=False)
    monkeypatch.delattr(f"musketeers.exports.{to}", raising=False)
    place = {"out": tmp_path / "out"} if to == "faiss" else {"url": "redis://x"}
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'musketeers[{to}]'")):
        command.run(run, to, watch=Quiet(), **place)


# --- the page


def raw(url):
    return redis_py.Redis.from_url(url)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Runs the page's sections in one folder, each as a shell does."""
    place = tmp_path_factory.mktemp("page")
    data = planted(("tv", "movie"), Seed(3), n_users=120, n_items=30, known=0.8)
    for name, frame in frames(data.domains).items():
        frame.write_parquet(place / f"{name}.parquet")
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    programs = databases.postgres_programs()
    path = [Path(sys.executable).parent, *([programs] if programs else []), os.environ["PATH"]]
    env = {**os.environ, "PATH": ":".join(map(str, path)), "OMP_NUM_THREADS": "1"}

    def run(section, **more):
        script = "\n".join(re.findall(r"^```bash\n(.*?)^```$", sections[section], re.M | re.S))
        done = subprocess.run(
            ["bash", "-e", "-c", script], cwd=place, env={**env, **more}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = run("A run to export")
    model = Recommender.load(place / "runs" / "first" / "model")
    lists = model.recommend("tv", ["user-017", "somebody new"], k=5)
    ours = {user: part["item_id"].to_list() for (user,), part in lists.group_by("user_id")}
    assert all(item in listed for item in ours["user-017"])
    return run, ours


def found(text):
    return re.findall(r"tv-\w+", text)


@pytest.mark.slow
def test_the_page_on_parquet(page):
    run, ours = page
    assert found(run("Parquet").replace("tv (", "")) == ours["user-017"] + ours["somebody new"]


@pytest.mark.slow
def test_the_page_on_faiss(page):
    run, ours = page
    assert found(run("Faiss")) == ours["user-017"]


@pytest.mark.slow
def test_the_page_on_pgvector(page, tables):
    run, ours = page
    said = run("PostgreSQL with pgvector", DATABASE_URL=tables)
    assert found(said) == ours["user-017"] + ours["somebody new"]
    assert "cat_art" in said


@pytest.mark.slow
def test_the_page_on_redis(page, keys):
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli: apt install redis-tools")
    run, ours = page
    assert found(run("Redis", REDIS_URL=keys)) == ours["user-017"] + ours["somebody new"]
