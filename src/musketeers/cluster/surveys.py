"""One domain's files looked through on a cluster: whether all is well, and what ids there are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from typing import Any, cast

import polars as pl
import pyarrow as pa
import ray
from ray.data import Dataset

from musketeers.cluster import blocks
from musketeers.cluster.asking import Told, answer, answers, each, on_blocks, tasks
from musketeers.cluster.blocks import Survey
from musketeers.cluster.places import Place, opened
from musketeers.data import files
from musketeers.data.columns import Faults, alike, check_times, kind, refuse_ids, refuse_times, unit
from musketeers.data.readers import Role, refuse_mixed
from musketeers.data.vocabulary import Vocabulary, plain
from musketeers.errors import DataError
from musketeers.protocols import Rows

_MOST_PIECES = 512
"""That a domain's files are read in, unless row groups are larger: in a shuffle each meets each."""


@dataclass(frozen=True, slots=True, eq=False)
class Surveyed:
    """One domain's files, in which there is no fault."""

    columns: Mapping[Role, str]
    pieces: Sequence[Mapping[str, Any]]
    """Neighbouring row groups of a file, as a task is told of them."""
    n_rows: int
    user_type: pl.DataType
    items: Vocabulary
    """All that occur."""
    unit: str | None
    """What times count; None without times."""

    def rows(self, *, n_buckets: int) -> Dataset:
        """All rows, as `blocks.rows` has them."""
        work = partial(
            _rows,
            columns=self.columns,
            user_type=self.user_type,
            items=ray.put(self.items),
            n_buckets=n_buckets,
        )
        return on_blocks(each(self.pieces), work)


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """What a file says of itself."""

    name: str
    groups: Sequence[int]
    """Rows of each row group."""
    empty: pl.DataFrame
    """The wanted columns, without rows: their types."""


def survey(name: str, places: Sequence[Place], columns: Mapping[Role, str], told: Rows) -> Surveyed:
    """Look through all rows of a domain.

    Raises `DataError` for what a single machine refuses too, in its words, and for times that are
    text.
    """
    filled = [file for file in _files(places, columns) if sum(file.groups)]
    if not filled:
        raise DataError(f"{places[0].name}: holds no interactions, only a header")
    _check_times(filled, columns)
    pieces = list(_pieces(filled))
    # integers may be of several widths, each with ids of its own
    items: dict[pl.DataType, Vocabulary] = {}
    faults: dict[int, Mapping[Role, Faults]] = {}
    ends: dict[int, tuple[int, int]] = {}
    with told("read", name) as on_rows:
        asked = on_blocks(each(pieces), partial(_survey, columns=columns))
        for number, facts, content in answers(asked):
            faults[number] = {role: Faults(**of) for role, of in facts["faults"].items()}
            ends[number] = facts["ends"]
            if content:
                found = Vocabulary.from_bytes(content).values
                known = items[found.dtype].values if found.dtype in items else found
                items[found.dtype] = Vocabulary.of(pl.concat([known, found]))
            on_rows(pieces[number]["n_rows"])
    _refuse(filled, pieces, faults, columns)
    users = [
        ends_of(plain(filled[piece["file"]].empty[columns["user"]]).dtype, *ends[number])
        for number, piece in enumerate(pieces)
    ]
    return Surveyed(
        columns,
        pieces,
        n_rows=sum(piece["n_rows"] for piece in pieces),
        user_type=alike(users)[0].dtype,
        items=Vocabulary.of(pl.concat(alike([own.values for own in items.values()]))),
        unit=unit(filled[0].empty[columns["timestamp"]]) if "timestamp" in columns else None,
    )


def ends_of(dtype: pl.DataType, least: int, most: int) -> pl.Series:
    """What stands for a column of ids where columns are made `alike`: integers by their range."""
    return pl.Series([least, most] if dtype.is_integer() else [], dtype=dtype)


def _files(places: Sequence[Place], columns: Mapping[Role, str]) -> list[_File]:
    found: dict[int, _File] = {}
    asked = each([{"place": place.name} for place in places])
    for number, facts, content in answers(
        on_blocks(asked, partial(_footers, columns=list(columns.values())))
    ):
        empty = pl.from_arrow(pa.ipc.open_stream(content).read_all())
        found[number] = _File(places[number].name, facts["groups"], cast(pl.DataFrame, empty))
    return [found[number] for number in sorted(found)]


def _pieces(filled: Sequence[_File]) -> Iterator[Mapping[str, Any]]:
    n_rows = sum(sum(file.groups) for file in filled)
    least = max(files.ROWS, n_rows // _MOST_PIECES)
    for number, file in enumerate(filled):
        groups, n = [], 0
        for group, n_group in enumerate(file.groups):
            groups.append(group)
            n += n_group
            if n >= least or group == len(file.groups) - 1:
                if n:
                    yield {"file": number, "place": file.name, "groups": groups, "n_rows": n}
                groups, n = [], 0


def _check_times(filled: Sequence[_File], columns: Mapping[Role, str]) -> None:
    if "timestamp" not in columns:
        return
    column = columns["timestamp"]
    for file in filled:
        where = f"{file.name}: column {column!r}"
        if file.empty[column].dtype == pl.String:
            raise DataError(
                f"{where}: times are text, whose form only all rows together tell; write them as "
                "integers, seconds or dates"
            )
        check_times(file.empty[column], where)


def _refuse(
    filled: Sequence[_File],
    pieces: Sequence[Mapping[str, Any]],
    faults: Mapping[int, Mapping[Role, Faults]],
    columns: Mapping[Role, str],
) -> None:
    """Raise the error that reading file by file meets first, if any."""
    for number, file in enumerate(filled):
        own = [n for n, piece in enumerate(pieces) if piece["file"] == number]
        for role in ("user", "item"):
            where = f"{file.name}: column {columns[role]!r}"
            refuse_ids(_together([faults[n][role] for n in own]), where)
    for role, column in columns.items():
        own = {file.name: file.empty[column] for file in filled}
        shown = own if role == "timestamp" else {name: plain(ids) for name, ids in own.items()}
        refuse_mixed(column, {kind(values): name for name, values in shown.items()})
    if "timestamp" in columns:
        origin = filled[0].name if len(filled) == 1 else f"{len(filled)} files"
        where = f"{origin}: column {columns['timestamp']!r}"
        every = [faults[n]["timestamp"] for n in range(len(pieces))]
        refuse_times(_together(every), where)


def _together(parts: Sequence[Faults]) -> Faults:
    return reduce(Faults.then, parts)


# --- tasks


def _footers(table: pa.Table, columns: Sequence[str]) -> Iterator[pa.Table]:
    for number, task in tasks(table):
        yield answer(number, partial(_footer, task["place"], columns))


def _footer(place: str, columns: Sequence[str]) -> Told:
    with opened(place) as (file, options):
        content = files.parquet(place, file, columns, **options)
        footer = content.metadata
        groups = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        empty = content.schema_arrow.empty_table().select(list(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, empty.schema) as stream:
        stream.write_table(empty)
    return {"groups": groups}, sink.getvalue().to_pybytes()


def _survey(table: pa.Table, columns: Mapping[Role, str]) -> Iterator[pa.Table]:
    for number, task in tasks(table):
        yield answer(number, partial(_survey_of, task, columns))


def _survey_of(task: Mapping[str, Any], columns: Mapping[Role, str]) -> Told:
    found = Survey.of(_batches(task, columns), columns)
    faults = {role: asdict(of) for role, of in found.faults.items()}
    items = found.items.to_bytes() if found.items else b""
    return {"faults": faults, "ends": [found.least, found.most]}, items


def _rows(
    table: pa.Table,
    columns: Mapping[Role, str],
    user_type: pl.DataType,
    items: Any,
    n_buckets: int,
) -> Iterator[pa.Table]:
    vocabulary = cast(Vocabulary, ray.get(items))
    for _, task in tasks(table):
        for batch in _batches(task, columns):
            yield blocks.rows(
                batch, columns, user_type=user_type, items=vocabulary, n_buckets=n_buckets
            )


def _batches(task: Mapping[str, Any], columns: Mapping[Role, str]) -> Iterator[pl.DataFrame]:
    names = list(columns.values())
    with opened(task["place"]) as (file, options):
        content = files.parquet(task["place"], file, names, **options)
        yield from filter(len, files.parquet_batches(content, names, task["groups"]))
