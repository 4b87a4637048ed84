"""Reading, k-core, split and shards by Ray Data, with the result of one machine.

No process ever holds all pairs or all users of a domain; each may hold its items.  What becomes of
a part is in `blocks`; here is where parts go, and what all of them together come to.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import ray
from jaxtyping import Bool
from ray.data import Dataset

from musketeers import artifacts
from musketeers.cluster import blocks
from musketeers.cluster.asking import Told, answer, answers, on_blocks, on_groups, settings
from musketeers.cluster.blocks import Block
from musketeers.cluster.places import Place, find
from musketeers.cluster.surveys import Surveyed, ends_of, survey
from musketeers.config import DataConfig, RunConfig, SplitConfig
from musketeers.data import shards, splits
from musketeers.data.columns import alike, kind
from musketeers.data.interactions import Interactions
from musketeers.data.pseudonyms import Secret
from musketeers.data.readers import none_left, refuse_shared, refuse_units, twins, wanted
from musketeers.data.shards import About, DomainCounts
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ClusterError, ConfigError, DataError, RunError
from musketeers.protocols import Rows, untold
from musketeers.seeding import Seed

_ROWS_A_BUCKET = 1 << 21
"""About so many; one process at a time has all rows of a bucket's users."""


@dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """One domain after the k-core, over its own users alone."""

    users: Dataset
    items: Vocabulary
    ends: pl.Series
    """Stands for the users' ids where those of all domains are made alike."""
    counts: DomainCounts
    unit: str | None


def partition(
    config: RunConfig,
    folder: Path,
    n_shards: int,
    *,
    base: Path,
    told: Rows = untold,
    say: Callable[[str], object] = lambda _: None,
) -> About:
    """Read and split the domains on the connected cluster, into `folder`, in shards.

    They are those that `shards.write_shards` makes of `readers.read` and `splits.split`.  Domains
    are Parquet files, at paths that every node sees or addresses that fsspec knows; relative paths
    count from `base`.  Afterwards all of `folder` is there, or nothing.  If it is there already,
    made of the same files and settings, nothing is read, and `say` is told so.  `told` hears how
    many rows have been read, and how many pairs have a purpose.

    Raises `DataError` where one machine does, and for CSV files and times that are text;
    `ConfigError` for fewer than one shard and for cold users; `RunError` if `folder` holds what was
    made of others; `ArtifactError` if it cannot be written; `ClusterError` if the cluster fails.
    """
    _check(config, n_shards)
    folder = folder.absolute()  # tasks may run anywhere
    columns = {name: wanted(config.data, name) for name in config.data.domains}
    places = {name: find(source, base) for name, source in config.data.domains.items()}
    refuse_shared({n: [(p.name, p.identity) for p in own] for n, own in places.items()})
    secret = Secret.read(base / config.data.secret) if config.data.secret else None
    inputs = _fingerprint(config, places, secret)
    if about := shards.read_about(folder):
        _refuse_others(folder, about, inputs, n_shards)
        say(f"{folder}: holds these data in {n_shards} shards already")
        return about
    with settings():
        cores = {
            name: _core(name, survey(name, places[name], own, told), config.data, n_shards, told)
            for name, own in columns.items()
        }
        refuse_units({name: core.unit for name, core in cores.items()})
        with artifacts.new_folder(folder) as draft:
            about = _write(cores, config, secret, draft, n_shards, inputs, told)
    return about


def _check(config: RunConfig, n_shards: int) -> None:
    if n_shards < 1:
        raise ConfigError(f"shards is {n_shards}; use 1 or more")
    if config.split.cold:
        raise ConfigError(
            f"split.cold is {config.split.cold}, and a domain in shards has no cold users; set it "
            "to 0, or fit without shards"
        )
    if not config.data.domains:
        raise DataError("no domain is given; name at least one file under [data.domains]")


def _fingerprint(
    config: RunConfig, places: Mapping[str, Sequence[Place]], secret: Secret | None
) -> str:
    """Another one for other settings and for other files."""
    data = config.data.model_dump(mode="json", exclude={"domains", "secret"})
    split, key = config.split.model_dump(mode="json"), secret.check if secret else None
    found = {name: [(p.name, p.version) for p in own] for name, own in places.items()}
    whole = json.dumps([data, split, config.seed, key, found], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _refuse_others(folder: Path, about: About, inputs: str, n_shards: int) -> None:
    if about.shards != n_shards:
        raise RunError(
            f"{folder}: holds data in {about.shards} shards, and {n_shards} are asked for; ask for "
            f"{about.shards}, or choose another folder"
        )
    if about.inputs != inputs:
        raise RunError(
            f"{folder}: holds data of other settings or files; remove it or choose another folder"
        )


# --- the k-core


def _core(name: str, found: Surveyed, config: DataConfig, n_shards: int, told: Rows) -> _Core:
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
    return _Core(
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


# --- purposes, and the files


def _write(
    cores: Mapping[str, _Core],
    config: RunConfig,
    secret: Secret | None,
    folder: Path,
    n_shards: int,
    inputs: str,
    told: Rows,
) -> About:
    user_type = pl.String() if secret else alike([core.ends for core in cores.values()])[0].dtype
    cuts = _cuts(cores, config.split) if config.split.method == "time" else []
    for name, core in cores.items():
        n_items = len(core.items)
        name_them = partial(_named, n_items=n_items, user_type=user_type, secret=secret)
        users, before = on_blocks(core.users, name_them), None
        if config.split.method == "random":
            users = users.sort("user").materialize()
            before = _before(users)
        purpose = partial(
            _purposes, name=name, n_items=n_items, config=config.split, seed=Seed(config.seed),
            before=before, cuts=cuts, n_shards=n_shards,
        )  # fmt: skip
        write = partial(_shard, folder=folder, name=name, n_items=n_items)
        asked = on_groups(on_blocks(users, purpose), blocks.SHARD, write)
        artifacts.write_bytes(shards.items_file(folder, name), core.items.to_bytes())
        with told("split", name) as on_rows:
            facts: dict[int, dict[str, Any]] = {}
            for shard, fact, _ in answers(asked):
                facts[shard] = fact
                on_rows(sum(fact["parts"]))
        if n := sum(fact["twins"] for fact in facts.values()):
            example = next(fact["twin"] for _, fact in sorted(facts.items()) if fact["twins"])
            raise twins(name, n, *_of_pseudonym(core, example, cast(Secret, secret)))
        parts = np.sum([fact["parts"] for fact in facts.values()], axis=0).tolist()
        splits.refuse_empty(name, parts, config.split, n_pairs=sum(parts))
        for shard in set(range(n_shards)) - set(facts):
            _write_shard(folder, name, shard, _nobody(user_type, n_items))
        _check_written(folder, name, n_shards)
    about = About(
        shards=n_shards, inputs=inputs, domains={name: core.counts for name, core in cores.items()}
    )
    shards.write_about(folder, about)
    return about


def _before(users: Dataset) -> dict[object, int]:
    """Of the first user of each block of sorted users, how many pairs the users before have."""
    firsts = [
        cast(pl.DataFrame, pl.from_arrow(table))
        for table in on_blocks(users, _first).iter_batches(batch_size=None, batch_format="pyarrow")
    ]
    found = pl.concat(firsts).sort("user")
    before = found["pairs"].cum_sum() - found["pairs"]
    return dict(zip(found["user"].to_list(), before.to_list(), strict=True))


def _cuts(cores: Mapping[str, _Core], config: SplitConfig) -> list[tuple[int, int]]:
    found: list[pl.DataFrame] = []
    for core in cores.values():
        asked = on_blocks(core.users, partial(_moments, n_items=len(core.items)))
        for table in asked.iter_batches(batch_size=None, batch_format="pyarrow"):
            found.append(cast(pl.DataFrame, pl.from_arrow(table)))
            # together they are as many as there are different times, and no more
            found = [pl.concat(found).group_by("time").agg(pl.col("pairs").sum())]
    moments = found[0].sort("time")
    return splits.cuts(moments["time"].to_numpy(), moments["pairs"].to_numpy(), config)


def _of_pseudonym(core: _Core, pseudonym: str, secret: Secret) -> list[object]:
    """Two users' ids that have this pseudonym."""
    asked = on_blocks(core.users, partial(_known_as, pseudonym=pseudonym, secret=secret))
    return [row["user"] for row in asked.take(2)]


def _check_written(folder: Path, name: str, n_shards: int) -> None:
    for shard in range(n_shards):
        if not (path := shards.shard_file(folder, name, shard)).exists():
            raise ClusterError(
                f"{path}: was written by a node, and this machine does not see it; choose a folder "
                "on storage that all nodes share"
            )


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


def _named(
    table: pa.Table, n_items: int, user_type: pl.DataType, secret: Secret | None
) -> pa.Table:
    return blocks.named(Block.of(table, n_items=n_items), user_type, secret).arrow()


def _first(table: pa.Table) -> Iterator[pa.Table]:
    if table.num_rows:
        n_pairs = pa.array([blocks.n_pairs(table)])
        yield pa.table({"user": table["user"].slice(0, 1), "pairs": n_pairs})


def _moments(table: pa.Table, n_items: int) -> pa.Table:
    times = Block.of(table, n_items=n_items).times
    time, pairs = np.unique(cast(np.ndarray, times), return_counts=True)
    return pa.table({"time": time, "pairs": pairs})


def _known_as(table: pa.Table, pseudonym: str, secret: Secret) -> pa.Table:
    users = cast(pl.Series, pl.from_arrow(table["user"]))
    return pa.table({"user": users.filter(secret.of(users) == pseudonym).to_arrow()})


def _purposes(
    table: pa.Table,
    name: str,
    n_items: int,
    config: SplitConfig,
    seed: Seed,
    before: Mapping[object, int] | None,
    cuts: list[tuple[int, int]],
    n_shards: int,
) -> Iterator[pa.Table]:
    if not table.num_rows:
        return
    block = Block.of(table, n_items=n_items)
    if before is not None:
        block = blocks.drawn(block, name, config, seed, before=before[block.users[0]])
    elif config.method == "last":
        block = blocks.ranked(block, config)
    else:
        block = blocks.cut(block, cuts)
    yield blocks.sharded(block, n_shards)


def _shard(table: pa.Table, folder: Path, name: str, n_items: int) -> pa.Table:
    shard = int(table[blocks.SHARD][0].as_py())
    block = Block.of(table, n_items=n_items).ordered()
    return answer(shard, partial(_write_shard, folder, name, shard, block))


def _write_shard(folder: Path, name: str, shard: int, block: Block) -> Told:
    purposes = cast(np.ndarray, block.purposes)
    same = block.users.filter(block.users.is_duplicated())
    if not len(same):
        path = shards.shard_file(folder, name, shard)
        shards.write_shard(path, block.users, block.pairs, purposes)
    parts = np.bincount(purposes, minlength=len(splits.PURPOSES)).tolist()
    return {"parts": parts, "twins": len(same), "twin": same[0] if len(same) else None}, b""


def _nobody(user_type: pl.DataType, n_items: int) -> Block:
    pairs = Interactions.from_csr(np.zeros(1, np.int64), np.empty(0, np.int32), n_items=n_items)
    return Block(pl.Series([], dtype=user_type), pairs, None, np.empty(0, np.int8))
