import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, DataError

IDS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1).map(pl.Series),
    st.lists(st.integers(0, 255), min_size=1).map(lambda x: pl.Series(x, dtype=pl.UInt8)),
    st.lists(st.integers(0, 2**64 - 1), min_size=1).map(lambda x: pl.Series(x, dtype=pl.UInt64)),
    st.lists(st.text(st.characters(codec="utf-8")), min_size=1).map(
        lambda x: pl.Series(x, dtype=pl.String)
    ),
    st.lists(st.binary(), min_size=1).map(lambda x: pl.Series(x, dtype=pl.Binary)),
    st.lists(st.dates(), min_size=1).map(lambda x: pl.Series(x, dtype=pl.Date)),
    st.lists(st.booleans(), min_size=1).map(pl.Series),
)


@given(IDS)
def test_ids_survive_the_way_to_rows_and_back(ids):
    vocabulary = Vocabulary.of(ids)
    assert len(vocabulary) == len(set(ids))
    back = vocabulary.ids(vocabulary.rows(ids))
    assert back.dtype == ids.dtype
    assert back.to_list() == ids.to_list()


@given(IDS, st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_order_or_repeats(ids, random):
    shuffled = ids.to_list() * 2
    random.shuffle(shuffled)
    other = Vocabulary.of(pl.Series(shuffled, dtype=ids.dtype))
    assert other.values.to_list() == Vocabulary.of(ids).values.to_list() == sorted(set(ids))


@given(IDS)
def test_bytes_round_trip(ids):
    vocabulary = Vocabulary.of(ids)
    back = Vocabulary.from_bytes(vocabulary.to_bytes())
    assert back.values.dtype == ids.dtype
    assert back.values.to_list() == vocabulary.values.to_list()


@given(st.lists(st.integers(-5, 400), max_size=3))
def test_few_ids_in_a_large_vocabulary_take_another_way_to_the_same_rows(query):
    numbers = Vocabulary.of(pl.Series(range(0, 300, 3)))
    texts = Vocabulary.of(pl.Series([f"{i:03}" for i in range(0, 300, 3)]))
    expected = [q // 3 if q in range(0, 300, 3) else -1 for q in query]
    assert numbers.rows(pl.Series(query, dtype=pl.Int64)).tolist() == expected
    assert texts.rows(pl.Series([f"{q:03}" for q in query], dtype=pl.String)).tolist() == expected


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        tuple,
        np.array,
        pd.Series,
        pd.Index,
        pl.Series,
        pa.array,
        lambda x: pa.chunked_array([x]),
    ],
)
@pytest.mark.parametrize("query", [[7, 8], ["7", "8"]])
def test_any_column_is_a_query(wrap, query):
    assert Vocabulary.of(pl.Series([7, 9])).rows(wrap(query)).tolist() == [0, -1]
    assert Vocabulary.of(pl.Series(["7", "9"])).rows(wrap(query)).tolist() == [0, -1]


@pytest.mark.parametrize(
    ("values", "query", "rows"),
    [
        ([7], ["007", "+7", " 7", "7.0", "", None, str(2**70)], [-1] * 7),
        ([0, -7], ["-7", "-0", "0"], [0, -1, 1]),
        (["007"], [7], [-1]),
        ([b"a", b"\xff"], ["a", "b"], [0, -1]),
        (["a", "b"], [b"b", b"\xff"], [1, -1]),
        ([dt.date(2024, 1, 2)], ["2024-01-02", "2024-1-2"], [0, -1]),
        ([False, True], ["true", "True"], [1, -1]),
        (["a"], [], []),
    ],
)
def test_another_type_matches_only_if_it_reads_the_same(values, query, rows):
    assert Vocabulary.of(pl.Series(values)).rows(query).tolist() == rows


def test_integers_of_another_width_match_and_never_wrap_round():
    small = Vocabulary.of(pl.Series([1, 44], dtype=pl.UInt8))
    assert small.rows(np.array([44, 300, -212])).tolist() == [1, -1, -1]


def test_categories_are_text_in_the_order_of_text():
    enum = pl.Series(["b", "a"], dtype=pl.Enum(["b", "a"]))
    assert Vocabulary.of(enum).values.to_list() == ["a", "b"]
    assert Vocabulary.of(pl.Series(["a", "b"])).rows(enum).tolist() == [1, 0]


@pytest.mark.parametrize("query", ["abc", b"abc", None, 7, {"a": 1}, [1, "a"]])
def test_a_query_that_is_no_column_is_refused(query):
    with pytest.raises(DataError, match="is no column of ids; give a list or array of one type"):
        Vocabulary.of(pl.Series([1])).rows(query)


@pytest.mark.parametrize("ids", [[1.0], [[1]]])
def test_floats_and_nested_values_are_no_ids(ids):
    with pytest.raises(DataError, match=r"ids are .*; use integers, text"):
        Vocabulary.of(pl.Series([1])).rows(ids)
    with pytest.raises(DataError, match=r"ids are .*; use integers, text"):
        Vocabulary.of(pl.Series(ids))


def test_missing_ids_and_rows_out_of_range_are_refused():
    with pytest.raises(DataError, match="1 of 2 ids are null"):
        Vocabulary.of(pl.Series([1, None]))
    with pytest.raises(DataError, match=r"rows span -1\.\.1, outside 0\.\.1"):
        Vocabulary.of(pl.Series([5, 6])).ids(np.array([-1, 1]))


def test_damaged_bytes_are_refused():
    with pytest.raises(ArtifactError, match="is no Parquet file"):
        Vocabulary.from_bytes(b"rubbish")
    unsorted = Vocabulary(pl.Series("id", [2, 1])).to_bytes()
    with pytest.raises(ArtifactError, match="not one sorted column"):
        Vocabulary.from_bytes(unsorted)
