"""Vectors as tables of PostgreSQL with the extension pgvector."""

import json
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, repeat
from struct import Struct

import numpy as np
import polars as pl
from jaxtyping import Float32

from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError, MissingExtraError
from musketeers.exports.addresses import place_of, without_secrets
from musketeers.exports.vectors import Space
from musketeers.protocols import Rows
from musketeers.recommender import STRATEGIES

try:
    import psycopg
    from psycopg import Connection, sql
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError:
    raise MissingExtraError(
        "writing to PostgreSQL needs a package that is not installed: "
        "pip install 'musketeers[pgvector]'"
    ) from None

MOST_DIMS, MOST_INDEXED, MOST_INDEXED_HALF = 16_000, 2_000, 4_000
"""Numbers that pgvector takes in a vector, and in one that is indexed, as ``halfvec`` too."""

_MOST_NAME = 63
"""Bytes of a name; PostgreSQL cuts longer ones off without a word."""
_DRAFT = "__new"
_DEFAULTS = {"connect_timeout": "10", "application_name": "musketeers export"}
_PATIENCE = 10.0
"""Seconds that a reader in a long transaction may keep new tables out."""
_LOCK_TIMEOUT = "200ms"
"""How long we wait at once, while later readers wait with us.  After a second the server looks if
two wait for each other, and ends one of them."""
_PAUSE = 0.05
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
"""Of COPY's binary format (PostgreSQL's manual, COPY, File Formats)."""
_COUNT, _LENGTH = Struct(">h"), Struct(">i")


@dataclass(frozen=True, slots=True)
class _Table:
    """One to be written: under a name of its own until it is whole."""

    name: str
    columns: sql.Composable
    key: sql.SQL | None

    @property
    def draft(self) -> sql.Identifier:
        return sql.Identifier(self.name + _DRAFT)


def write(url: str, prefix: str, spaces: Sequence[Space], told: Rows) -> str:
    """Replace the domains' tables in one transaction; where they are, to be shown to a person.

    Of each domain `PREFIX_DOMAIN_items`, `_users`, `_seen` and `_about`, in the first schema of the
    search path.  Ids are ``bigint`` where they are integers that fit, ``bytea`` where they are
    bytes, else ``text COLLATE "C"``, so that they are in the order of the model's.  Old tables are
    there until the new ones are whole; what others have built on them (views) is not dropped but
    refuses the export.

    Raises `ConfigError` for an address that cannot be read, a name that is too long, a vector of
    more than `MOST_DIMS` numbers, and a database without the extension; `ArtifactError` for
    whatever the database says; all tables then are what they were.
    """
    place = place_of(url, "postgresql", "postgres")
    tables = {space.domain: _tables(space, prefix) for space in spaces}
    try:
        given = make_conninfo(
            "", **{**_DEFAULTS, **conninfo_to_dict(url), "client_encoding": "utf8"}
        )
    except psycopg.Error:
        # the library's own words repeat what it was given
        raise ConfigError(f"{place}: --url has options that PostgreSQL does not know") from None
    with _answering(place, url), psycopg.connect(given) as connection:
        _check_extension(connection, place)
        for space in spaces:
            # of two exports the second waits for the first to be whole
            name = f"{prefix}_{space.domain}"
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
            _fill(connection, space, tables[space.domain], told)
        _swap(connection, list(chain.from_iterable(tables.values())))
    return place


def index_note(space: Space) -> str | None:
    """What to know before making an index of the items, if there is anything."""
    if space.dim <= MOST_INDEXED:
        return None
    how = "as halfvec, less exactly" if space.dim <= MOST_INDEXED_HALF else "not at all"
    return (
        f"note: {space.domain}: pgvector indexes vectors of at most {MOST_INDEXED:,} numbers; "
        f"these of {space.dim:,} can be indexed {how}; without an index lists are exact"
    )


def _tables(space: Space, prefix: str) -> tuple[_Table, ...]:
    """Items, users, seen and about."""
    if space.dim > MOST_DIMS:
        raise ConfigError(
            f"{space.domain}: vectors of {space.dim:,} numbers are more than the "
            f"{MOST_DIMS:,} that pgvector takes; fit with a smaller dim, or export --to faiss"
        )
    user = sql.SQL("user_id {}").format(_kind(space.users))
    item = sql.SQL("item_id {}").format(_kind(space.items))
    vector = sql.SQL("vector vector({})").format(space.dim)
    strategy = sql.SQL("strategy text")
    about = sql.SQL("model_version text, about jsonb, unknown vector({})").format(space.dim)
    columns = {
        "items": ([item, vector], sql.SQL("item_id")),
        "users": ([user, strategy, vector], sql.SQL("user_id")),
        "seen": ([user, item], sql.SQL("user_id, item_id")),
        "about": ([about], None),
    }
    names = {part: f"{prefix}_{space.domain}_{part}" for part in columns}
    longest = max(len((name + _DRAFT).encode()) for name in names.values())
    if longest > _MOST_NAME:
        raise ConfigError(
            f"the name {names['items']!r} is too long for a table: with {_DRAFT} it has {longest} "
            f"bytes, at most {_MOST_NAME} of which count; give a shorter --prefix"
        )
    return tuple(
        _Table(names[part], sql.SQL(", ").join(of), key) for part, (of, key) in columns.items()
    )


def _kind(ids: Vocabulary) -> sql.SQL:
    if _are_bigint(ids):
        return sql.SQL("bigint")
    return sql.SQL("bytea" if ids.values.dtype == pl.Binary else 'text COLLATE "C"')


def _are_bigint(ids: Vocabulary) -> bool:
    """Whether they are integers of at most 64 bits with a sign; they ascend."""
    fits = ids.values.dtype.is_integer()
    return fits and (not len(ids) or int(ids.values[-1]) < 2**63)


def _check_extension(connection: Connection, place: str) -> None:
    found = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
    if not found:
        raise ConfigError(
            f"{place}: the database lacks the extension pgvector; install it on the server, and "
            "then in this database: CREATE EXTENSION vector"
        )


def _fill(connection: Connection, space: Space, tables: tuple[_Table, ...], told: Rows) -> None:
    """The domain's tables under their names until they are whole."""
    items, users, seen, about = tables
    with told("export", space.domain) as on_rows:
        for table, rows in ((items, _items(space)), (users, _users(space))):
            for n_rows in _copied(connection, table, rows):
                on_rows(n_rows)
    for _ in _copied(connection, seen, _seen(space)):
        pass
    one = [_text([space.version]), _json([space.about()]), _vectors(space.unknown()[None])]
    for _ in _copied(connection, about, iter([one])):
        pass
    for table in tables:
        if table.key:
            key = sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})")
            connection.execute(key.format(table.draft, table.key))
        # nobody else has looked at them yet, and plans without numbers are bad ones
        connection.execute(sql.SQL("ANALYZE {}").format(table.draft))


def _copied(
    connection: Connection, table: _Table, blocks: Iterable[Sequence[Sequence[bytes]]]
) -> Iterator[int]:
    """How many rows of each block, given as columns of fields, the new table has taken."""
    create = sql.SQL("CREATE TABLE {} ({})").format(table.draft, table.columns)
    connection.execute(create)
    copy = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table.draft)
    with connection.cursor() as cursor, cursor.copy(copy) as to:
        to.write(_BEGIN)
        for columns in blocks:
            head = repeat(_COUNT.pack(len(columns)))
            to.write(b"".join(chain.from_iterable(zip(head, *columns, strict=False))))
            yield len(columns[0])
        to.write(_END)


def _swap(connection: Connection, tables: Sequence[_Table]) -> None:
    """Put new tables in the place of old ones, as soon as nobody reads these."""
    names = [sql.Identifier(table.name) for table in tables]
    found = [connection.execute("SELECT to_regclass(%s)", [n.as_string(connection)]) for n in names]
    old = [name for name, known in zip(names, found, strict=True) if known.fetchone() != (None,)]
    if old:
        _hold(connection, sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(_listed(old)))
        connection.execute(sql.SQL("DROP TABLE {}").format(_listed(old)))
    for table, name in zip(tables, names, strict=True):
        connection.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(table.draft, name))


def _listed(names: Sequence[sql.Identifier]) -> sql.Composed:
    return sql.SQL(", ").join(names)


def _hold(connection: Connection, lock: sql.Composed) -> None:
    """Take all locks or none, again and again: whoever has some may wait for us with the rest."""
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(_LOCK_TIMEOUT))
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with connection.transaction():
                connection.execute(lock)
                return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > end:
                raise
        time.sleep(_PAUSE)


def _items(space: Space) -> Iterator[list[list[bytes]]]:
    for step in space.steps(len(space.items)):
        yield [_ids(space.items, step), _vectors(space.item_vectors(step))]


def _users(space: Space) -> Iterator[list[list[bytes]]]:
    names = _text(STRATEGIES)
    for step in space.steps(len(space.users)):
        strategies = [names[n] for n in space.strategies[step].tolist()]
        yield [_ids(space.users, step), strategies, _vectors(space.user_vectors(step))]


def _seen(space: Space) -> Iterator[list[list[bytes]]]:
    seen, items = space.seen, _ids(space.items, slice(None))
    for step in space.steps(len(space.users)):
        counts = np.diff(seen.indptr)[step].tolist()
        users = map(repeat, _ids(space.users, step), counts)
        part = seen.items[seen.indptr[step.start] : seen.indptr[step.stop]]
        yield [list(chain.from_iterable(users)), [items[n] for n in part.tolist()]]


# Fields of COPY's binary format: their length, then what the type's own format says.


def _ids(ids: Vocabulary, step: slice) -> list[bytes]:
    values = ids.values[step]
    if _are_bigint(ids):
        return _fields(values.to_numpy().astype(">i8")[:, None].view(np.uint8))
    if values.dtype == pl.Binary:
        return _sized(values.to_list())
    return _text(values.cast(pl.String).to_list())


def _text(texts: Iterable[str]) -> list[bytes]:
    return _sized(text.encode() for text in texts)


def _json(values: Iterable[object]) -> list[bytes]:
    return _sized(b"\x01" + json.dumps(value).encode() for value in values)


def _sized(fields: Iterable[bytes]) -> list[bytes]:
    return [_LENGTH.pack(len(field)) + field for field in fields]


def _vectors(vectors: Float32[np.ndarray, "row dim"]) -> list[bytes]:
    """As pgvector has them: number of dimensions, 0, the numbers."""
    n_rows, dim = vectors.shape
    head = np.broadcast_to(np.array([dim, 0], ">i2").view(np.uint8), (n_rows, 4))
    return _fields(np.hstack([head, vectors.astype(">f4").view(np.uint8)]))


def _fields(rows: np.ndarray) -> list[bytes]:
    head = _LENGTH.pack(rows.shape[1])
    return [head + row.tobytes() for row in np.ascontiguousarray(rows)]


@contextmanager
def _answering(place: str, url: str) -> Generator[None]:
    """Turn what the database refuses into one line without its secret."""
    try:
        yield
    except psycopg.Error as error:
        reason = without_secrets(str(error), url)
        raise ArtifactError(f"{place}: {reason}; nothing was exported, old tables stand") from None
