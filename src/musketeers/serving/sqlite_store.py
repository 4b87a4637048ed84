"""Fresh interactions in one file of SQLite, for the servers of one machine."""

import os
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from musketeers import artifacts
from musketeers.errors import ArtifactError
from musketeers.serving import fresh
from musketeers.serving.fresh import DAYS, MOST, SECONDS_A_DAY, Recent, Row
from musketeers.serving.writer import Turn, Work, Writer

FORMAT = 1
"""Raised by one whenever an older version would misread a newer file."""

_OURS = 0x4D757374
"""Stands in the file's header for whose it is."""
_TIMEOUT = 10
"""Seconds to wait for a lock of SQLite's own: what a process takes to recover another's."""
_PAGE = 10_000
"""Rows that are read or dropped at a time."""

_SCHEMA = (
    "CREATE TABLE interactions (user TEXT NOT NULL, domain TEXT NOT NULL, item TEXT NOT NULL, "
    "at INTEGER NOT NULL, PRIMARY KEY (user, domain, item)) STRICT, WITHOUT ROWID",
    "CREATE INDEX newest ON interactions (user, at, domain, item)",
    f"PRAGMA user_version = {FORMAT}",
    f"PRAGMA application_id = {_OURS}",
)
_ADD = (
    "INSERT INTO interactions VALUES (?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET at = excluded.at WHERE excluded.at > at"
)
_RECENT = (
    "SELECT domain, item FROM interactions WHERE user = ? AND at >= ? "
    "ORDER BY at DESC, domain DESC, item DESC LIMIT ?"
)
_ROWS = (
    "SELECT user, domain, item, at FROM interactions WHERE (user, domain, item) > (?, ?, ?) "
    "ORDER BY user, domain, item LIMIT ?"
)
_NEXT_USER = "SELECT user FROM interactions WHERE user > ? ORDER BY user LIMIT 1 OFFSET ?"
_PRUNE = "DELETE FROM interactions WHERE user > ? AND user <= ? AND at < ?"
_PRUNE_REST = "DELETE FROM interactions WHERE user > ? AND at < ?"


@dataclass(frozen=True, slots=True, eq=False)
class SqliteStore:
    """A `fresh.Store` in a file on a local disk, which several processes may have open.

    What is acknowledged was synced to the disk (WAL, ``synchronous=FULL``), and survives a killed
    process and a power cut if the disk keeps what it says it has.  One thread writes, all that wait
    in one transaction; reading waits for nobody.  What is forgotten is overwritten with zeros.
    """

    path: Path
    _writer: Writer
    _turn: Turn
    _connection: sqlite3.Connection
    """The writer's."""
    _idle: "deque[sqlite3.Connection]" = field(default_factory=lambda: deque[sqlite3.Connection]())
    """Connections that nobody reads by just now."""

    @classmethod
    def open(cls, path: Path) -> "SqliteStore":
        """The store in the file `path`, a new one if there is none.

        Raises `ArtifactError` if it is no store, one of another format, or if the disk refuses.
        """
        path = path.absolute()
        turn = Turn.of(path)
        try:
            with turn.taken(), _explained(path):
                connection = _opened(path)
        except BaseException:
            turn.close()
            raise
        return cls(path, Writer.start(connection, turn), turn, connection)

    @property
    def risks(self) -> Sequence[str]:
        """None."""
        return ()

    def add(self, user: str, domain: str, items: Sequence[str], at: int) -> None:
        """As `fresh.Store.add`."""
        fresh.check(user, domain, items, at)
        rows = [(user, domain, item, at) for item in items]
        self._do(lambda connection: connection.executemany(_ADD, rows).rowcount)

    def recent(self, users: Sequence[str], *, most: int = MOST, days: int = DAYS) -> list[Recent]:
        """As `fresh.Store.recent`."""
        since = int(time.time()) - days * SECONDS_A_DAY
        with self._reading() as connection:
            return [_by_domain(connection.execute(_RECENT, (user, since, most))) for user in users]

    def forget(self, user: str) -> None:
        """As `fresh.Store.forget`."""
        self._do(
            lambda connection: (
                connection.execute("DELETE FROM interactions WHERE user = ?", (user,)).rowcount
            )
        )

    def rows(self) -> Iterator[Row]:
        """As `fresh.Store.rows`; each once, in order of user, domain and item."""
        last = ("", "", "")
        while last:
            # page by page: one long read would keep the log from being reset
            with self._reading() as connection:
                page: list[Row] = connection.execute(_ROWS, (*last, _PAGE)).fetchall()
            yield from page
            last = page[-1][:3] if page else None

    def prune(self, before: int) -> int:
        """As `fresh.Store.prune`; some users at a time, so that nobody waits for long."""
        dropped, start = 0, ""
        while start is not None:
            with self._reading() as connection:
                found = connection.execute(_NEXT_USER, (start, _PAGE)).fetchone()
            stop = found[0] if found else None
            dropped += self._do(_pruning(start, stop, before))
            start = stop
        return dropped

    def close(self) -> None:
        """As `fresh.Store.close`."""
        if not self._writer.close():
            return
        # the last connection of all copies the log into the database
        with self._turn.taken(), _explained(self.path):
            while self._idle:
                self._idle.pop().close()
            self._connection.close()
        self._turn.close()

    def _do(self, work: Work) -> int:
        with _explained(self.path):
            return self._writer.do(work)

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        with _explained(self.path):
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = _connected(self.path)
            try:
                yield connection
            finally:
                self._idle.append(connection)


def _opened(path: Path) -> sqlite3.Connection:
    if not os.path.lexists(path):
        # made here for its mode; one that is there is never opened, for closing it would take
        # away the locks that this process has on it
        with artifacts.writing(path):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    connection = _connected(path)
    try:
        if _is_new(connection, path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    try:
        for setting in ("synchronous = FULL", "fullfsync = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {setting}").close()
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether it is an empty database; raises `ArtifactError` for one that is no store."""
    [whose] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not whose and not version and not tables:
        return True
    if whose != _OURS:
        raise ArtifactError(
            f"{path}: is a database, but no store of interactions; give another place"
        )
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: is a store of format {version}, this version reads {FORMAT}; use the version "
            "of musketeers that wrote it"
        )
    return False


def _by_domain(found: "sqlite3.Cursor") -> Recent:
    recent: Recent = {}
    for domain, item in found:
        recent.setdefault(domain, []).append(item)
    return recent


def _pruning(start: str, stop: str | None, before: int) -> Work:
    """What drops old rows of the users after `start`, up to `stop` if there is one."""
    if stop is None:
        return lambda connection: connection.execute(_PRUNE_REST, (start, before)).rowcount
    return lambda connection: connection.execute(_PRUNE, (start, stop, before)).rowcount


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Any refusal of SQLite as one `ArtifactError`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            fault = "the disk is full, nothing was stored; free some space and try again"
        elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            fault = f"is damaged, or no store of interactions ({error}); restore a copy of it"
        else:
            fault = f"cannot be used ({error}); see whether its disk works and may be written"
        raise ArtifactError(f"{path}: {fault}") from None
