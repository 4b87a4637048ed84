"""From files or frames to domains: ids checked, repeats collapsed, rare users and items dropped."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, cast, runtime_checkable

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Bool, Int64
from narwhals.exceptions import NarwhalsError
from narwhals.typing import IntoFrame

from musketeers.config import DataConfig, check_domain_name
from musketeers.data import csr, files
from musketeers.data.columns import alike, checked_ids, kind, moments
from musketeers.data.domains import Domain, Domains
from musketeers.data.encoding import Column
from musketeers.data.interactions import Interactions
from musketeers.data.kcore import k_core
from musketeers.data.pseudonyms import Secret
from musketeers.data.vocabulary import Vocabulary, plain
from musketeers.errors import DataError
from musketeers.memory import available
from musketeers.parallel import available_threads, each
from musketeers.protocols import Rows, untold

Role = Literal["user", "item", "timestamp"]
ROLES: tuple[Role, ...] = ("user", "item", "timestamp")

_BYTES_A_ROW = 12
"""Memory that a row of 309 million took at most until it was read and split."""


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

    @property
    def secret(self) -> str | None:
        """A file with the key of the users' pseudonyms, if they are to have such."""
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
class _Rows:
    """One domain's rows, met batch by batch."""

    columns: Mapping[Role, str]
    users: Column = field(default_factory=Column)
    items: Column = field(default_factory=Column)
    times: list[pl.Series] = field(default_factory=list[pl.Series])
    kinds: dict[Role, dict[str, str]] = field(default_factory=dict[Role, dict[str, str]])
    """Of each column, what kinds there are, and where each was met last."""

    def add(
        self,
        origin: str,
        batches: Callable[[], Iterable[pl.DataFrame]],
        on_rows: Callable[[int], object],
    ) -> int:
        """All rows of one file or frame, which may be asked for twice; how many there are."""
        n_rows = 0
        try:
            for batch in filter(len, batches()):
                self._add(origin, batch)
                n_rows += len(batch)
                on_rows(len(batch))
            return n_rows
        except DataError:
            # only all rows together tell which is the first with a fault, and how many have it
            _check(pl.concat(batches()), self.columns, origin)
            raise

    def _add(self, origin: str, batch: pl.DataFrame) -> None:
        values: dict[Role, pl.Series] = {r: batch[column] for r, column in self.columns.items()}
        values["user"], values["item"] = plain(values["user"]), plain(values["item"])
        coded = (self.users, values["user"]), (self.items, values["item"])
        each(lambda n: coded[n][0].add(coded[n][1]), 2, n_threads=min(2, available_threads()))
        if "timestamp" in values:
            self.times.append(values["timestamp"])
        for role, column in values.items():
            self.kinds.setdefault(role, {})[kind(column)] = origin


@dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """One domain after the k-core, over its own users alone."""

    user_ids: pl.Series
    items: Vocabulary
    pairs: Interactions
    times: Int64[np.ndarray, " pair"] | None
    unit: str | None
    source: Source


def read(config: DataConfig, *, base: Path, told: Rows = untold) -> Reading:
    """The domains that `config` names; relative paths count from the folder `base`.

    Ids of a CSV file become integers if all of them are written the usual way, and stay
    text otherwise.  If domains disagree on the type of user ids, all are compared as text.
    Row numbers depend on the ids alone, not on the order of files or rows.  `told` hears how many
    rows have been read.  Raises `DataError`, one line, for anything that cannot be read as stated.
    """
    if not config.domains:
        raise DataError("no domain is given; name at least one file under [data.domains]")
    columns = {name: wanted(config, name) for name in config.domains}
    paths = {name: files.find(source, base) for name, source in config.domains.items()}
    refuse_shared({n: [(p, files.identity(p)) for p in own] for n, own in paths.items()})
    _refuse_too_many_rows([path for several in paths.values() for path in several])
    cores: dict[str, _Core] = {}
    for name, own in columns.items():
        with told("read", name) as on_rows:
            cores[name] = _from_files(name, paths[name], own, config, on_rows)
    return _joined(_under(config.secret, cores, base))


def from_frames(frames: Mapping[str, object], config: Columns) -> Reading:
    """The domains in these frames, by name; the frames are not changed.

    Takes pandas and polars frames (lazy ones too), Arrow tables, and whatever else narwhals
    knows.  Rules and errors are those of `read`, but text ids stay text.
    """
    if not frames:
        raise DataError("no domain is given; pass at least one frame")
    columns = {name: wanted(config, name) for name in frames}
    _refuse_shared_frames(frames)
    cores = {name: _from_frame(name, frames[name], own, config) for name, own in columns.items()}
    return _joined(_under(config.secret, cores, Path()))


def joined(readings: Mapping[str, Reading]) -> Reading:
    """These domains, each from its reading, over one vocabulary of users, as if read at once."""
    return _joined({name: _core_of(name, reading) for name, reading in readings.items()})


def among(reading: Reading, ids: pl.Series) -> Reading:
    """The same domains over a vocabulary that also has the users `ids`, who may be known or not."""
    cores = {name: _core_of(name, reading) for name in reading.domains.domains}
    return _joined(cores, ids)


def wanted(config: Columns, domain: str) -> dict[Role, str]:
    """The columns to read of a domain; `DataError` if one has two roles or the name is none."""
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


def refuse_shared(owned: Mapping[str, Iterable[tuple[object, Hashable]]]) -> None:
    """Raise `DataError` if two domains own one file: its name, and what it is known by."""
    owner: dict[Hashable, str] = {}
    for name, found in owned.items():
        for path, identity in found:
            other = owner.setdefault(identity, name)
            if other != name:
                raise DataError(
                    f"{path}: is read for both {other} and {name}; give each domain its own file"
                )


def refuse_mixed(column: str, kinds: Mapping[str, str]) -> None:
    """Raise `DataError` if there are several kinds of values; of each, where it was met last."""
    if len(kinds) > 1:
        found = ", ".join(f"{k} in {where}" for k, where in sorted(kinds.items()))
        raise DataError(f"column {column!r} has mixed types: {found}; write all files alike")


def refuse_units(units: Mapping[str, str | None]) -> None:
    """Raise `DataError` if the times of two domains count different things."""
    of = {unit: name for name, unit in units.items()}
    if len(of) > 1:
        found = ", ".join(f"{unit} in {name}" for unit, name in of.items())
        raise DataError(f"times are {found}; write all as dates, or all as integers of one unit")


def none_left(name: str, n_pairs: int, config: Columns) -> DataError:
    """The error for a domain whose k-core is empty."""
    return DataError(
        f"domain {name}: none of {n_pairs} distinct pairs is left with min_user = "
        f"{config.min_user} and min_item = {config.min_item}; lower them or check the columns"
    )


def twins(name: str, n: int, one: object, other: object) -> DataError:
    """The error for ids that have one pseudonym, of which there are `n`."""
    return DataError(
        f"domain {name}: {n} user ids differ in their Unicode form alone, such "
        f"as {one!a} and {other!a}; write them alike"
    )


def _core_of(name: str, reading: Reading) -> _Core:
    domain, users = reading.domains.domains[name], reading.domains.users
    known = np.flatnonzero(domain.pairs.known_users())
    pairs, source = domain.pairs.of_each(known), reading.sources[name]
    return _Core(users.ids(known), domain.items, pairs, domain.times, None, source)


def _refuse_shared_frames(frames: Mapping[str, object]) -> None:
    owner: dict[int, str] = {}
    for name, frame in frames.items():
        other = owner.setdefault(id(frame), name)
        if other != name:
            raise DataError(f"{other} and {name} are the same frame; give each domain its own")


def _refuse_too_many_rows(paths: Sequence[Path]) -> None:
    """Before the first is read; files that do not say how many rows they have are not counted."""
    needed, free = _BYTES_A_ROW * sum(map(files.told_rows, paths)), available()
    if needed > free:
        raise DataError(
            f"the domains' files hold {needed // _BYTES_A_ROW:,} rows, and to read and split them "
            f"needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; close "
            "other programs, or give files with fewer rows"
        )


def _from_files(
    name: str,
    paths: Sequence[Path],
    columns: Mapping[Role, str],
    config: Columns,
    on_rows: Callable[[int], object],
) -> _Core:
    rows, wanted = _Rows(columns), list(columns.values())
    filled = [
        str(path)
        for path in paths
        if rows.add(str(path), partial(files.batches, path, wanted), on_rows)
    ]
    if not filled:
        raise DataError(f"{paths[0]}: holds no interactions, only a header")
    origin = filled[0] if len(filled) == 1 else f"{len(filled)} files"
    text = not paths[0].name.lower().endswith(".parquet")
    return _core(name, rows, origin, config, numbers=text)


def _from_frame(name: str, frame: object, columns: Mapping[Role, str], config: Columns) -> _Core:
    origin, rows = f"domain {name}", _Rows(columns)
    whole = _polars(origin, frame, list(columns.values()))
    if not rows.add(origin, partial(whole.iter_slices, files.ROWS), lambda _: None):
        raise DataError(f"{origin}: the frame has no rows")
    return _core(name, rows, origin, config, numbers=False)


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


def _check(whole: pl.DataFrame, columns: Mapping[Role, str], origin: str) -> None:
    for column in (columns["user"], columns["item"]):
        checked_ids(whole[column], f"{origin}: column {column!r}")


def _core(name: str, rows: _Rows, origin: str, config: Columns, *, numbers: bool) -> _Core:
    """Distinct pairs of the users and items that have enough of them."""
    for role, column in rows.columns.items():
        refuse_mixed(column, rows.kinds[role])
    n_rows, times, unit = len(rows.users), None, None
    if "timestamp" in rows.columns:
        where = f"{origin}: column {rows.columns['timestamp']!r}"
        times, unit = moments(pl.concat(alike(rows.times)), where)
        rows.times.clear()
    users, user = rows.users.rows(numbers=numbers)
    items, item = rows.items.rows(numbers=numbers)
    indptr, row_items, times = csr.built(user, item, times, n_users=len(users))
    del user, item  # before more is made
    pairs = Interactions.from_csr(indptr, row_items, n_items=len(items))
    n_pairs = len(pairs)
    user_left, item_left = k_core(pairs, min_user=config.min_user, min_item=config.min_item)
    if not user_left.any():
        raise none_left(name, n_pairs, config)
    if not (user_left.all() and item_left.all()):
        keep = np.repeat(user_left, pairs.counts()) & item_left[pairs.items]
        times = None if times is None else times[keep]
        pairs = _renumbered(pairs.only(keep), user_left, item_left)
    return _Core(
        user_ids=users.ids(np.flatnonzero(user_left)),
        items=Vocabulary(items.ids(np.flatnonzero(item_left))),
        pairs=pairs,
        times=times,
        unit=unit,
        source=Source(
            rows=n_rows,
            repeats=n_rows - n_pairs,
            dropped=n_pairs - len(pairs),
            user_type=kind(users.values),
            item_type=kind(items.values),
        ),
    )


def _renumbered(
    pairs: Interactions, users: Bool[np.ndarray, " user"], items: Bool[np.ndarray, " item"]
) -> Interactions:
    """The pairs over the marked users and items alone, which are all that occur."""
    left = pairs.of_each(np.flatnonzero(users))
    places = (np.cumsum(items) - 1).astype(np.int32)
    return Interactions.from_csr(
        left.indptr, places[left.items], n_items=int(np.count_nonzero(items))
    )


def _under(secret: str | None, cores: Mapping[str, _Core], base: Path) -> Mapping[str, _Core]:
    """The domains with pseudonyms in place of the users' ids, if there is a key."""
    if secret is None:
        return cores
    key = Secret.read(base / secret)
    hidden: dict[str, _Core] = {}
    for name, core in cores.items():
        pseudonyms = key.of(core.user_ids)
        if (alike := pseudonyms.is_duplicated()).any():
            one, other, *_ = core.user_ids.filter(pseudonyms == pseudonyms.filter(alike)[0])
            raise twins(name, int(alike.sum()), one, other)
        hidden[name] = replace(core, user_ids=pseudonyms)
    return hidden


def _joined(cores: Mapping[str, _Core], more: pl.Series | None = None) -> Reading:
    """The domains over one vocabulary of users, to whom `more` may belong."""
    refuse_units({name: core.unit for name, core in cores.items()})
    user_ids = dict(zip(cores, alike([core.user_ids for core in cores.values()]), strict=True))
    users = Vocabulary.of(pl.concat([*user_ids.values(), *([] if more is None else [more])]))
    domains = {
        name: _placed(core, users.rows(user_ids[name]), n_users=len(users))
        for name, core in cores.items()
    }
    sources = {name: core.source for name, core in cores.items()}
    return Reading(Domains(users, domains), sources)


def _placed(core: _Core, rows: Int64[np.ndarray, " user"], *, n_users: int) -> Domain:
    """The domain with its users at their `rows` of the shared vocabulary."""
    own = np.full(n_users, -1, np.int64)
    own[rows] = np.arange(len(rows))
    times = core.times
    if times is not None:
        times = csr.gathered(core.pairs.indptr, times, own)[1]
    return Domain(core.items, core.pairs.of_each(own), times)
