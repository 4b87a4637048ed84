"""From files or frames to domains: ids checked, repeats collapsed, rare users and items dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, runtime_checkable

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Int64
from narwhals.exceptions import NarwhalsError
from narwhals.typing import IntoFrame

from musketeers.config import DataConfig, check_domain_name
from musketeers.data import files
from musketeers.data.columns import alike, checked_ids, kind, moments, numbers_if_all
from musketeers.data.domains import Domain, Domains
from musketeers.data.interactions import Interactions
from musketeers.data.kcore import k_core
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import DataError

Role = Literal["user", "item", "timestamp"]
ROLES: tuple[Role, ...] = ("user", "item", "timestamp")


@runtime_checkable
class Columns(Protocol):
    """Which columns to read and what to keep of them; `DataConfig` is one."""

    @property
    def min_user(self) -> int:
        """Interactions a user must have in a domain to stay in it."""
        ...

    @property
    def min_item(self) -> int:
        """Interactions an item must have to stay."""
        ...

    def column(self, role: Role, domain: str) -> str | None:
        """The column of `role` in `domain`; None where no time is wanted."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What became of one domain's rows on the way in."""

    rows: int
    repeats: int
    """Rows that repeated a pair; the latest time was kept."""
    dropped: int
    """Distinct pairs lost to the k-core."""
    user_type: str
    """Kind of the ids as they came: integers, text, ..."""
    item_type: str


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Domains, and how they were read (for the overlap report)."""

    domains: Domains
    sources: Mapping[str, Source]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """One domain's checked columns."""

    users: pl.Series
    items: pl.Series
    times: Int64[np.ndarray, " row"] | None
    unit: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """One domain after the k-core: distinct pairs by user then item, as places in its own ids."""

    user_ids: pl.Series
    items: Vocabulary
    user: Int64[np.ndarray, " pair"]
    item: Int64[np.ndarray, " pair"]
    times: Int64[np.ndarray, " pair"] | None
    unit: str | None
    source: Source


def read(config: DataConfig, *, base: Path) -> Reading:
    """The domains that `config` names; relative paths count from the folder `base`.

    Ids of a CSV file become integers if all of them are written the usual way, and stay
    text otherwise.  If domains disagree on the type of user ids, all are compared as text.
    Row numbers depend on the ids alone, not on the order of files or rows.  Raises
    `DataError`, one line, for anything that cannot be read as stated.
    """
    wanted = {name: _wanted(config, name) for name in config.domains}
    paths = {name: files.find(source, base) for name, source in config.domains.items()}
    _refuse_shared_files(paths)
    cores = {n: _core(n, _from_files(paths[n], columns), config) for n, columns in wanted.items()}
    return _joined(cores)


def from_frames(frames: Mapping[str, object], config: Columns) -> Reading:
    """The domains in these frames, by name; the frames are not changed.

    Takes pandas and polars frames (lazy ones too), Arrow tables, and whatever else narwhals
    knows.  Rules and errors are those of `read`, but text ids stay text.
    """
    if not frames:
        raise DataError("no domain is given; pass at least one frame")
    wanted = {name: _wanted(config, name) for name in frames}
    _refuse_shared_frames(frames)
    cores = {
        n: _core(n, _from_frame(n, frames[n], columns), config) for n, columns in wanted.items()
    }
    return _joined(cores)


def joined(readings: Mapping[str, Reading]) -> Reading:
    """These domains, each from its reading, over one vocabulary of users, as if read at once."""
    return _joined({name: _core_of(name, reading) for name, reading in readings.items()})


def _core_of(name: str, reading: Reading) -> _Core:
    domain, users = reading.domains.domains[name], reading.domains.users
    known, user = _renumbered(domain.pairs.users())
    item = domain.pairs.items.astype(np.int64)
    source = reading.sources[name]
    return _Core(users.ids(known), domain.items, user, item, domain.times, None, source)


def _wanted(config: Columns, domain: str) -> dict[Role, str]:
    try:
        check_domain_name(domain)
    except ValueError as error:
        raise DataError(str(error)) from None
    taken: dict[str, Role] = {}
    for role in ROLES:
        column = config.column(role, domain)
        if column in taken:
            raise DataError(
                f"domain {domain}: {taken[column]} and {role} are the same column {column!r}; "
                "name two different ones"
            )
        if column is not None:
            taken[column] = role
    return {role: column for column, role in taken.items()}


def _refuse_shared_files(paths: Mapping[str, Sequence[Path]]) -> None:
    owner: dict[tuple[int, int], str] = {}
    for name, found in paths.items():
        for path in found:
            other = owner.setdefault(files.identity(path), name)
            if other != name:
                raise DataError(
                    f"{path}: is read for both {other} and {name}; give each domain its own file"
                )


def _refuse_shared_frames(frames: Mapping[str, object]) -> None:
    owner: dict[int, str] = {}
    for name, frame in frames.items():
        other = owner.setdefault(id(frame), name)
        if other != name:
            raise DataError(f"{other} and {name} are the same frame; give each domain its own")


def _from_files(paths: Sequence[Path], columns: Mapping[Role, str]) -> _Table:
    parts: dict[str, pl.DataFrame] = {}
    for path in paths:
        part = files.read(path, list(columns.values()))
        if len(part):
            parts[str(path)] = _checked(part, columns, str(path))
    if not parts:
        raise DataError(f"{paths[0]}: holds no interactions, only a header")
    users, items = (_whole(parts, columns[role]) for role in ("user", "item"))
    if not paths[0].name.lower().endswith(".parquet"):
        users, items = numbers_if_all(users), numbers_if_all(items)
    if "timestamp" not in columns:
        return _Table(users, items, None, None)
    column = columns["timestamp"]
    origin = next(iter(parts)) if len(parts) == 1 else f"{len(parts)} files"
    times, unit = moments(_whole(parts, column), f"{origin}: column {column!r}")
    return _Table(users, items, times, unit)


def _from_frame(name: str, frame: object, columns: Mapping[Role, str]) -> _Table:
    origin = f"domain {name}"
    part = _polars(origin, frame, list(columns.values()))
    if not len(part):
        raise DataError(f"{origin}: the frame has no rows")
    part = _checked(part, columns, origin)
    users, items = part[columns["user"]], part[columns["item"]]
    if "timestamp" not in columns:
        return _Table(users, items, None, None)
    column = columns["timestamp"]
    times, unit = moments(part[column], f"{origin}: column {column!r}")
    return _Table(users, items, times, unit)


def _polars(origin: str, frame: object, columns: Sequence[str]) -> pl.DataFrame:
    """The wanted columns of any kind of frame, as a new polars frame."""
    try:
        return _chosen(origin, frame, columns)
    except DataError:
        raise
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"{origin}: a column holds values of mixed types ({files.one_line(error)}); "
            "convert it to one type"
        ) from None
    except (NarwhalsError, TypeError, ValueError, OSError) as error:
        raise DataError(f"{origin}: is no readable frame ({files.one_line(error)})") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"{origin}: cannot be read ({files.one_line(error)})") from None


def _chosen(origin: str, frame: object, columns: Sequence[str]) -> pl.DataFrame:
    known = nw.from_native(cast("IntoFrame", frame))
    names = [str(name) for name in known.collect_schema().names()]
    for column in columns:
        if column not in names:
            raise files.missing_column(origin, column, names)
    chosen = known.select(*columns)
    whole = chosen.collect(backend="polars") if isinstance(chosen, nw.LazyFrame) else chosen
    return whole.to_polars()


def _checked(part: pl.DataFrame, columns: Mapping[Role, str], origin: str) -> pl.DataFrame:
    ids = [columns["user"], columns["item"]]
    return part.with_columns(checked_ids(part[c], f"{origin}: column {c!r}") for c in ids)


def _whole(parts: Mapping[str, pl.DataFrame], column: str) -> pl.Series:
    """One column over all parts, which must agree on its kind."""
    kinds = {kind(part[column]): origin for origin, part in parts.items()}
    if len(kinds) > 1:
        found = ", ".join(f"{k} in {origin}" for k, origin in sorted(kinds.items()))
        raise DataError(f"column {column!r} has mixed types: {found}; write all files alike")
    return pl.concat(alike([part[column] for part in parts.values()]))


def _core(name: str, table: _Table, config: Columns) -> _Core:
    """Distinct pairs of the users and items that have enough of them."""
    users, items = Vocabulary.of(table.users), Vocabulary.of(table.items)
    keys = users.rows(table.users) * len(items) + items.rows(table.items)
    keys, times = _latest(keys, table.times)
    user, item = np.divmod(keys, len(items))
    keep = k_core(user, item, min_user=config.min_user, min_item=config.min_item)
    if not keep.any():
        raise DataError(
            f"domain {name}: none of {len(keys)} distinct pairs is left with min_user = "
            f"{config.min_user} and min_item = {config.min_item}; lower them or check the columns"
        )
    user_rows, user = _renumbered(user[keep])
    item_rows, item = _renumbered(item[keep])
    source = Source(
        rows=len(table.users),
        repeats=len(table.users) - len(keys),
        dropped=len(keys) - len(user),
        user_type=kind(users.values),
        item_type=kind(items.values),
    )
    return _Core(
        user_ids=users.ids(user_rows),
        items=Vocabulary(items.ids(item_rows)),
        user=user,
        item=item,
        times=None if times is None else times[keep],
        unit=table.unit,
        source=source,
    )


def _latest(
    keys: Int64[np.ndarray, " row"], times: Int64[np.ndarray, " row"] | None
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"] | None]:
    """The distinct keys, ascending, and the latest time of each."""
    if times is None:
        keys = np.sort(keys)
    else:
        order = np.lexsort((times, keys))
        keys, times = keys[order], times[order]
    last = np.append(keys[1:] != keys[:-1], [True])
    return keys[last], None if times is None else times[last]


def _renumbered(
    rows: Int64[np.ndarray, " pair"],
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " pair"]]:
    """The rows that occur, ascending, and each row's place among them."""
    occurs = np.bincount(rows) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[rows]


def _joined(cores: Mapping[str, _Core]) -> Reading:
    """The domains over one vocabulary of users."""
    units = {core.unit: name for name, core in cores.items()}
    if len(units) > 1:
        found = ", ".join(f"{unit} in {name}" for unit, name in units.items())
        raise DataError(f"times are {found}; write all as dates, or all as integers of one unit")
    user_ids = dict(zip(cores, alike([core.user_ids for core in cores.values()]), strict=True))
    users = Vocabulary.of(pl.concat(user_ids.values()))
    domains = {
        name: _placed(core, users.rows(user_ids[name]), n_users=len(users))
        for name, core in cores.items()
    }
    sources = {name: core.source for name, core in cores.items()}
    return Reading(Domains(users, domains), sources)


def _placed(core: _Core, rows: Int64[np.ndarray, " user"], *, n_users: int) -> Domain:
    """The domain with its users at their `rows` of the shared vocabulary."""
    user, item, times = rows[core.user], core.item, core.times
    if np.any(np.diff(rows) < 0):  # ids compared as text sort differently
        order = np.lexsort((item, user))
        user, item = user[order], item[order]
        times = None if times is None else times[order]
    pairs = Interactions.from_sorted(user, item, n_users=n_users, n_items=len(core.items))
    return Domain(core.items, pairs, times)
