"""Fresh interactions: what users have done since the model was fitted, kept until the next fit.

A store keeps for each triple of user, domain and item the latest second at which it was seen, so
that a client may send the same again without harm, and readers of data, which take the latest time
of a repeated pair, miss nothing.  Ids are text here; who calls writes integers as decimal numbers.

Nothing leaves a store by age alone: `Store.recent` passes over what is old, but it is kept until
`Store.prune` is told to drop it, which `musketeers interactions` does once it is in a file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from musketeers.config import check_domain_name
from musketeers.data.columns import LONGEST_ID
from musketeers.errors import ArtifactError, DataError

MOST = 100
"""Items of a user that `Store.recent` gives by default, over all domains."""
DAYS = 30
"""How far `Store.recent` looks back by default."""
SECONDS_A_DAY = 86_400

Row = tuple[str, str, str, int]
"""User, domain, item, and when: seconds since 1970, UTC."""
Recent = dict[str, list[str]]
"""Items of each domain, newest first, each once; the domain of the newest comes first."""

_REDIS = ("redis://", "rediss://", "unix://")
_LATEST = 1 << 40
"""Seconds.  Far away, and below the milliseconds of today."""


class Store(Protocol):
    """Where fresh interactions are kept; safe to use from threads and from several processes.

    All methods raise `ArtifactError` if the store is damaged, full or out of reach; a change that
    raises has not been promised to anybody, and may be tried again.
    """

    @property
    def risks(self) -> Sequence[str]:
        """How an acknowledged change can be lost even so, a line each; empty if in no known way."""
        ...

    def add(self, user: str, domain: str, items: Sequence[str], at: int) -> None:
        """Keep that `user` has met `items` at the second `at`; returns when it is durable.

        Raises `DataError` for what `check` refuses, and keeps nothing then.
        """
        ...

    def recent(self, users: Sequence[str], *, most: int = MOST, days: int = DAYS) -> list[Recent]:
        """What each of the users did last: at most `most` items, of the last `days` days.

        Within one second the order is that of the text, descending, first by domain.
        """
        ...

    def forget(self, user: str) -> None:
        """Drop all that is kept of `user`; returns when that is durable."""
        ...

    def rows(self) -> Iterator[Row]:
        """All that was kept when this was called, in no order.

        What others add or drop meanwhile may be among it or not.  A row may come twice.
        """
        ...

    def prune(self, before: int) -> int:
        """Drop what was last seen before that second; how many rows that were."""
        ...

    def close(self) -> None:
        """Finish what was begun and let go; only closing may come after, which does nothing."""
        ...


def open_store(place: str, *, create: bool = True) -> Store:
    """The store at `place`: a file of SQLite, or Redis at ``redis://HOST:PORT/DATABASE``.

    A file that is not there is made if `create`.  Raises `ArtifactError` if it is no store of this
    format or out of reach, and `MissingExtraError` if Redis' client is not installed.
    """
    if place.startswith(_REDIS):
        from musketeers.serving.redis_store import RedisStore

        return RedisStore.open(place)
    from musketeers.serving.sqlite_store import SqliteStore

    path = Path(place)
    if not create and not path.exists():
        raise ArtifactError(f"{path}: there is no such store; give the one that a server writes")
    return SqliteStore.open(path)


def check(user: str, domain: str, items: Sequence[str], at: int) -> None:
    """Raise `DataError` for what could not be read back as data.

    These are names that no domain can have, ids that are blank, no Unicode text or longer than
    `LONGEST_ID` bytes, and an `at` that is no plausible number of seconds since 1970.
    """
    try:
        check_domain_name(domain)
    except ValueError as error:
        raise DataError(str(error)) from None
    _check_id("user id", user)
    for item in items:
        _check_id("item id", item)
    if not 0 <= at < _LATEST:
        raise DataError(f"the time {at} is no number of seconds since 1970; give seconds")


def _check_id(what: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise DataError(f"the {what} {text!a} is no Unicode text; repair it") from None
    if not text.strip():
        raise DataError(f"the {what} {text!r} is blank; give one with a letter or digit")
    if size > LONGEST_ID:
        raise DataError(
            f"the {what} {text[:20]!r}... has {size} bytes, more than {LONGEST_ID}; is it an id?"
        )
