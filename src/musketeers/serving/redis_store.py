"""Fresh interactions in Redis, for the servers of several machines."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from musketeers.errors import ArtifactError, MissingExtraError
from musketeers.serving import fresh
from musketeers.serving.fresh import DAYS, MOST, SECONDS_A_DAY, Recent, Row

try:
    import redis
    from redis.exceptions import RedisError, ResponseError
except ImportError:
    raise MissingExtraError(
        "to keep interactions in Redis needs a package that is not installed: "
        "pip install 'musketeers[redis]'"
    ) from None

FORMAT = b"1"
"""Raised by one whenever an older version would misread newer keys."""

_TIMEOUT = 10
"""Seconds to wait for a connection or an answer."""
_FORMAT_KEY = b"musketeers:fresh-format"
_PREFIX = b"musketeers:fresh:"
"""Before each user's id: the key of their sorted set, domain NUL item by second."""
_PAGE = 1000
"""Users that are read or pruned at a time."""
_DURABLE = {
    "appendonly": ("yes", "a restart loses what came after the last snapshot"),
    "appendfsync": ("always", "a power cut loses the last second, or more"),
    "no-appendfsync-on-rewrite": ("no", "a power cut while the log is rewritten loses more"),
    "maxmemory-policy": ("noeviction", "what is kept is dropped when memory is full"),
}
"""What Redis' settings have to be, and what happens otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class RedisStore:
    """A `fresh.Store` in one database of a Redis of at least 6.2.

    Redis acknowledges a change when it has it in memory.  What that is worth, ``appendfsync`` says,
    once there is a log at all (``appendonly yes``, which is not the default):

    * ``always``: it was synced to the disk before the answer; a killed Redis and a power cut lose
      nothing.
    * ``everysec`` (Redis' default): the system has it; a killed Redis loses nothing, a power cut
      loses the last second, and two while the disk is slow.
    * ``no``: a killed Redis loses nothing, a power cut what the system had not written yet, on
      Linux commonly up to 30 seconds.

    With ``no-appendfsync-on-rewrite yes`` nothing is synced while the log is being rewritten,
    and with another ``maxmemory-policy`` than ``noeviction`` Redis may drop anything when its
    memory is full.  `risks` tells which of these applies.  Replicas are told later than the
    caller: who promotes one may lose what it had not heard of, and this class cannot see that.
    """

    place: str
    """Without the password."""
    _client: Any  # its types say that every answer may be awaited
    _risks: tuple[str, ...]

    @classmethod
    def open(cls, url: str) -> "RedisStore":
        """The store in the database that `url` names, a new one if there is none.

        Raises `ArtifactError` if the URL is wrong, if Redis does not answer or refuses, and for
        another format.
        """
        place = _without_password(url)
        try:
            client: Any = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT
            )
        except ValueError as error:
            raise ArtifactError(
                f"{place}: is no address of Redis ({error}); write redis://HOST:PORT/DATABASE"
            ) from None
        try:
            with _explained(place):
                client.set(_FORMAT_KEY, FORMAT, nx=True)
                if (found := client.get(_FORMAT_KEY)) != FORMAT:
                    raise ArtifactError(
                        f"{place}: holds a store of format {found!r}, this version reads "
                        f"{FORMAT!r}; use the version of musketeers that wrote it"
                    )
                risks = _risks_of(client, place)
        except BaseException:
            client.close()
            raise
        return cls(place, client, risks)

    @property
    def risks(self) -> Sequence[str]:
        """Which of Redis' settings, when the store was opened, let it lose what it acknowledged."""
        return self._risks

    def add(self, user: str, domain: str, items: Sequence[str], at: int) -> None:
        """As `fresh.Store.add`."""
        fresh.check(user, domain, items, at)
        if not items:
            return
        with _explained(self.place):
            # one command, so all of it or nothing; sent again by the client it does no harm
            self._client.zadd(
                _key(user), {f"{domain}\0{item}".encode(): at for item in items}, gt=True
            )

    def recent(self, users: Sequence[str], *, most: int = MOST, days: int = DAYS) -> list[Recent]:
        """As `fresh.Store.recent`."""
        since = int(time.time()) - days * SECONDS_A_DAY
        with _explained(self.place), self._client.pipeline(transaction=False) as batch:
            for user in users:
                batch.zrevrangebyscore(_key(user), "+inf", since, start=0, num=most)
            return [_by_domain(found) for found in batch.execute()]

    def forget(self, user: str) -> None:
        """As `fresh.Store.forget`."""
        with _explained(self.place):
            self._client.unlink(_key(user))

    def rows(self) -> Iterator[Row]:
        """As `fresh.Store.rows`."""
        for keys in self._pages():
            with _explained(self.place), self._client.pipeline(transaction=False) as batch:
                for key in keys:
                    batch.zrange(key, 0, -1, withscores=True)
                page = batch.execute()
            for key, found in zip(keys, page, strict=True):
                user = key.removeprefix(_PREFIX).decode()
                for member, at in found:
                    domain, item = member.decode().split("\0", 1)
                    yield user, domain, item, int(at)

    def prune(self, before: int) -> int:
        """As `fresh.Store.prune`."""
        dropped = 0
        for keys in self._pages():
            with _explained(self.place), self._client.pipeline(transaction=False) as batch:
                for key in keys:
                    batch.zremrangebyscore(key, "-inf", f"({before}")
                dropped += sum(batch.execute())
        return dropped

    def close(self) -> None:
        """As `fresh.Store.close`."""
        self._client.close()

    def _pages(self) -> Iterator[list[bytes]]:
        """The keys of all users, some at a time."""
        cursor = None
        while cursor != 0:
            with _explained(self.place):
                cursor, keys = self._client.scan(cursor or 0, match=_PREFIX + b"*", count=_PAGE)
            yield keys


def _key(user: str) -> bytes:
    return _PREFIX + user.encode()


def _by_domain(members: Sequence[bytes]) -> Recent:
    recent: Recent = {}
    for member in members:
        domain, item = member.decode().split("\0", 1)
        recent.setdefault(domain, []).append(item)
    return recent


def _risks_of(client: Any, place: str) -> tuple[str, ...]:
    try:
        # one by one: before 7.0 it takes a single name
        found = {name: client.config_get(name).get(name) for name in _DURABLE}
    except ResponseError:  # hosted ones often forbid it
        return (f"{place}: does not tell how durable it is; see that it has appendfsync always",)
    return tuple(
        f"{place}: has {name} {found[name]}: {fault}; set it to {wanted}"
        for name, (wanted, fault) in _DURABLE.items()
        if found[name] != wanted
    )


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


@contextmanager
def _explained(place: str) -> Generator[None]:
    """Any refusal of Redis as one `ArtifactError`."""
    try:
        yield
    except RedisError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(
            f"{place}: cannot be used ({reason}); see whether Redis runs there and is not full"
        ) from None
