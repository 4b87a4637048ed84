"""From a store of fresh interactions to files for the next training."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow.parquet import ParquetFile, ParquetWriter

from musketeers import artifacts
from musketeers.data.columns import numbers_if_all
from musketeers.errors import ConfigError
from musketeers.serving.fresh import SECONDS_A_DAY, Row, Store, open_store

_ROWS = 1 << 17
"""That are in memory at a time."""
_ROLES = ("user", "item", "at")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the files are written, so that they can stand beside the data of before."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    text: bool = False
    """Whether ids stay text; else a column becomes integers if all of its ids are such."""
    dates: bool = False
    """Whether times are dates (UTC), in place of integer seconds since 1970."""


def harvest(store: Store, out: Path, layout: Layout, *, prune: int | None = None) -> dict[str, int]:
    """Write ``out/DOMAIN.parquet`` for each domain of the store; how many rows each has.

    The new folder `out` appears with all files or not at all, and without any from an empty store.
    It holds all that was stored before; what is stored meanwhile may be in it or not, and is in the
    next one.  With `prune`, the store then drops what is older than so many days, at least 1, and
    so is on the disk in these files; without it the store keeps everything.

    Raises `ConfigError` for a smaller `prune` and for a column named twice, and `ArtifactError` if
    `out` holds something already, or the disk or the store refuses.
    """
    if prune is not None and prune < 1:
        raise ConfigError(f"prune is {prune} days; give at least 1, for what is stored meanwhile")
    names = layout.user, layout.item, layout.timestamp
    if len(set(names)) < len(names):
        raise ConfigError(f"columns are {', '.join(names)}; give three different names")
    # what a server stamps from now on is later than that, so nothing old can still come
    before = int(time.time()) - (prune or 0) * SECONDS_A_DAY
    counts: dict[str, int] = {}
    with artifacts.new_folder(out) as folder:
        for domain, draft in _spooled(store.rows(), folder).items():
            with artifacts.new_file(folder / f"{domain}.parquet") as file:
                _write(draft, file, layout)
            draft.path.unlink()
            counts[domain] = draft.rows
        artifacts.sync(folder)
    with artifacts.writing(out):
        artifacts.sync(out.parent)
    if prune is not None:
        store.prune(before)
    return counts


def from_place(
    place: str, out: Path, layout: Layout, *, prune: int | None = None
) -> dict[str, int]:
    """`harvest` of the store at `place`; raises `ArtifactError` if there is none, too."""
    with closing(open_store(place, create=False)) as store:
        return harvest(store, out, layout, prune=prune)


@dataclass(slots=True)
class _Draft:
    """One domain's rows as they came, and what is known of them."""

    path: Path
    rows: int = 0
    texts: frozenset[str] = frozenset()
    """Columns with an id that is no integer."""


def _spooled(rows: Iterable[Row], folder: Path) -> Mapping[str, _Draft]:
    """The rows in a file for each domain: only all of them tell whether ids are integers."""
    drafts: dict[str, _Draft] = {}
    writers: dict[str, ParquetWriter] = {}
    with ExitStack() as files:
        for block in _blocks(rows):
            for [domain], part in block.partition_by("domain", as_dict=True).items():
                if domain not in drafts:
                    drafts[domain] = _Draft(folder / f"{artifacts.DRAFT_PREFIX}{domain}")
                draft, table = drafts[domain], part.select(_ROLES)
                draft.rows += len(table)
                draft.texts |= {
                    role for role in _ROLES[:2] if numbers_if_all(table[role]).dtype == pl.String
                }
                arrow = table.to_arrow()
                if domain not in writers:
                    writers[domain] = files.enter_context(ParquetWriter(draft.path, arrow.schema))
                writers[domain].write_table(arrow)
    return drafts


def _blocks(rows: Iterable[Row]) -> Iterator[pl.DataFrame]:
    schema = {"user": pl.String, "domain": pl.String, "item": pl.String, "at": pl.Int64}
    rest = iter(rows)
    while block := list(islice(rest, _ROWS)):
        yield pl.DataFrame(block, schema=schema, orient="row")


def _write(draft: _Draft, file: Path, layout: Layout) -> None:
    columns = [
        (pl.col(role) if layout.text or role in draft.texts else pl.col(role).cast(pl.Int64))
        .alias(name)
        for role, name in (("user", layout.user), ("item", layout.item))
    ]  # fmt: skip
    seconds = pl.col("at")
    times = pl.from_epoch(seconds).dt.replace_time_zone("UTC") if layout.dates else seconds
    with ExitStack() as files:
        source = files.enter_context(ParquetFile(draft.path))
        writer: ParquetWriter | None = None
        for batch in source.iter_batches(_ROWS):
            rows = pl.DataFrame(pa.table(batch)).select(*columns, times.alias(layout.timestamp))
            table = rows.to_arrow()
            if writer is None:
                writer = files.enter_context(ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)
