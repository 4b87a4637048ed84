"""Answers as a table, JSON, CSV or Parquet; ids typed on a command line as columns."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import polars as pl
from pyarrow.parquet import ParquetWriter

from musketeers import artifacts
from musketeers.data.columns import numbers_if_all
from musketeers.data.pseudonyms import Secret
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError
from musketeers.recommender import Recommender
from musketeers.report import tables
from musketeers.run_folder import RunFolder

Format = Literal["table", "json", "csv", "parquet"]


def model_of(run: Path) -> Recommender:
    """The model of a finished run; raises `RunError` or `ArtifactError` if there is none."""
    return Recommender.load(RunFolder.open(run).path / "model")


def typed_ids(typed: Sequence[str], users: Vocabulary) -> pl.Series:
    """Ids as a person typed them, integers where the model has those and all can be."""
    text = pl.Series(list(typed), dtype=pl.String)
    return numbers_if_all(text) if users.values.dtype.is_integer() else text


def asked_for(typed: Sequence[str], users: Vocabulary, secret: Path | None) -> pl.Series:
    """The ids that the model has for those that a person typed: under a key, their pseudonyms."""
    ids = typed_ids(typed, users)
    return Secret.read(secret).of(ids) if secret else ids


def as_typed(rows: pl.DataFrame, typed: Sequence[str], ids: pl.Series) -> pl.DataFrame:
    """The rows with the ids that a person typed in place of those that the model has for them."""
    names = pl.Series(list(typed), dtype=pl.String)
    return rows.with_columns(pl.col("user_id").replace_strict(ids, names, return_dtype=pl.String))


def note_strangers(frame: pl.DataFrame) -> None:
    """Say on stderr whose list is the popular one: often a mistyped id."""
    strangers = frame.filter(pl.col("strategy") == "popular")
    if len(strangers):
        _note(f"the model has no history of {_named(strangers)}; popular items")


def note_untold(frame: pl.DataFrame, domain: str) -> None:
    """Say on stderr who or what has no source, since what serves them is told of none."""
    untold = frame.filter(pl.col("source").is_null())
    if frame.is_empty() or len(untold):
        whom = f"{_named(untold)} in {domain}" if len(untold) else f"the users of {domain}"
        _note(f"what serves {whom} is told of no other domain; there is nothing to hide")


def _named(frame: pl.DataFrame) -> str:
    users = frame["user_id"].unique(maintain_order=True)
    return ", ".join(str(user) for user in users[:5]) + ", ..." * (len(users) > 5)


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)  # noqa: T201


def write(frame: pl.DataFrame, form: Format, out: Path | None) -> None:
    """The rows to the file `out`, whole or not at all, or to stdout.

    JSON is one array of objects, CSV has a header line and lists as JSON, Parquet keeps all types.
    Raises `ConfigError` for Parquet on a terminal and for ids of bytes as text.
    """
    if form == "table":
        _show(frame, out)
        return
    if form == "parquet" and out is None and sys.stdout.isatty():
        raise ConfigError("Parquet is no text; add --out FILE or redirect the output")
    data = _WRITERS[form](_plain(frame, form))
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        artifacts.write_bytes(out, data)


def write_all(
    blocks: Iterable[pl.DataFrame], form: Format, out: Path | None, on_rows: Callable[[int], object]
) -> None:
    """All rows to the Parquet file `out`, a block at a time, whole or not at all.

    `on_rows` hears of rows that are written.  Raises `ConfigError` for another place or format.
    """
    if out is None or form not in ("table", "parquet"):
        raise ConfigError(
            "the lists of all users are many rows, and are written as Parquet; give --out FILE"
        )
    with artifacts.new_file(out) as draft, ExitStack() as open_files:
        writer: ParquetWriter | None = None
        for block in blocks:
            table = block.to_arrow()
            if writer is None:
                writer = open_files.enter_context(
                    ParquetWriter(draft, table.schema, compression="zstd")
                )
            writer.write_table(table)
            on_rows(len(block))


def _show(frame: pl.DataFrame, out: Path | None) -> None:
    if out is not None:
        raise ConfigError("a table is for reading; add --format json, csv or parquet to --out")
    tables.show(tables.answer(frame))


def _plain(frame: pl.DataFrame, form: Format) -> pl.DataFrame:
    kinds = [kind.inner if isinstance(kind, pl.List) else kind for kind in frame.dtypes]
    if form != "parquet" and pl.Binary in kinds:
        raise ConfigError(f"ids are bytes, which {form} cannot hold; use --format parquet")
    return frame


def _json(frame: pl.DataFrame) -> bytes:
    return frame.write_json().encode() + b"\n"


def _csv(frame: pl.DataFrame) -> bytes:
    lists = [
        pl.Series(
            column.name,
            [None if cell is None else json.dumps(cell, default=str) for cell in column.to_list()],
        )
        for column in frame
        if isinstance(column.dtype, pl.List)
    ]
    return frame.with_columns(lists).write_csv().encode()


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


_WRITERS: Mapping[str, Callable[[pl.DataFrame], bytes]] = {
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}
