"""Domains on disk in shards: all that one member of a cluster needs of its users, and no others'.

A folder holds for each domain `items.parquet`, the whole vocabulary, and for each shard a file of
its users' pairs, each with its purpose; `about.json` comes last, so that a folder that has one is
whole.  Which shard a user belongs to depends on the id alone, so it is the same in all domains.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as arrow_parquet
from jaxtyping import Int8, Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from musketeers import artifacts
from musketeers.data.domains import Domain, Domains, Split
from musketeers.data.encoding import text_hashes
from musketeers.data.interactions import Interactions
from musketeers.data.readers import Source
from musketeers.data.splits import PURPOSES
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError

ABOUT, ITEMS = "about.json", "items.parquet"
_ROWS = 1 << 20
"""Pairs that are written or read at a time."""
_COLUMNS = ("user", "item", "purpose")
_TYPES = {"item": pl.Int32, "purpose": pl.Int8}


@dataclass(frozen=True, slots=True)
class DomainCounts:
    """How one domain was read, and what is left of it in all shards together."""

    rows: int
    repeats: int
    """Rows that repeated a pair."""
    dropped: int
    """Distinct pairs lost to the k-core."""
    users: int
    items: int
    pairs: int
    user_type: str
    """Kind of the ids as they came: integers, text, ..."""
    item_type: str

    def source(self) -> Source:
        """The same as a single-machine read tells it."""
        return Source(self.rows, self.repeats, self.dropped, self.user_type, self.item_type)


class About(BaseModel):
    """What a folder of shards says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    shards: Annotated[int, Field(ge=1)]
    inputs: str
    """Tells whether settings and files are those that the shards were made of."""
    domains: dict[str, DomainCounts]


def shard_of(ids: pl.Series, n_shards: int) -> Int64[np.ndarray, " id"]:
    """The shard of each user, 0 to `n_shards` - 1.

    Depends on how the id is written alone, so that 7, "7" and b"7" fall together; the same on every
    machine and in every version.  Raises `DataError` for types that are no ids.
    """
    return (text_hashes(ids) % np.uint64(n_shards)).astype(np.int64)


def items_file(folder: Path, domain: str) -> Path:
    """Where the domain's item vocabulary is."""
    return folder / domain / ITEMS


def shard_file(folder: Path, domain: str, shard: int) -> Path:
    """Where the pairs of one shard's users are."""
    return folder / domain / f"shard-{shard}.parquet"


def write_shards(
    domains: Domains,
    splits: Mapping[str, Split],
    sources: Mapping[str, Source],
    folder: Path,
    n_shards: int,
    *,
    inputs: str = "",
) -> None:
    """Put a single-machine read and its split into a new `folder`, all of it or nothing.

    Raises `ConfigError` for cold users, who have no place there, and for fewer than one shard;
    `ArtifactError` if the folder holds something or the disk refuses.
    """
    if n_shards < 1:
        raise ConfigError(f"shards is {n_shards}; use 1 or more")
    counts: dict[str, DomainCounts] = {}
    shards = shard_of(domains.users.values, n_shards)
    with artifacts.new_folder(folder) as draft:
        for name, domain in domains.domains.items():
            purposes = _purposes(name, domain.pairs, splits[name])
            known = domain.pairs.known_users()
            artifacts.write_bytes(items_file(draft, name), domain.items.to_bytes())
            for shard in range(n_shards):
                rows = np.flatnonzero(known & (shards == shard))
                own = np.repeat(known & (shards == shard), domain.pairs.counts())
                users, pairs = domains.users.ids(rows), domain.pairs.of_each(rows)
                write_shard(shard_file(draft, name, shard), users, pairs, purposes[own])
            source, size = sources[name], len(domain.pairs)
            counts[name] = DomainCounts(
                source.rows, source.repeats, source.dropped,
                int(known.sum()), len(domain.items), size, source.user_type, source.item_type,
            )  # fmt: skip
        write_about(draft, About(shards=n_shards, inputs=inputs, domains=counts))


def write_shard(
    path: Path, users: pl.Series, pairs: Interactions, purposes: Int8[np.ndarray, " pair"]
) -> None:
    """One file: the pairs of these users, who ascend; row n of `pairs` is that of the user n.

    Replaces a file of the same name at once.  Raises `ArtifactError` if the disk refuses.
    """
    ids = cast(pa.Array, users.rechunk().to_arrow())
    types = [ids.type, pa.int32(), pa.int8()]
    schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
    with (
        artifacts.new_file(path) as draft,
        arrow_parquet.ParquetWriter(draft, schema, compression="zstd") as writer,
    ):
        for start in range(0, len(pairs), _ROWS):
            part = slice(start, min(start + _ROWS, len(pairs)))
            places = np.arange(part.start, part.stop)
            rows = np.searchsorted(pairs.indptr, places, side="right") - 1
            columns = [
                ids.take(pa.array(rows)),
                pa.array(pairs.items[part]),
                pa.array(purposes[part]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def write_about(folder: Path, about: About) -> None:
    """To be written when everything else has been."""
    domains = {name: asdict(counts) for name, counts in about.domains.items()}
    whole = {**about.model_dump(exclude={"domains"}), "domains": domains}
    artifacts.write_text(folder / ABOUT, json.dumps(whole, indent=1) + "\n")


def read_about(folder: Path) -> About | None:
    """What the folder holds; None if there is no such folder, or nothing in it.

    Raises `ArtifactError` for a folder of anything else.
    """
    path = folder / ABOUT
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return None
        return About.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}; {_REMEDY}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise ArtifactError(f"{path}: {where!r}: {first['msg']}; {_REMEDY}") from None


def read_shard(folder: Path, shard: int) -> tuple[Domains, dict[str, Split]]:
    """The users of one shard in all domains, sorted, with all items of each domain; without times.

    A user's row is a place among the shard's users.  A domain that none of them is in has tables
    without pairs.  Raises `ArtifactError` for a file that is missing or breaks the format's rules,
    `ConfigError` for a shard that there is not.
    """
    about = read_about(folder)
    if about is None:
        raise ArtifactError(f"{folder}: holds no data in shards; {_REMEDY}")
    if not 0 <= shard < about.shards:
        raise ConfigError(f"{folder}: has shards 0 to {about.shards - 1}, none {shard}")
    items = {name: _items(items_file(folder, name)) for name in about.domains}
    tables = {
        name: _read(shard_file(folder, name, shard), n_items=len(items[name]))
        for name in about.domains
    }
    own = {name: users for name, (users, _, _) in tables.items()}
    users = Vocabulary.of(pl.concat(list(own.values())))
    if (shard_of(users.values, about.shards) != shard).any():
        raise ArtifactError(f"{folder}: shard {shard} holds users of another; {_REMEDY}")
    domains: dict[str, Domain] = {}
    splits: dict[str, Split] = {}
    for name, (ids, pairs, purposes) in tables.items():
        places = np.full(len(users), -1, np.int64)
        places[users.rows(ids)] = np.arange(len(ids))
        whole = pairs.of_each(places)  # both ascend, so the pairs keep their order
        domains[name] = Domain(items[name], whole)
        train, valid, test = (whole.only(purposes == code) for code in range(len(PURPOSES)))
        splits[name] = Split(train, valid, test)
    return Domains(users, domains), splits


_REMEDY = "it is no whole data in shards; remove the folder and let it be made anew"


def _purposes(name: str, pairs: Interactions, split: Split) -> Int8[np.ndarray, " pair"]:
    if split.cold:
        raise ConfigError(
            f"domain {name}: has cold users, which shards do not hold; set split.cold = 0"
        )
    purposes = np.zeros(len(pairs), np.int8)
    for code, table in enumerate((split.train, split.valid, split.test)):
        purposes[pairs.held_by(table)] = code
    return purposes


def _items(path: Path) -> Vocabulary:
    try:
        return Vocabulary.from_bytes(path.read_bytes())
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}; {_REMEDY}") from None


def _read(path: Path, *, n_items: int) -> tuple[pl.Series, Interactions, Int8[np.ndarray, " pair"]]:
    """The users of one file, their pairs, and each pair's purpose."""
    ids: list[pl.Series] = []
    counts: list[Int64[np.ndarray, " user"]] = []
    items, purposes = [np.empty(0, np.int32)], [np.empty(0, np.int8)]
    try:
        for batch in _batches(path):
            users, runs = _runs(batch["user"])
            if len(users) and len(ids) > 1 and users[0] == ids[-1][-1]:
                counts[-1][-1] += runs[0]
                users, runs = users[1:], runs[1:]
            if len(users) or not ids:
                ids.append(users)
                counts.append(runs)
            items.append(batch["item"].to_numpy())
            purposes.append(batch["purpose"].to_numpy())
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path}: cannot be read: {reason}; {_REMEDY}") from None
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    users, purpose = pl.concat(ids), np.concatenate(purposes)
    pairs = Interactions.from_csr(indptr, np.concatenate(items), n_items=n_items)
    _check(path, users, pairs, purpose)
    return users, pairs, purpose


def _batches(path: Path) -> Iterator[pl.DataFrame]:
    """A file's rows, some at a time; at least one batch, which has no rows if the file has none."""
    with arrow_parquet.ParquetFile(path, page_checksum_verification=True) as file:
        found = cast(pl.DataFrame, pl.from_arrow(file.schema_arrow.empty_table()))
        if tuple(found.columns) != _COLUMNS or any(found[n].dtype != t for n, t in _TYPES.items()):
            raise ArtifactError(f"{path}: has other columns than {', '.join(_COLUMNS)}; {_REMEDY}")
        yield found
        for batch in file.iter_batches(_ROWS):
            batch.validate(full=True)  # damaged text would stop the process inside polars
            yield cast(pl.DataFrame, pl.from_arrow(batch))


def _runs(users: pl.Series) -> tuple[pl.Series, Int64[np.ndarray, " user"]]:
    """Each user of neighbouring rows once, and in how many of them."""
    starts = np.flatnonzero(
        users.ne_missing(users.shift()).to_numpy() | (np.arange(len(users)) == 0)
    )
    return users.gather(starts), np.diff(starts, append=len(users)).astype(np.int64)


def _check(
    path: Path, users: pl.Series, pairs: Interactions, purposes: Int8[np.ndarray, " pair"]
) -> None:
    ascend = np.diff(pairs.keys(), prepend=-1) > 0
    sorted_users = not users.has_nulls() and (users[1:] > users[:-1]).all()
    in_range = (pairs.items >= 0) & (pairs.items < pairs.n_items)
    known = (purposes >= 0) & (purposes < len(PURPOSES))
    if not (sorted_users and ascend.all() and in_range.all() and known.all()):
        raise ArtifactError(f"{path}: its rows are not as they were written; {_REMEDY}")
