"""From users on a cluster to shards in files: one type of ids, purposes, and a file a shard."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from ray.data import Dataset

from musketeers import artifacts
from musketeers.cluster import blocks
from musketeers.cluster.asking import Told, answer, answers, on_blocks, on_groups
from musketeers.cluster.blocks import Block
from musketeers.cluster.cores import Core
from musketeers.config import RunConfig, SplitConfig
from musketeers.data import shards, splits
from musketeers.data.columns import alike
from musketeers.data.interactions import Interactions
from musketeers.data.pseudonyms import Secret
from musketeers.data.readers import twins
from musketeers.errors import ClusterError
from musketeers.protocols import Rows
from musketeers.seeding import Seed


def write(
    cores: Mapping[str, Core],
    config: RunConfig,
    secret: Secret | None,
    folder: Path,
    n_shards: int,
    told: Rows,
) -> None:
    """Put all but `about.json` into `folder`, which all nodes see.

    Raises what `splits.split` raises, `DataError` for two users of one pseudonym, `ArtifactError`
    if a node cannot write, and `ClusterError` if this machine does not see what one wrote.
    """
    user_type = pl.String() if secret else alike([core.ends for core in cores.values()])[0].dtype
    cuts = _cuts(cores, config.split) if config.split.method == "time" else []
    for name, core in cores.items():
        artifacts.write_bytes(shards.items_file(folder, name), core.items.to_bytes())
        own = {"name": name, "n_items": len(core.items)}
        name_them = partial(_named, n_items=len(core.items), user_type=user_type, secret=secret)
        users, before = on_blocks(core.users, name_them), None
        if config.split.method == "random":
            users = users.sort("user").materialize()
            before = _before(users)
        purpose = partial(
            _purposes, **own, config=config.split, seed=Seed(config.seed), before=before,
            cuts=cuts, n_shards=n_shards,
        )  # fmt: skip
        asked = on_groups(
            on_blocks(users, purpose), blocks.SHARD, partial(_shard, **own, folder=folder)
        )
        with told("split", name) as on_rows:
            facts: dict[int, dict[str, Any]] = {}
            for shard, fact, _ in answers(asked):
                facts[shard] = fact
                on_rows(sum(fact["parts"]))
        _refuse_twins(name, core, facts, secret)
        parts = np.sum([fact["parts"] for fact in facts.values()], axis=0).tolist()
        splits.refuse_empty(name, parts, config.split, n_pairs=sum(parts))
        for shard in set(range(n_shards)) - set(facts):
            _write_shard(folder, name, shard, _nobody(user_type, len(core.items)))
        _check_written(folder, name, n_shards)


def _refuse_twins(
    name: str, core: Core, facts: Mapping[int, Mapping[str, Any]], secret: Secret | None
) -> None:
    found = [fact for _, fact in sorted(facts.items()) if fact["twins"]]
    if found:
        asked = partial(_known_as, pseudonym=found[0]["twin"], secret=cast(Secret, secret))
        one, other = (row["user"] for row in on_blocks(core.users, asked).take(2))
        raise twins(name, sum(fact["twins"] for fact in found), one, other)


def _before(users: Dataset) -> dict[object, int]:
    """Of the first user of each block of sorted users, how many pairs the users before have."""
    firsts = [
        cast(pl.DataFrame, pl.from_arrow(table))
        for table in on_blocks(users, _first).iter_batches(batch_size=None, batch_format="pyarrow")
    ]
    found = pl.concat(firsts).sort("user")
    before = found["pairs"].cum_sum() - found["pairs"]
    return dict(zip(found["user"].to_list(), before.to_list(), strict=True))


def _cuts(cores: Mapping[str, Core], config: SplitConfig) -> list[tuple[int, int]]:
    found: list[pl.DataFrame] = []
    for core in cores.values():
        asked = on_blocks(core.users, partial(_moments, n_items=len(core.items)))
        for table in asked.iter_batches(batch_size=None, batch_format="pyarrow"):
            found.append(cast(pl.DataFrame, pl.from_arrow(table)))
            # together they are as many as there are different times, and no more
            found = [pl.concat(found).group_by("time").agg(pl.col("pairs").sum())]
    moments = found[0].sort("time")
    return splits.cuts(moments["time"].to_numpy(), moments["pairs"].to_numpy(), config)


def _check_written(folder: Path, name: str, n_shards: int) -> None:
    for shard in range(n_shards):
        if not (path := shards.shard_file(folder, name, shard)).exists():
            raise ClusterError(
                f"{path}: was written by a node, and this machine does not see it; choose a folder "
                "on storage that all nodes share"
            )


# --- tasks


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
