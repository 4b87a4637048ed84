"""One domain's k-core on a cluster: rows brought together by user, counts of items added up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import ray
from jaxtyping import Bool
from ray.data import Dataset

from musketeers.cluster import blocks
from musketeers.cluster.asking import Told, answer, answers, on_blocks, on_groups
from musketeers.cluster.blocks import Block
from musketeers.cluster.surveys import Surveyed, ends_of
from musketeers.config import DataConfig
from musketeers.data.columns import kind
from musketeers.data.readers import none_left
from musketeers.data.shards import DomainCounts
from musketeers.data.vocabulary import Vocabulary
from musketeers.protocols import Rows

_ROWS_A_BUCKET = 1 << 21
"""About so many; one process at a time has all rows of a bucket's users."""


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """One domain after the k-core, over its own users alone."""

    users: Dataset
    items: Vocabulary
    ends: pl.Series
    """Stands for the users' ids where those of all domains are made alike."""
    counts: DomainCounts
    unit: str | None


def core(name: str, found: Surveyed, config: DataConfig, n_shards: int, told: Rows) -> Core:
    """What is left of a domain, whose users are brought together in at least `n_shards` parts.

    Raises `DataError` if nothing is.
    """
    n_items = len(found.items)
    n_buckets = max(n_shards, -(-found.n_rows // _ROWS_A_BUCKET))
    with told("gather", name) as on_rows:
        rows = found.rows(n_buckets=n_buckets)
        users = on_groups(rows, blocks.BUCKET, partial(_gathered, n_items=n_items)).materialize()
        on_rows(found.n_rows)
    with told("k-core", name) as on_rows:
        items, n_pairs, left = _left(users, n_items, config, on_rows)
    if not left.users:
        raise none_left(name, n_pairs, config)
    work = partial(_kept, items=ray.put(items), n_items=n_items, min_user=config.min_user)
    # ids that are no text stand for themselves where they would have to become such
    ends = ends_of(found.user_type, left.least, left.most)
    if found.user_type == pl.Binary and not left.is_text:
        ends = pl.Series([b"\xff"])
    return Core(
        users=on_blocks(users, work).materialize(),
        items=Vocabulary(found.items.ids(np.flatnonzero(items))),
        ends=ends,
        counts=DomainCounts(
            rows=found.n_rows,
            repeats=found.n_rows - n_pairs,
            dropped=n_pairs - left.pairs,
            users=left.users,
            items=int(items.sum()),
            pairs=left.pairs,
            user_type=kind(ends),
            item_type=kind(found.items.values),
        ),
        unit=found.unit,
    )


@dataclass(frozen=True, slots=True)
class _Left:
    """The users who are left of a domain, and their pairs with the items that are."""

    users: int
    pairs: int
    least: int
    most: int
    is_text: bool


def _left(
    users: Dataset, n_items: int, config: DataConfig, on_rows: Callable[[int], object]
) -> tuple[Bool[np.ndarray, " item"], int, _Left]:
    """The items that are left, how many pairs there were at first, and who is left."""
    items = np.ones(n_items, np.bool_)
    while True:
        work = partial(_count, items=ray.put(items), n_items=n_items, min_user=config.min_user)
        counts, facts = np.zeros(n_items, np.int64), []
        for _, fact, content in answers(on_blocks(users, work)):
            counts += np.frombuffer(content, np.int64)
            facts.append(fact)
            on_rows(fact["pairs"])
        rare = items & (counts < config.min_item)
        if not rare.any():
            break
        items &= ~rare
    some = [fact for fact in facts if fact["users"]]
    left = _Left(
        users=sum(fact["users"] for fact in some),
        pairs=int(counts[items].sum()),
        least=min((fact["least"] for fact in some), default=0),
        most=max((fact["most"] for fact in some), default=0),
        is_text=all(fact["is_text"] for fact in some),
    )
    return items, sum(fact["pairs"] for fact in facts), left


# --- tasks


def _gathered(table: pa.Table, n_items: int) -> pa.Table:
    return blocks.gathered(table, n_items=n_items).arrow()


def _count(table: pa.Table, items: Any, n_items: int, min_user: int) -> Iterator[pa.Table]:
    if table.num_rows:
        marked = cast(np.ndarray, ray.get(items))
        yield answer(0, partial(_counted, Block.of(table, n_items=n_items), marked, min_user))


def _counted(block: Block, items: Bool[np.ndarray, " item"], min_user: int) -> Told:
    users, counts = blocks.left(block, items, min_user=min_user)
    ids = block.users.filter(pl.Series(users))
    ends = (ids.min(), ids.max()) if len(ids) and ids.dtype.is_integer() else (0, 0)
    facts = {
        "users": len(ids), "pairs": len(block.pairs), "least": ends[0], "most": ends[1],
        "is_text": _is_text(ids),
    }  # fmt: skip
    return facts, counts.tobytes()


def _is_text(ids: pl.Series) -> bool:
    """Whether the ids can be written as text."""
    try:
        ids.cast(pl.String)
    except pl.exceptions.PolarsError:
        return False
    return True


def _kept(table: pa.Table, items: Any, n_items: int, min_user: int) -> pa.Table:
    marked = cast(np.ndarray, ray.get(items))
    return blocks.core(Block.of(table, n_items=n_items), marked, min_user=min_user).arrow()
