import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.config import DataConfig
from musketeers.data import files
from musketeers.data.columns import numbers_if_all
from musketeers.data.interactions import Interactions
from musketeers.data.kcore import k_core
from musketeers.data.readers import from_frames, read
from musketeers.errors import DataError

REAL = Path(os.environ.get("MUSKETEERS_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROWS = {"user_id": ["b", "a", "b", "a"], "item_id": ["y", "x", "x", "x"], "t": [1, 2, 3, 4]}
CSV = "user_id,item_id\nb,y\na,x\nb,x\na,x\n"


def settings(*, k=1, timestamp=None, **domains):
    return DataConfig(domains=domains, min_user=k, min_item=k, timestamp=timestamp)


def one(path, **more):
    return read(settings(a=str(path), **more), base=Path())


def listed(reading, name="a"):
    """(user_id, item_id, time) of every pair, as the caller would see them."""
    domains, domain = reading.domains, reading.domains.domains[name]
    times = [None] * len(domain.pairs) if domain.times is None else domain.times.tolist()
    users = domains.users.ids(domain.pairs.users()).to_list()
    return list(zip(users, domain.items.ids(domain.pairs.items).to_list(), times, strict=True))


def framed(rows=ROWS, **more):
    return from_frames({"a": pl.DataFrame(rows)}, settings(a="", **more))


def written(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- what is read


def test_more_rows_than_memory_can_hold_are_refused_before_the_first(tmp_path, monkeypatch):
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame(ROWS).write_parquet(tmp_path / "b.parquet")
    both = settings(a="a.parquet", b="b.parquet")
    monkeypatch.setattr("musketeers.data.readers.available", lambda: 95)
    with pytest.raises(DataError, match=r"hold 8 rows, .* 0\.0 GB are free; close"):
        read(both, base=tmp_path)
    monkeypatch.setattr("musketeers.data.readers.available", lambda: 96)
    assert len(listed(read(both, base=tmp_path))) == 3


def test_files_that_do_not_say_how_many_rows_they_have_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("musketeers.data.readers.available", lambda: 0)
    assert len(listed(one(written(tmp_path / "a.csv", CSV)))) == 3
    with pytest.raises(DataError, match="cut off"):
        one(written(tmp_path / "a.parquet", b"PAR1 torn"))


def test_repeats_collapse_and_the_latest_time_stays():
    reading = framed(timestamp="t")
    assert listed(reading) == [("a", "x", 4), ("b", "x", 3), ("b", "y", 1)]
    assert reading.sources["a"].rows == 4
    assert reading.sources["a"].repeats == 1
    assert reading.sources["a"].dropped == 0
    assert [p[:2] for p in listed(framed())] == [("a", "x"), ("b", "x"), ("b", "y")]


@pytest.mark.parametrize(
    "make",
    [
        pl.DataFrame,
        pl.LazyFrame,
        pd.DataFrame,
        pa.table,
        lambda rows: pd.DataFrame(rows).astype({"user_id": "category"}),
        lambda rows: pl.DataFrame(rows, schema_overrides={"item_id": pl.Categorical}),
        lambda rows: pl.DataFrame(rows).with_columns(extra=pl.lit(None)),
    ],
)
def test_frames_of_every_kind_read_the_same_and_stay_as_they_are(make):
    frame = make(ROWS)
    before = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    copy = before.copy() if isinstance(before, pd.DataFrame) else before
    reading = from_frames({"a": frame}, settings(a="", timestamp="t"))
    assert listed(reading) == listed(framed(timestamp="t"))
    assert before.equals(copy)


def test_files_of_every_kind_read_the_same(tmp_path):
    frame = pl.DataFrame(ROWS)
    frame.write_parquet(tmp_path / "one.parquet")
    frame.write_csv(tmp_path / "one.csv")
    written(tmp_path / "one.csv.gz", gzip.compress((tmp_path / "one.csv").read_bytes()))
    written(tmp_path / "bom.csv", b"\xef\xbb\xbf" + (tmp_path / "one.csv").read_bytes())
    folder = tmp_path / "folder [1]"
    folder.mkdir()
    frame[:1].write_parquet(folder / "b.parquet")
    frame[1:].write_parquet(folder / "a.parquet")
    frame[:0].write_parquet(folder / "none.parquet")
    written(folder / ".hidden.parquet", "rubbish")
    written(folder / "_SUCCESS", "")
    expected = listed(framed(timestamp="t"))
    for name in ("one.parquet", "one.csv", "one.csv.gz", "bom.csv", "folder [1]"):
        reading = read(settings(a=name, timestamp="t"), base=tmp_path)
        assert listed(reading) == expected, name
    assert listed(read(settings(a="[ab].parquet", timestamp="t"), base=folder)) == expected
    assert listed(one(f"{tmp_path}/*/[ab].parquet", timestamp="t")) == expected


def test_csv_ids_are_numbers_only_if_all_are_written_the_usual_way(tmp_path):
    path = written(tmp_path / "a.csv", "user_id,item_id\n10,1\n9,01\n")
    reading = one(path)
    assert listed(reading) == [(9, "01", None), (10, "1", None)]
    assert reading.sources["a"].user_type == "integers"
    assert reading.sources["a"].item_type == "text"
    written(path, f"user_id,item_id\n{2**63},NaN\n1,null\n")
    assert [p[:2] for p in listed(one(path))] == [("1", "null"), (str(2**63), "NaN")]


def test_quoted_csv_values_may_hold_commas_and_line_breaks(tmp_path):
    path = written(tmp_path / "a.csv", '"user_id","item_id"\r\n"a,b","x\ny"\r\n')
    assert listed(one(path)) == [("a,b", "x\ny", None)]


IDS = st.one_of(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 3)), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcdé"), st.sampled_from("xyz")), min_size=1),
)


@given(IDS, st.randoms(use_true_random=False))
def test_row_numbers_depend_on_ids_alone(pairs, random):
    shuffled = [*pairs, *pairs[:3]]
    random.shuffle(shuffled)
    readings = [
        framed(dict(zip(("user_id", "item_id"), zip(*rows, strict=True), strict=True)))
        for rows in (pairs, shuffled)
    ]
    assert [p[:2] for p in listed(readings[0])] == sorted(set(pairs))
    first, second = (r.domains.domains["a"].pairs for r in readings)
    assert first.items.tolist() == second.items.tolist()
    assert first.indptr.tolist() == second.indptr.tolist()


def naive_core(pairs, min_user, min_item):
    while True:
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        left = {
            (u, i) for u, i in pairs if users.count(u) >= min_user and items.count(i) >= min_item
        }
        if left == pairs:
            return left
        pairs = left


@given(
    st.sets(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_k_core_is_the_naive_fixed_point(pairs, min_user, min_item):
    table = Interactions.from_pairs(*np.array(sorted(pairs)).T, n_users=8, n_items=6)
    users, items = k_core(table, min_user=min_user, min_item=min_item)
    left = naive_core(pairs, min_user, min_item)
    assert {(u, i) for u, i in pairs if users[u] and items[i]} == left
    # and nobody without a pair
    assert set(np.flatnonzero(users)) == {u for u, _ in left}
    assert set(np.flatnonzero(items)) == {i for _, i in left}


def test_k_core_drops_from_the_domain_and_users_stay_if_known_elsewhere():
    dense = pl.DataFrame({"user_id": [1, 1, 2, 2, 3], "item_id": [5, 6, 5, 6, 6]})
    other = pl.DataFrame({"user_id": [3, 3, 4, 4], "item_id": [7, 8, 7, 8]})
    reading = from_frames({"a": dense, "b": other}, settings(k=2, a="", b=""))
    assert reading.domains.users.values.to_list() == [1, 2, 3, 4]
    assert [p[:2] for p in listed(reading)] == [(1, 5), (1, 6), (2, 5), (2, 6)]
    assert [p[:2] for p in listed(reading, "b")] == [(3, 7), (3, 8), (4, 7), (4, 8)]
    assert reading.sources["a"].dropped == 1


def slowly(rows, *, k):
    """(user_id, item_id, time) of every pair that is left, by the rules and nothing else."""
    latest = {}
    for user, item, time in rows:
        latest[user, item] = max(time, latest.get((user, item), time))
    return [(*pair, latest[pair]) for pair in sorted(naive_core(set(latest), k, k))]


ANY_IDS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: n - n % 2**61),  # few, far apart
    st.sampled_from(["a", "ab", "b", "é", "a longer id than twelve bytes", "a longer id than"]),
)
DRAWN = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40
)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@given(
    drawn=DRAWN,
    users=st.lists(ANY_IDS, min_size=4, max_size=4, unique=True),
    items=st.lists(ANY_IDS, min_size=4, max_size=4, unique=True),
    k=st.integers(1, 2),
    cuts=st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9)),
)
def test_reading_batch_by_batch_is_reading(ending, tmp_path_factory, drawn, users, items, k, cuts):
    users, items = ([str(i) for i in ids] if len({*map(type, ids)}) > 1 else ids
                    for ids in (users, items))  # fmt: skip
    rows = [(users[u], items[i], t) for u, i, t in drawn]
    folder = tmp_path_factory.mktemp("parts")
    whole = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    first, of_batch, of_group = cuts
    for name, part in (("1", whole[:first]), ("2", whole[first:])):
        if ending == "parquet":
            part.write_parquet(folder / f"{name}.parquet", row_group_size=of_group)
        else:
            part.write_csv(folder / f"{name}.csv")
    if ending == "csv":  # where numbers written as text are numbers
        whole = whole.with_columns(numbers_if_all(whole[c].cast(pl.String)) for c in whole.columns)
        rows = whole.rows()
    expected = slowly(rows, k=k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROWS", of_batch)
        for ask in (
            lambda: one(folder, k=k, timestamp="t"),
            lambda: from_frames({"a": whole}, settings(k=k, a="", timestamp="t")),
        ):
            if not expected:
                with pytest.raises(DataError, match="distinct pairs is left"):
                    ask()
                continue
            reading = ask()
            assert listed(reading) == expected
            source = reading.sources["a"]
            n_pairs = len({row[:2] for row in rows})
            assert (source.rows, source.repeats) == (len(rows), len(rows) - n_pairs)
            assert source.dropped == n_pairs - len(expected)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([1, 2, 3, None, 5, None], "2 of 6 ids are missing .*, the first in row 4"),
        (["a", "b", "c", "d", " ", ""], "2 of 6 ids are missing .*, the first in row 5"),
        (["a", "b", "c", "d", "e" * 300, None], "1 of 6 ids are missing .*, the first in row 6"),
        (["a", "b", "c", "d", "e" * 300, "f"], "the id in row 5 has 300 bytes, more than 256"),
    ],
)
def test_rows_with_faults_are_counted_over_the_whole_file(tmp_path, monkeypatch, users, message):
    monkeypatch.setattr(files, "ROWS", 2)
    frame = pl.DataFrame({"user_id": users, "item_id": range(6)})
    frame.write_parquet(tmp_path / "a.parquet")
    for ask in (lambda: one(tmp_path / "a.parquet"), lambda: framed(frame)):
        with pytest.raises(DataError, match=message):
            ask()


def test_files_whose_integers_have_different_widths_are_one_domain(tmp_path):
    for n, dtype in enumerate((pl.UInt8, pl.Int64, pl.Int32)):
        table = {"user_id": pl.Series([7, n], dtype=dtype), "item_id": [1, 2]}
        pl.DataFrame(table).write_parquet(tmp_path / f"{n}.parquet")
    assert [p[:2] for p in listed(one(tmp_path))] == [(0, 2), (1, 2), (2, 2), (7, 1)]


def test_a_file_without_rows_may_have_any_type(tmp_path):
    nothing = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.Float64})
    nothing.write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": [1], "item_id": [2]}).write_parquet(tmp_path / "b.parquet")
    assert listed(one(tmp_path)) == [(1, 2, None)]


def test_user_ids_of_different_type_are_compared_as_text():
    numbers = pl.DataFrame({"user_id": [10, 9, 9], "item_id": [1, 2, 1], "t": [7, 8, 9]})
    texts = pl.DataFrame({"user_id": ["9", "z"], "item_id": [1, 1], "t": [1, 2]})
    reading = from_frames({"a": numbers, "b": texts}, settings(a="", b="", timestamp="t"))
    assert reading.domains.users.values.to_list() == ["10", "9", "z"]
    assert listed(reading) == [("10", 1, 7), ("9", 1, 9), ("9", 2, 8)]
    assert [reading.sources[n].user_type for n in "ab"] == ["integers", "text"]


def test_integer_widths_are_one_type_unless_no_width_holds_both():
    narrow = pl.DataFrame({"user_id": [1], "item_id": [1]}, schema_overrides={"user_id": pl.Int8})
    for big, expected in ((300, [1, 300]), (2**63, [1, 2**63])):
        wide = pl.DataFrame({"user_id": pl.Series([big], dtype=pl.UInt64), "item_id": [1]})
        reading = from_frames({"a": narrow, "b": wide}, settings(a="", b=""))
        assert reading.domains.users.values.to_list() == expected
        assert reading.sources["a"].user_type == reading.sources["b"].user_type


def test_columns_may_differ_by_domain(tmp_path):
    pl.DataFrame({"who": [1], "what": [2]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": [1], "what": [3]}).write_parquet(tmp_path / "b.parquet")
    config = DataConfig(
        domains={"a": "a.parquet", "b": "b.parquet"},
        user={"a": "who", "b": "user_id"},
        item="what",
        min_user=1,
        min_item=1,
    )
    reading = read(config, base=tmp_path)
    assert listed(reading) == [(1, 2, None)]
    assert listed(reading, "b") == [(1, 3, None)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pl.Series([3, 2], dtype=pl.UInt8), [3, 2]),
        (pl.Series([0.5, -1.25]), [500_000, -1_250_000]),
        (pl.Series(["1970-01-02", "1970-01-01 00:00:01"]), [86_400_000_000, 1_000_000]),
        (pl.Series(["12", "-3"]), [12, -3]),
        (pl.Series(["1.5", "2"]), [1_500_000, 2_000_000]),
        (pl.Series([1, 2]).cast(pl.Datetime("ms")), [1_000, 2_000]),
        (pl.Series([1, 2]).cast(pl.Datetime("us", "Europe/Paris")), [1, 2]),
        (pl.Series([0, 1], dtype=pl.Int32).cast(pl.Date), [0, 86_400_000_000]),
    ],
)
def test_times_become_integers(times, expected):
    reading = framed({"user_id": [1, 2], "item_id": [1, 1], "t": times}, timestamp="t")
    assert reading.domains.domains["a"].times.tolist() == expected


# --- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", "user_id,item_id\n", "content is text or unknown, the ending says .parquet"),
        ("a.parquet", gzip.compress(b"x", mtime=0), "content is gzip, the ending says .parquet"),
        ("a.parquet", b"PAR1 cut off", "Parquet file is cut off"),
        ("a.parquet", b"PAR1PAR1", "is damaged or not of the format"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"PAR1", "content is Parquet, the ending says .csv"),
        ("a.csv.gz", CSV, "content is text or unknown, the ending says .csv.gz"),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-9], "gzip file is cut off or damaged"),
        ("a.tsv", CSV, "unknown ending; data files end in .parquet, .csv, .csv.gz"),
        ("a.csv", "user_id,item_id\n", "holds no interactions, only a header"),
        ("a.csv", "user_id,item_id", "holds no interactions, only a header"),
        ("a.csv", "user,item_id\n1,2\n", "no column 'user_id' among 'user', 'item_id'; did you"),
        ("a.csv", "user_id,item_id,x,x\n1,2,3,4\n", "header names x twice; rename one"),
        ("a.csv", "user_id,item_id\n1,2\n3\n", "rows differ in length .*got 1.*; quote values"),
        ("a.csv", "user_id,item_id\n1,2,3\n", "rows differ in length .*got 3"),
        ("a.csv", b"user_id,item_id\n1\xff,2\n", "is not UTF-8 text; convert the file"),
        ("a.csv", b"user_id\xff,item_id\n1,2\n", "header is not UTF-8 CSV text"),
        ("a.csv", "user_id,item_id\n1,2\n,3\n  ,4\n", "2 of 3 ids are missing .*in row 2; remove"),
        ("a.csv", f"user_id,item_id\n1,{'é' * 129}\n", "id in row 1 has 258 bytes, more than 256"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path, name, content, message):
    path = written(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        one(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no\.csv: no such file or folder; check data\.domains"):
        one(tmp_path / "no.csv")
    with pytest.raises(DataError, match="no file matches the pattern"):
        one(tmp_path / "*.csv")
    with pytest.raises(DataError, match=r"the folder holds no \.parquet, \.csv, \.csv\.gz file"):
        one(tmp_path)
    for odd, message in (("a\0.csv", "null byte"), ("a**.csv", "no file|pattern")):
        with pytest.raises(DataError, match=message):
            one(tmp_path / odd)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is no regular file; copy the data into one"):
        one(tmp_path / "pipe.csv")
    (tmp_path / "pipe.csv").unlink()
    written(tmp_path / "a.csv", CSV)
    pl.DataFrame(ROWS).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="holds Parquet and CSV files; keep one format"):
        one(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.csv: no permission to read it"):
        one(tmp_path / "a.csv")


def test_damaged_parquet_is_one_line_wherever_it_is_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user_id": range(200), "item_id": [f"{i}" for i in range(200)]}).write_parquet(
        path
    )
    whole, refused = path.read_bytes(), 0
    for at in range(4, len(whole) - 4, 29):
        written(path, whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            one(path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 10
    written(path, whole[: len(whole) // 2] + whole[-4:])
    with pytest.raises(DataError, match=r"a\.parquet: "):
        one(path)


def test_one_file_is_one_domain(tmp_path):
    path = written(tmp_path / "a.csv", CSV)
    os.link(path, tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"b\.csv: is read for both a and b; give each"):
        read(settings(a="a.csv", b="b.csv"), base=tmp_path)
    frame = pl.DataFrame(ROWS)
    with pytest.raises(DataError, match="a and b are the same frame"):
        from_frames({"a": frame, "b": frame}, settings(a="", b=""))


def test_parts_of_one_domain_must_agree(tmp_path):
    pl.DataFrame({"user_id": [1], "item_id": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": ["1"], "item_id": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"mixed types: integers in .*a.parquet, text in .*b.par"):
        one(tmp_path)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([1, None], r"domain a: column 'user_id': 1 of 2 ids are missing .*, the first in row 2"),
        ([float("nan"), 1.0], "1 of 2 ids are missing .*, the first in row 1"),
        ([1.0, 2.0], "ids are Float64; use integers"),
        ([[1], [2]], r"ids are List\(Int64\); use integers"),
        (["", "a"], "1 of 2 ids are missing"),
        ([b"", b"a"], "1 of 2 ids are missing"),
        ([b"a", b"b" * 257], "id in row 2 has 257 bytes, more than 256; is this the id column"),
        ([None, None], "2 of 2 ids are missing"),
        ([], "the frame has no rows"),
    ],
)
def test_ids_that_name_nobody(users, message):
    with pytest.raises(DataError, match=message):
        framed({"user_id": users, "item_id": [1] * len(users)})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([1, 2], "domain a: is no readable frame"),
        (pd.DataFrame({"user_id": [1, "a"], "item_id": [1, 2]}, dtype=object), "mixed types"),
        (pd.DataFrame([[1, 2, 3]], columns=["user_id", "item_id", "item_id"]), "no readable frame"),
        (pl.DataFrame({"item_id": [1], "User_id": [1]}), "no column 'user_id' among .*'User_id'?"),
        (pl.scan_parquet("nowhere.parquet"), "is no readable frame"),
    ],
)
def test_frames_that_cannot_be_read(frame, message):
    with pytest.raises(DataError, match=message) as caught:
        from_frames({"a": frame}, settings(a=""))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1, None], "1 of 2 times are missing .*, the first in row 2; remove those rows or"),
        ([1.0, float("nan")], "1 of 2 times are missing"),
        ([float("inf"), 1.0], "1 of 2 times are missing"),
        (["", "2024-01-01"], "1 of 2 times are missing"),
        (["2024-01-01", "yesterday"], "the time in row 2 is no number or date of 64 bits"),
        ([1e300, 1.0], "the time in row 1 is no number or date of 64 bits"),
        ([True, False], "Boolean is no time; use integers, seconds or dates"),
    ],
)
def test_times_that_are_none(times, message):
    with pytest.raises(DataError, match=message):
        framed({"user_id": [1, 2], "item_id": [1, 2], "t": times}, timestamp="t")


def test_times_of_two_units_are_refused():
    dates = pl.DataFrame({"user_id": [1], "item_id": [1], "t": [0.5]})
    numbers = pl.DataFrame({"user_id": [1], "item_id": [1], "t": [5]})
    with pytest.raises(DataError, match="times are microseconds in a, integers in b; write all"):
        from_frames({"a": dates, "b": numbers}, settings(a="", b="", timestamp="t"))


def test_settings_that_contradict_the_data():
    with pytest.raises(DataError, match="none of 3 distinct pairs is left with min_user = 3 and"):
        framed(k=3)
    same = DataConfig(domains={"a": ""}, item="user_id")
    with pytest.raises(DataError, match="domain a: user and item are the same column 'user_id'"):
        from_frames({"a": pl.DataFrame(ROWS)}, same)
    with pytest.raises(DataError, match="no domain is given"):
        from_frames({}, settings(a=""))
    with pytest.raises(DataError, match="'a/b' is no domain name"):
        from_frames({"a/b": pl.DataFrame(ROWS)}, settings(a=""))


def test_bytes_beside_another_type_must_be_text():
    raw = pl.DataFrame({"user_id": [b"a"], "item_id": [1]})
    texts = pl.DataFrame({"user_id": ["a"], "item_id": [1]})
    reading = from_frames({"a": raw, "b": texts}, settings(a="", b=""))
    assert reading.domains.users.values.to_list() == ["a"]
    damaged = pl.DataFrame({"user_id": [b"\xff"], "item_id": [1]})
    with pytest.raises(DataError, match=r"ids are bytes in one place .* and some are not UTF-8"):
        from_frames({"a": damaged, "b": texts}, settings(a="", b=""))


# --- real data


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real data; set MUSKETEERS_DATA to its folder")
def test_anime4_reads():
    names = ("tv", "movie", "ova", "special")
    config = settings(k=5, **{name: f"anime/{name}.parquet" for name in names})
    reading = read(config, base=REAL)
    known = np.stack([d.pairs.known_users() for d in reading.domains.domains.values()])
    assert known.sum(axis=1).tolist()[0] == 4451
    assert known.any(axis=0).all()
    for name, domain in reading.domains.domains.items():
        source = reading.sources[name]
        assert source.rows == len(domain.pairs) + source.repeats + source.dropped
        assert domain.pairs.counts()[domain.pairs.known_users()].min() >= 5
        assert domain.pairs.item_counts().min() >= 5
        assert domain.pairs.n_items == len(domain.items)
        assert domain.pairs.n_users == len(reading.domains.users)
