import datetime as dt
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.data import encoding
from musketeers.data.columns import alike
from musketeers.data.encoding import Column
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import DataError


def of(values, dtype):
    return st.lists(values, min_size=1).map(lambda ids: pl.Series(ids, dtype=dtype))


IDS = st.one_of(
    of(st.integers(-3, 3), pl.Int16),
    of(st.integers(-(2**63), 2**63 - 1), pl.Int64),
    of(st.integers(0, 2**64 - 1), pl.UInt64),
    of(st.integers(-(2**100), 2**100), pl.Int128),
    of(st.text(st.characters(codec="utf-8")).filter(str.strip), pl.String),
    # the same for the first eight bytes, and longer than those that polars holds in place
    of(st.text("ab", max_size=9).map("a long beginning ".__add__), pl.String),
    of(st.binary(min_size=1, max_size=20), pl.Binary),
    of(st.dates(), pl.Date),
    of(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)), pl.Datetime("us")),
    of(st.booleans(), pl.Boolean),
    of(st.decimals(-99, 99, places=2), pl.Decimal(10, 2)),
)


def encoded(chunks, *, numbers=False):
    column = Column()
    for chunk in chunks:
        column.add(chunk)
    return column.rows(numbers=numbers)


@given(IDS, st.lists(st.integers(1, 9)))
def test_rows_are_those_of_a_vocabulary_of_the_whole_column(ids, sizes):
    chunks = []
    for size in [*sizes, len(ids)]:
        chunks.append(ids[:size])
        ids = ids[size:]
    chunks = [chunk for chunk in chunks if len(chunk)]
    vocabulary, rows = encoded(chunks)
    whole = pl.concat(chunks)
    assert vocabulary.values.equals(Vocabulary.of(whole).values)
    assert vocabulary.values.dtype == whole.dtype
    assert vocabulary.ids(rows).equals(whole)


@pytest.mark.parametrize("make", [lambda n: n * 0x9E3779B97F4A7C15 % 2**62, lambda n: f"id-{n}"])
def test_many_ids_that_come_in_every_order(make):
    ids = pl.Series([make(n) for n in range(30_000)])
    order = np.random.default_rng(0).permutation(np.tile(np.arange(len(ids)), 2))
    whole = ids.gather(order)
    vocabulary, rows = encoded([whole[:100], whole[100:40_000], whole[40_000:]])
    assert len(vocabulary) == len(ids)
    assert vocabulary.ids(rows).equals(whole)


def test_texts_of_one_hash_are_told_apart():
    ids = ["ab", "b", "abc", "b", "ab", "", "abd"]
    starts = np.cumsum([0, *map(len, ids)])
    texts = np.frombuffer("".join(ids).encode(), np.uint8)
    slots, same_hash = np.full((16, 2), -1), np.full(len(ids), 7)
    codes, new = np.empty((2, len(ids)), np.int32)
    known_starts, known = np.zeros(10, np.int64), np.empty(20, np.uint8)
    reached, n = encoding._encode(
        same_hash, starts, texts, slots, known_starts, known, codes, new, 0, 0, 0
    )
    assert (reached, n) == (len(ids), 5)
    assert codes.tolist() == [0, 1, 2, 1, 0, 3, 4]
    assert new[:n].tolist() == [0, 1, 2, 5, 6]
    assert bytes(known[: known_starts[n]]) == b"ababcabd".replace(b"ab", b"abb", 1)


INTEGERS = st.sampled_from([pl.Int8, pl.UInt8, pl.Int32, pl.UInt32, pl.Int64, pl.UInt64])


@given(st.lists(st.tuples(INTEGERS, st.lists(st.integers(0, 100), min_size=1)), min_size=1))
def test_chunks_of_different_width_are_one_column(chunks):
    chunks = [pl.Series(ids, dtype=dtype) for dtype, ids in chunks]
    vocabulary, rows = encoded(chunks)
    whole = pl.concat(alike(chunks))
    assert vocabulary.values.equals(Vocabulary.of(whole).values)
    assert vocabulary.ids(rows).equals(whole)


def test_text_becomes_integers_only_if_all_of_it_can():
    first, usual, odd = (pl.Series(ids) for ids in (["10", "9"], ["9", "-3"], ["09", "9"]))
    vocabulary, rows = encoded([first, usual], numbers=True)
    assert vocabulary.values.to_list() == [-3, 9, 10]
    assert rows.tolist() == [2, 1, 1, 0]
    vocabulary, rows = encoded([first, odd], numbers=True)
    assert vocabulary.values.to_list() == ["09", "10", "9"]
    assert rows.tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", None], "ids are missing"),
        (["a", "  "], "ids are missing"),
        ([b"a", b""], "ids are missing"),
        (["a", "é" * 129], "has 258 bytes, more than 256"),
        ([1, None], "ids are missing"),
    ],
)
def test_faults_are_found_in_any_chunk(ids, message):
    column = Column()
    column.add(pl.Series(ids[:1]))
    with pytest.raises(DataError, match=message):
        column.add(pl.Series(ids))


def test_decimals_of_every_length_are_ids():
    ids = pl.Series([Decimal(f"{n}.5") for n in (10**20, 1, -(10**20), 1)])
    vocabulary, rows = encoded([ids])
    assert rows.tolist() == [2, 1, 0, 1]
    assert vocabulary.ids(rows).equals(ids)
