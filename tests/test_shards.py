import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.config import DataConfig, SplitConfig
from musketeers.data import shards
from musketeers.data.readers import from_frames
from musketeers.data.shards import read_about, read_shard, shard_of, write_shards
from musketeers.data.splits import split
from musketeers.errors import ArtifactError, ConfigError
from musketeers.seeding import Seed

SPLIT = SplitConfig()
# what lies on disk depends on these
WHERE = [1, 2, 2, 0, 3, 4, 3, 1, 4, 0, 2, 3, 4, 0, 0, 0, 3, 2, 0, 0]
TEXTS = [0, 93, 383, 654]
COLUMNS = DataConfig(domains={"a": "", "b": ""}, min_user=3, min_item=1)


def frames(n=400, kind=pl.Int64):
    make = np.random.default_rng(5)
    found = {}
    for name, n_users in (("a", 30), ("b", 20)):
        users = pl.Series(make.integers(0, n_users, n)).cast(pl.Int32)
        users = users.cast(pl.String).cast(kind) if kind == pl.Binary else users.cast(kind)
        found[name] = pl.DataFrame({"user_id": users, "item_id": make.integers(0, 40, n)})
    return found


def read(found=None, config=SPLIT):
    reading = from_frames(found or frames(), COLUMNS)
    return reading, split(reading.domains, config, Seed(1))


def written(folder, n_shards=3, **more):
    reading, splits = read(**more)
    write_shards(reading.domains, splits, reading.sources, folder, n_shards, inputs="these")
    return reading, splits


def triples(domains, splits):
    """(domain, user, item, purpose) of all pairs, as a caller would see them."""
    return sorted(
        (name, user, item, part)
        for name, found in splits.items()
        for part in ("train", "valid", "test")
        for table in [getattr(found, part)]
        for user, item in zip(
            domains.users.ids(table.users()).to_list(),
            domains.domains[name].items.ids(table.items).to_list(),
            strict=True,
        )
    )


# --- which shard


def test_where_a_user_belongs_never_changes():
    assert shard_of(pl.Series(range(20)), 5).tolist() == WHERE
    assert shard_of(pl.Series(["", "a", "é", "user-0000123"]), 1000).tolist() == TEXTS


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(1, 9))
def test_an_id_belongs_to_one_shard_however_it_is_typed(ids, n_shards):
    numbers = pl.Series(ids, dtype=pl.Int64)
    expected = shard_of(numbers, n_shards)
    text = numbers.cast(pl.String)
    assert (shard_of(text, n_shards) == expected).all()
    assert (shard_of(text.cast(pl.Categorical), n_shards) == expected).all()
    assert (shard_of(text.cast(pl.Binary), n_shards) == expected).all()
    assert ((expected >= 0) & (expected < n_shards)).all()


def test_shards_are_of_about_one_size():
    counts = np.bincount(shard_of(pl.Series(range(80_000)), 8))
    assert (abs(counts - 10_000) < 400).all()


# --- files


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt8, pl.String, pl.Binary, pl.Date])
@pytest.mark.parametrize("n_shards", [1, 3, 200])
def test_all_shards_together_are_what_was_written(tmp_path, n_shards, kind):
    reading, splits = written(tmp_path / "data", n_shards, found=frames(kind=kind))
    parts, users = [], []
    for shard in range(n_shards):
        domains, own = read_shard(tmp_path / "data", shard)
        assert domains.users.values.dtype == reading.domains.users.values.dtype
        assert domains.users.values.is_sorted()
        users += domains.users.values.to_list()
        parts += triples(domains, own)
        for name, domain in domains.domains.items():
            assert domain.items.values.equals(reading.domains.domains[name].items.values)
            assert len(domain.pairs) == sum(
                len(getattr(own[name], part)) for part in ("train", "valid", "test")
            )
    assert sorted(parts) == triples(reading.domains, splits)
    assert sorted(users) == reading.domains.users.values.to_list()
    if n_shards == 1:
        np.testing.assert_array_equal(
            domains.domains["a"].pairs.items, reading.domains.domains["a"].pairs.items
        )


def test_a_user_of_many_batches_is_one_user(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_ROWS", 7)
    reading, splits = written(tmp_path / "data", 2)
    parts = [triples(*read_shard(tmp_path / "data", shard)) for shard in range(2)]
    assert sorted(parts[0] + parts[1]) == triples(reading.domains, splits)


def test_a_folder_says_what_it_holds(tmp_path):
    reading, _ = written(tmp_path / "data")
    about = read_about(tmp_path / "data")
    assert (about.shards, about.inputs) == (3, "these")
    found, domain = about.domains["a"], reading.domains.domains["a"]
    assert found.source() == reading.sources["a"]
    assert (found.items, found.pairs) == (len(domain.items), len(domain.pairs))
    assert found.users == domain.pairs.known_users().sum()
    assert read_about(tmp_path / "none") is None
    (tmp_path / "empty").mkdir()
    assert read_about(tmp_path / "empty") is None


# --- what is refused


def test_cold_users_and_no_shards_are_refused(tmp_path):
    reading, splits = read(config=SplitConfig(cold=0.5))
    with pytest.raises(ConfigError, match=r"has cold users, .*; set split\.cold = 0"):
        write_shards(reading.domains, splits, reading.sources, tmp_path / "data", 2)
    with pytest.raises(ConfigError, match="shards is 0; use 1 or more"):
        write_shards(reading.domains, splits, reading.sources, tmp_path / "data", 0)
    assert not list(tmp_path.iterdir())


def test_a_shard_that_there_is_not_is_refused(tmp_path):
    written(tmp_path / "data")
    with pytest.raises(ConfigError, match="has shards 0 to 2, none 3"):
        read_shard(tmp_path / "data", 3)
    with pytest.raises(ArtifactError, match="holds no data in shards"):
        read_shard(tmp_path / "none", 0)


def changed(**columns):
    def change(path):
        pl.read_parquet(path).with_columns(**columns).write_parquet(path)

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("about.json", lambda path: path.unlink(), "cannot be read: No such file"),
        ("about.json", lambda path: path.write_text("{"), "Invalid JSON"),
        (
            "about.json",
            lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2})),
            "'format': Input should be 1",
        ),
        ("a/items.parquet", lambda path: path.unlink(), "cannot be read: No such file"),
        ("a/items.parquet", lambda path: path.write_bytes(b"PAR1"), "no Parquet file"),
        ("a/shard-1.parquet", lambda path: path.unlink(), "cannot be read: "),
        ("a/shard-1.parquet", lambda path: path.write_bytes(b"PAR1"), "cannot be read: "),
        ("a/shard-1.parquet", changed(more=pl.lit(1)), "has other columns than user, item"),
        ("a/shard-1.parquet", changed(item=pl.col("item").cast(pl.Int64)), "has other columns"),
        ("a/shard-1.parquet", changed(item=pl.lit(400, pl.Int32)), "not as they were written"),
        ("a/shard-1.parquet", changed(item=pl.col("item").reverse()), "not as they were written"),
        ("a/shard-1.parquet", changed(user=pl.col("user").reverse()), "not as they were written"),
        ("a/shard-1.parquet", changed(purpose=pl.lit(3, pl.Int8)), "not as they were written"),
        ("a/shard-1.parquet", changed(user=pl.lit(None, pl.Int64)), "not as they were written"),
        ("a/shard-1.parquet", changed(user=pl.col("user") + 100), "holds users of another"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, name, change, message):
    written(tmp_path / "data")
    change(tmp_path / "data" / name)
    with pytest.raises(ArtifactError) as caught:
        read_shard(tmp_path / "data", 1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
