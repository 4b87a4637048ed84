"""What becomes of a part of a domain's rows, and then of a part of its users; no cluster is needed.

Parts travel as Arrow tables.  Rows are of one user and one item; users are whole, a row for each,
with their items in a list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self, cast

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Bool, Int8, Int64

from musketeers.config import SplitConfig
from musketeers.data import csr, kcore, splits
from musketeers.data.columns import Faults, counted, id_faults, time_faults
from musketeers.data.encoding import Column
from musketeers.data.interactions import Interactions
from musketeers.data.pseudonyms import Secret
from musketeers.data.readers import Role
from musketeers.data.shards import shard_of
from musketeers.data.vocabulary import Vocabulary, plain
from musketeers.seeding import Seed

BUCKET, SHARD = "bucket", "shard"


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What some rows of one file hold."""

    faults: Mapping[Role, Faults]
    least: int
    """Of the users' ids, where they are integers; else 0."""
    most: int
    items: Vocabulary | None
    """In the type of the file; None if there is a fault."""

    @classmethod
    def of(cls, batches: Iterable[pl.DataFrame], columns: Mapping[Role, str]) -> Self:
        """Of all these rows together, which are one or more."""
        faults: dict[Role, Faults] = {role: Faults() for role in columns}
        ends: list[int] = []
        items: list[pl.Series] = []
        for batch in batches:
            for role, column in columns.items():
                find = time_faults if role == "timestamp" else id_faults
                faults[role] = faults[role].then(find(batch[column]))
            if faults["user"].is_fine and (ids := batch[columns["user"]]).dtype.is_integer():
                ends += [cast(int, ids.min()), cast(int, ids.max())]
            if faults["item"].is_fine:
                items = [pl.concat([*items, plain(batch[columns["item"]])]).unique()]
        found = Vocabulary.of(items[0]) if faults["item"].is_fine else None
        return cls(faults, min(ends, default=0), max(ends, default=0), found)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some of a domain's users: row n of `pairs` is that of the user n."""

    users: pl.Series
    pairs: Interactions
    times: Int64[np.ndarray, " pair"] | None = None
    purposes: Int8[np.ndarray, " pair"] | None = None

    @classmethod
    def of(cls, table: pa.Table, *, n_items: int) -> Self:
        """From what `arrow` gave, or several of them, one after the other."""
        lists = table["items"].combine_chunks()
        counts = lists.value_lengths().to_numpy(zero_copy_only=False)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        pairs = Interactions.from_csr(indptr, _values(table, "items"), n_items=n_items)
        users = cast(pl.Series, pl.from_arrow(table["user"]))
        times = _values(table, "times") if "times" in table.column_names else None
        purposes = _values(table, "purposes") if "purposes" in table.column_names else None
        return cls(users, pairs, times, purposes)

    def arrow(self) -> pa.Table:
        """A row for each user."""
        columns = {"user": self.users.rechunk().to_arrow()}
        values = {"items": self.pairs.items, "times": self.times, "purposes": self.purposes}
        ends = pa.array(self.pairs.indptr)
        for name, of_pairs in values.items():
            if of_pairs is not None:
                columns[name] = pa.LargeListArray.from_arrays(ends, pa.array(of_pairs))
        return pa.table(columns)

    def ordered(self) -> "Block":
        """With users who ascend."""
        order = self.users.arg_sort().to_numpy().astype(np.int64)
        pairs = self.pairs.of_each(order)
        times, purposes = (
            None if of is None else csr.gathered(self.pairs.indptr, of, order)[1]
            for of in (self.times, self.purposes)
        )
        return Block(self.users.gather(order), pairs, times, purposes)


def rows(
    batch: pl.DataFrame,
    columns: Mapping[Role, str],
    *,
    user_type: pl.DataType,
    items: Vocabulary,
    n_buckets: int,
) -> pa.Table:
    """A file's rows: users in the domain's type, items as places in `items`, times as int64.

    All rows of a user are in one of the buckets.
    """
    users = plain(batch[columns["user"]]).cast(user_type)
    places = items.rows(plain(batch[columns["item"]]).cast(items.values.dtype))
    found = {
        "user": users.to_arrow(),
        "item": pa.array(places.astype(np.int32)),
        BUCKET: pa.array(shard_of(users, n_buckets).astype(np.int32)),
    }
    if "timestamp" in columns:
        found["time"] = pa.array(counted(batch[columns["timestamp"]]).to_numpy())
    return pa.table(found)


def gathered(table: pa.Table, *, n_items: int) -> Block:
    """Distinct pairs with their latest times of all rows of some users; users ascend."""
    column = Column()
    column.add(cast(pl.Series, pl.from_arrow(table["user"])).rechunk())
    users, user = column.rows(numbers=False)
    item = _flat(table["item"]).astype(np.int32, copy=False)
    times = _flat(table["time"]) if "time" in table.column_names else None
    indptr, items, times = csr.built(user, item, times, n_users=len(users))
    return Block(users.values, Interactions.from_csr(indptr, items, n_items=n_items), times)


def left(
    block: Block, items: Bool[np.ndarray, " item"], *, min_user: int
) -> tuple[Bool[np.ndarray, " user"], Int64[np.ndarray, " item"]]:
    """Which users have enough of the marked items, and how many of those users each item has."""
    users = np.ones(block.pairs.n_users, np.bool_)
    _, counts = kcore.drop_users(block.pairs, users, items, min_user=min_user)
    return users, counts


def core(block: Block, items: Bool[np.ndarray, " item"], *, min_user: int) -> Block:
    """The users who are left, and their pairs with the marked items, under new places."""
    users, _ = left(block, items, min_user=min_user)
    keep = np.repeat(users, block.pairs.counts()) & items[block.pairs.items]
    pairs = block.pairs.only(keep).of_each(np.flatnonzero(users))
    places = (np.cumsum(items) - 1).astype(np.int32)
    return Block(
        block.users.filter(pl.Series(users)),
        Interactions.from_csr(pairs.indptr, places[pairs.items], n_items=int(items.sum())),
        None if block.times is None else block.times[keep],
    )


def named(block: Block, user_type: pl.DataType, secret: Secret | None) -> Block:
    """With users in the type of all domains, or under pseudonyms."""
    users = secret.of(block.users) if secret else block.users.cast(user_type)
    return replace(block, users=users)


def drawn(block: Block, name: str, config: SplitConfig, seed: Seed, *, before: int) -> Block:
    """With purposes by draws; `before` counts the domain's pairs of users before these."""
    draws = seed.child("split", name).numpy()
    draws.bit_generator.advance(before)  # pyright: ignore[reportAttributeAccessIssue]
    purposes = splits.by_rank(block.pairs, draws.random(len(block.pairs)), config)
    return replace(block, purposes=purposes, times=None)


def ranked(block: Block, config: SplitConfig) -> Block:
    """With purposes by each user's latest times."""
    purposes = splits.by_rank(block.pairs, _times(block), config)
    return replace(block, purposes=purposes, times=None)


def cut(block: Block, cuts: list[tuple[int, int]]) -> Block:
    """With purposes by moments, which are those of all domains."""
    return replace(block, purposes=splits.by_moment(_times(block), cuts), times=None)


def sharded(block: Block, n_shards: int) -> pa.Table:
    """The users with the shard that each belongs to."""
    shards = shard_of(block.users, n_shards).astype(np.int32)
    return block.arrow().append_column(SHARD, pa.array(shards))


def n_pairs(table: pa.Table) -> int:
    """Of all users of what `Block.arrow` gave."""
    return len(_values(table, "items"))


def _times(block: Block) -> Int64[np.ndarray, " pair"]:
    if block.times is None:
        raise ValueError("users without times cannot be split by them")
    return block.times


def _values(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()
