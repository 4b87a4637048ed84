"""Vectors as Parquet files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float32
from pyarrow.parquet import ParquetWriter

from musketeers import artifacts
from musketeers.exports.vectors import Space
from musketeers.protocols import Rows
from musketeers.recommender import STRATEGIES

_USE = (
    "The score of an item for a user is the inner product of their vectors; equal scores stand in "
    "the order of the item ids. Leave out the user's items in seen.parquet. Whoever is not in "
    "users.parquet has the vector 'unknown'."
)


def write(out: Path, spaces: Sequence[Space], told: Rows) -> None:
    """A new folder `out` with a folder for each domain, all of it or nothing.

    Raises `ArtifactError` if `out` holds something, or the disk is full or refuses.
    """
    with artifacts.new_folder(out) as draft:
        for space in spaces:
            write_tables(draft / space.domain, space, told)


def write_tables(folder: Path, space: Space, told: Rows) -> None:
    """The files of one domain, into the new folder `folder`.

    ``users.parquet`` (user_id, strategy, vector), ``items.parquet`` (item_id, vector), both in
    ascending order of the ids, ``seen.parquet`` (user_id, item_id), and ``about.json``.
    """
    folder.mkdir()
    with told("export", space.domain) as on_rows:
        for name, tables in (("items", _items(space)), ("users", _users(space))):
            for table in _written(folder / f"{name}.parquet", tables):
                on_rows(len(table))
    for _ in _written(folder / "seen.parquet", _seen(space)):
        pass
    about = {**space.about(), "unknown": space.unknown().tolist(), "use": _USE}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _written(file: Path, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The tables, once each is in the file as a row group; there is one at least."""
    first = next(tables)
    with ParquetWriter(file, first.schema, compression="zstd", use_dictionary=False) as to:
        to.write_table(first)
        yield first
        for table in tables:
            to.write_table(table)
            yield table


def _items(space: Space) -> Iterator[pa.Table]:
    for step in space.steps(len(space.items)):
        ids = pl.DataFrame({"item_id": space.items.values[step]})
        yield _with_vectors(ids, space.item_vectors(step))


def _users(space: Space) -> Iterator[pa.Table]:
    names = pl.Series(STRATEGIES, dtype=pl.Enum(STRATEGIES))
    for step in space.steps(len(space.users)):
        strategies = names.gather(space.strategies[step])
        ids = pl.DataFrame({"user_id": space.users.values[step], "strategy": strategies})
        yield _with_vectors(ids, space.user_vectors(step))


def _seen(space: Space) -> Iterator[pa.Table]:
    seen = space.seen
    for step in space.steps(len(space.users)):
        rows = np.repeat(np.arange(step.start, step.stop), np.diff(seen.indptr)[step])
        items = seen.items[seen.indptr[step.start] : seen.indptr[step.stop]]
        pairs = {"user_id": space.users.ids(rows), "item_id": space.items.ids(items)}
        yield pl.DataFrame(pairs).to_arrow()


def _with_vectors(ids: pl.DataFrame, vectors: Float32[np.ndarray, "row dim"]) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return ids.to_arrow().append_column("vector", column)
