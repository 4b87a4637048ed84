import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sharding import KINDS, config, frame

from musketeers.cluster import blocks
from musketeers.cluster.blocks import Block, Survey
from musketeers.data import splits
from musketeers.data.columns import Faults, alike, id_faults, refuse_ids, refuse_times, time_faults
from musketeers.data.readers import from_frames
from musketeers.data.shards import shard_of
from musketeers.data.splits import split
from musketeers.data.vocabulary import Vocabulary, plain
from musketeers.errors import DataError
from musketeers.seeding import Seed

pa = pytest.importorskip("pyarrow")
COLUMNS = {"user": "user_id", "item": "item_id", "timestamp": "t"}


def parts_of(whole, n_parts):
    """The rows in parts of any length, none of them without rows."""
    return [part for part in whole.iter_slices(max(1, -(-len(whole) // n_parts))) if len(part)]


def core_of(whole, run, *, n_parts, n_buckets):
    """One domain's k-core as a cluster finds it, one part after the other: items and users."""
    parts = parts_of(whole, n_parts)
    surveys = [Survey.of([part], COLUMNS) for part in parts]
    items = Vocabulary.of(pl.concat([one.items.values for one in surveys]))
    own = {"user_type": plain(whole["user_id"]).dtype, "items": items, "n_buckets": n_buckets}
    rows = pa.concat_tables(blocks.rows(part, COLUMNS, **own) for part in parts)
    buckets = rows[blocks.BUCKET].to_numpy()
    users = []
    for bucket in np.unique(buckets):
        gathered = blocks.gathered(rows.filter(pa.array(buckets == bucket)), n_items=len(items))
        users.append(Block.of(gathered.arrow(), n_items=len(items)))
    left, rare = np.ones(len(items), bool), np.ones(1, bool)
    least = {"min_user": run.data.min_user}
    while rare.any():
        counts = sum(blocks.left(block, left, **least)[1] for block in users)
        rare = left & (counts < run.data.min_item)
        left &= ~rare
    kept = [blocks.core(block, left, **least) for block in users]
    return Vocabulary(items.ids(np.flatnonzero(left))), kept


def drawn(own, name, run, *, n_items):
    """As a sort makes them: each part's users come after those of the one before."""
    whole = Block.of(pa.concat_tables([block.arrow() for block in own]), n_items=n_items)
    whole, found, before = whole.ordered().arrow(), [], 0
    for start in range(0, whole.num_rows, 7):
        part = Block.of(whole.slice(start, 7), n_items=n_items)
        found.append(blocks.drawn(part, name, run.split, Seed(run.seed), before=before))
        before += len(part.pairs)
    return found


def with_purposes(cores, run):
    """Domain -> users with purposes."""
    method, found = run.split.method, {}
    times = np.concatenate([block.times for _, own in cores.values() for block in own])
    moments = np.unique(times, return_counts=True)
    cuts = splits.cuts(*moments, run.split) if method == "time" else None
    for name, (items, own) in cores.items():
        if method == "random":
            found[name] = drawn(own, name, run, n_items=len(items))
        elif method == "last":
            found[name] = [blocks.ranked(block, run.split) for block in own]
        else:
            found[name] = [blocks.cut(block, cuts) for block in own]
    return found


def listed(ids, items, pairs, purposes):
    rows = zip(
        ids.gather(pairs.users()).to_list(), items.ids(pairs.items).to_list(), purposes.tolist(),
        strict=True,
    )  # fmt: skip
    return sorted(rows)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["random", "last", "time"]),
    st.integers(0, 2**20),
    st.integers(1, 7),
    st.integers(1, 5),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.integers(60, 600),
)
def test_in_parts_is_as_at_once(kind, method, seed, n_parts, n_buckets, least, n):
    frames = {
        name: frame(seed + k, of, n=n)
        for k, (name, of) in enumerate(zip("ab", KINDS[kind], strict=True))
    }
    run = config({"a": "", "b": ""}, method=method, min_user=least[0], min_item=least[1])
    try:
        reading = from_frames(frames, run.data)
        expected = split(reading.domains, run.split, Seed(run.seed))
    except DataError:
        return  # an empty core, or times on one side
    cores = {
        name: core_of(whole, run, n_parts=n_parts, n_buckets=n_buckets)
        for name, whole in frames.items()
    }
    user_type = reading.domains.users.values.dtype
    cores = {
        name: (items, [blocks.named(block, user_type, None) for block in own])
        for name, (items, own) in cores.items()
    }
    for name, own in with_purposes(cores, run).items():
        items = cores[name][0]
        domain = reading.domains.domains[name]
        assert items.values.equals(domain.items.values)
        whole = sorted(
            triple for b in own for triple in listed(b.users, items, b.pairs, b.purposes)
        )
        tables = expected[name].train, expected[name].valid, expected[name].test
        assert whole == sorted(
            triple
            for code, table in enumerate(tables)
            for triple in listed(
                reading.domains.users.values, domain.items, table, np.full(len(table), code)
            )
        )


def test_a_block_is_the_same_after_its_way():
    block = blocks.gathered(rows_of(frame(1, pl.String)), n_items=25)
    back = Block.of(block.arrow(), n_items=25)
    assert back.users.equals(block.users)
    assert back.pairs.indptr.tolist() == block.pairs.indptr.tolist()
    assert back.pairs.items.tolist() == block.pairs.items.tolist()
    assert back.times.tolist() == block.times.tolist()
    table = block.arrow()
    two = Block.of(pa.concat_tables([table.slice(3), table.slice(0, 3)]), n_items=25).ordered()
    assert two.users.equals(block.users)
    assert two.pairs.items.tolist() == block.pairs.items.tolist()
    assert two.times.tolist() == block.times.tolist()


def rows_of(whole):
    return blocks.rows(
        whole, COLUMNS, user_type=whole["user_id"].dtype,
        items=Vocabulary.of(whole["item_id"]), n_buckets=1,
    )  # fmt: skip


def test_users_of_one_shard_go_together_with_their_domain_and_type():
    block = blocks.gathered(rows_of(frame(1, pl.Int64)), n_items=25)
    table = blocks.sharded(block, 4)
    text = block.users.cast(pl.String)
    assert table[blocks.SHARD].to_pylist() == shard_of(text, 4).tolist()


def test_what_there_is_without_users_is_no_fault():
    empty = blocks.gathered(rows_of(frame(1, pl.Int64)).slice(0, 0), n_items=25)
    assert len(empty.users) == 0
    assert Block.of(empty.arrow(), n_items=25).pairs.indptr.tolist() == [0]


# --- faults of parts, together


FAULTY = [
    pl.Series(["a", None, " ", "b", "x" * 300]),
    pl.Series([b"a", b"", b"b", b"x" * 257, b"c"]),
    pl.Series([1, None, 3, 4, 5]),
    pl.Series([1.0, float("nan"), 2.0, 3.0, 4.0]),
    pl.Series(["a", "b", "x" * 300, "y" * 400, "c"]),
    pl.Series(["a", "b", "c", "d", "e"]),
]


@pytest.mark.parametrize("ids", FAULTY)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_faults_of_parts_are_those_of_the_whole(ids, n):
    found = Faults()
    for part in ids.to_frame().iter_slices(n):
        found = found.then(id_faults(part.to_series()))
    assert found == id_faults(ids)
    assert found.is_fine == (ids.to_list() == list("abcde"))


@pytest.mark.parametrize(
    "times", [[1, None, 2], [1.0, 1e300, 2.0], [1.0, float("inf"), None], [1, 2, 3]]
)
def test_times_of_parts_are_as_those_of_the_whole(times):
    whole, found = pl.Series(times), Faults()
    for part in whole.to_frame().iter_slices(1):
        found = found.then(time_faults(part.to_series()))
    assert found == time_faults(whole)
    if times == [1, 2, 3]:
        refuse_times(found, "here")
    else:
        with pytest.raises(DataError, match=r"^here: .*row 2"):
            refuse_times(found, "here")


def test_a_survey_tells_ends_and_items_or_faults():
    whole = pl.DataFrame({"user_id": [5, -3, 9], "item_id": ["y", "x", "y"], "t": [1, 2, 3]})
    found = Survey.of(whole.iter_slices(1), COLUMNS)
    assert (found.least, found.most) == (-3, 9)
    assert found.items.values.to_list() == ["x", "y"]
    faulty = Survey.of([whole.with_columns(item_id=pl.lit(None, pl.String))], COLUMNS)
    assert faulty.items is None
    with pytest.raises(DataError, match=r"^here: 3 of 3 ids are missing"):
        refuse_ids(faulty.faults["item"], "here")


def test_one_type_of_all_domains_depends_on_ends_alone():
    from musketeers.cluster.surveys import ends_of

    pytest.importorskip("ray")
    wide = pl.Series([0, 2**64 - 1, 7], dtype=pl.UInt64)
    for other in (pl.Series([1, 2, 3]), pl.Series([-1, 5])):
        ends = [ends_of(ids.dtype, ids.min(), ids.max()) for ids in (wide, other)]
        assert alike(ends)[0].dtype == alike([wide, other])[0].dtype
