"""Vectors as hashes of Redis, in generations of which a pointer names one."""

import json
import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import polars as pl

from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError, MissingExtraError
from musketeers.exports.addresses import place_of, without_secrets
from musketeers.exports.vectors import Space
from musketeers.protocols import Rows
from musketeers.recommender import STRATEGIES

try:
    from redis import Redis
    from redis.commands.search.field import VectorField
    from redis.commands.search.index_definition import IndexDefinition, IndexType
    from redis.exceptions import RedisError, ResponseError
except ImportError:
    raise MissingExtraError(
        "writing to Redis needs a package that is not installed: pip install 'musketeers[redis]'"
    ) from None

GRACE = 60
"""Seconds that the keys of an old generation stay, for readers who are about to use them."""

_HELD = 60
"""Seconds after which an export that was killed no longer keeps others out."""
_COMMANDS = 2_000
"""Sent at once."""
_GENERATIONS = "[0-9a-f]" * 12 + "-" + "[0-9a-f]" * 8
"""The pattern of their names: model version, and something new."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one export puts a domain."""

    pointer: str
    """The key that names the generation in use."""
    generation: str
    token: str
    """Of whoever holds the lock."""

    @property
    def lock(self) -> str:
        return f"{self.pointer}:lock"

    @property
    def keys(self) -> str:
        """What the names of all keys of the generation begin with."""
        return f"{self.pointer}:{self.generation}:"

    @property
    def index(self) -> str:
        return f"{self.keys}index"


def write(url: str, prefix: str, spaces: Sequence[Space], told: Rows) -> tuple[str, bool]:
    """Replace the domains' vectors; where they are, for a person, and whether they are indexed.

    The string ``PREFIX:DOMAIN`` is the name of a generation G.  Under ``PREFIX:DOMAIN:G:`` are the
    hashes ``item:ID`` (item_id, vector) and ``user:ID`` (strategy, vector), the sets ``seen:ID``,
    the list ``items`` of all ids in ascending order, and the hash ``about`` (what JSON tells,
    and the vector of whoever is unknown).  Vectors are float32, little-endian.  Where the server
    has a query engine, ``index`` is an index of the items' vectors.

    The pointers of all domains move at once, when everything is there; the keys of older
    generations are gone `GRACE` seconds later.  Raises `ConfigError` for an address that cannot
    be read and `ArtifactError` for whatever the server says, and while another export is writing;
    the old generation then stands.
    """
    location = place_of(url, "redis", "rediss", "unix")
    with _answering(location, url), _connected(url, location) as server:
        indexed = _has_query_engine(server)
        with _locked(server, location, prefix, spaces) as places:
            for space, place in zip(spaces, places, strict=True):
                if indexed:
                    _index(server, place, space.dim)
                with told("export", space.domain) as on_rows:
                    for n_rows in _filled(server, space, place):
                        on_rows(n_rows)
            old = _switch(server, location, places)
            # the new ones are in use: what cannot be cleared now goes with the next export
            with suppress(RedisError):
                for place, before in zip(places, old, strict=True):
                    _retire(server, place, before, indexed=indexed)
    return location, indexed


@contextmanager
def _connected(url: str, location: str) -> Generator[Redis]:
    try:
        server = Redis.from_url(url, socket_connect_timeout=10)
        server.ping()
    except (ValueError, TypeError):
        # the library's own words repeat what it was given
        raise ConfigError(f"{location}: --url has options that Redis does not know") from None
    with server:
        yield server


def _has_query_engine(server: Redis) -> bool:
    try:
        server.execute_command("FT._LIST")
    except ResponseError:
        return False
    return True


@contextmanager
def _locked(
    server: Redis, location: str, prefix: str, spaces: Sequence[Space]
) -> Generator[list[_Place]]:
    """The places of a new generation, held by this export alone; after an error it is gone."""
    token = secrets.token_hex(4)
    held: list[_Place] = []
    try:
        for space in spaces:
            place = _Place(f"{prefix}:{space.domain}", f"{space.version}-{token}", token)
            if not server.set(place.lock, token, nx=True, ex=_HELD):
                raise ArtifactError(
                    f"{location}: another export is writing {place.pointer}, or was killed in the "
                    f"last {_HELD} seconds; wait for it"
                )
            held.append(place)
        yield held
    except BaseException:
        with suppress(RedisError):
            for place in held:
                if _text(server.get(place.pointer)) != place.generation:
                    _remove(server, place)
        raise
    finally:
        with suppress(RedisError):
            for place in held:
                if _text(server.get(place.lock)) == token:
                    server.delete(place.lock)


def _index(server: Redis, place: _Place, dim: int) -> None:
    """Before there is anything to index: what is indexed later is indexed behind our back."""
    kind = {"TYPE": "FLOAT32", "DIM": dim, "DISTANCE_METRIC": "IP"}
    server.ft(place.index).create_index(
        [VectorField("vector", "FLAT", kind)],
        definition=IndexDefinition(prefix=[f"{place.keys}item:"], index_type=IndexType.HASH),
    )


def _filled(server: Redis, space: Space, place: _Place) -> Iterator[int]:
    """How many users or items are there, each time some are."""
    for step in space.steps(len(space.items), _COMMANDS):
        ids, vectors = _ids(space.items, step), space.item_vectors(step).astype("<f4")
        with server.pipeline(transaction=False) as pipe:
            pipe.rpush(f"{place.keys}items", *ids)
            for key, vector in zip(ids, vectors, strict=True):
                fields = ["item_id", key, "vector", vector.tobytes()]
                pipe.hset(_key(place, "item", key), items=fields)
            pipe.expire(place.lock, _HELD)
            pipe.execute()
        yield len(ids)
    items = _ids(space.items, slice(None))
    for step in space.steps(len(space.users), _COMMANDS):
        ids, vectors = _ids(space.users, step), space.user_vectors(step).astype("<f4")
        with server.pipeline(transaction=False) as pipe:
            for row, key, vector in zip(range(step.start, step.stop), ids, vectors, strict=True):
                strategy = STRATEGIES[space.strategies[row]]
                fields = ["strategy", strategy, "vector", vector.tobytes()]
                pipe.hset(_key(place, "user", key), items=fields)
                if len(seen := space.seen.of(row)):
                    pipe.sadd(_key(place, "seen", key), *(items[n] for n in seen.tolist()))
            pipe.expire(place.lock, _HELD)
            pipe.execute()
        yield len(ids)
    about = {**space.about(), "generation": place.generation}
    unknown = space.unknown().astype("<f4").tobytes()
    fields = ["model_version", space.version, "about", json.dumps(about), "vector", unknown]
    server.hset(f"{place.keys}about", items=fields)


def _switch(server: Redis, location: str, places: Sequence[_Place]) -> list[str]:
    """Let all pointers name the new generation; what they named before, empty for nothing."""
    with server.pipeline() as pipe:
        pipe.watch(*(place.lock for place in places))
        if any(_text(pipe.get(place.lock)) != place.token for place in places):
            raise ArtifactError(f"{location}: took too long to answer; export again")
        pipe.multi()
        for place in places:
            pipe.set(place.pointer, place.generation, get=True)
        return [_text(before) for before in pipe.execute() or ()]


def _retire(server: Redis, place: _Place, before: str, *, indexed: bool) -> None:
    """Let go of the generation `before`, and of what killed exports left behind."""
    for keys in _scanned(server, f"{_literal(place.pointer)}:{_GENERATIONS}:*"):
        with server.pipeline(transaction=False) as pipe:
            for key in keys:
                if not key.startswith(place.keys.encode()):
                    pipe.expire(key, GRACE)
            pipe.expire(place.lock, _HELD)
            pipe.execute()
    if not indexed:
        return
    # the index of the one before is needed as long as its keys; the next export drops it
    kept = (place.keys, f"{place.pointer}:{before}:")
    for index in map(_text, server.execute_command("FT._LIST") or ()):
        if index.startswith(f"{place.pointer}:") and not index.startswith(kept):
            server.ft(index).dropindex()


def _remove(server: Redis, place: _Place) -> None:
    for keys in _scanned(server, f"{_literal(place.keys)}*"):
        server.unlink(*keys)
    with suppress(ResponseError):
        server.ft(place.index).dropindex()


def _literal(text: str) -> str:
    """The pattern that nothing but `text` matches."""
    return "".join(f"\\{sign}" if sign in "\\*?[]" else sign for sign in text)


def _scanned(server: Redis, pattern: str) -> Iterator[list[bytes]]:
    """All keys whose names match, some at a time."""
    block: list[bytes] = []
    for key in server.scan_iter(pattern, count=_COMMANDS):
        block.append(key)
        if len(block) == _COMMANDS:
            yield block
            block = []
    if block:
        yield block


def _key(place: _Place, kind: str, of: bytes) -> bytes:
    return f"{place.keys}{kind}:".encode() + of


def _ids(ids: Vocabulary, step: slice) -> list[bytes]:
    values = ids.values[step]
    if values.dtype == pl.Binary:
        return values.to_list()
    return [text.encode() for text in values.cast(pl.String).to_list()]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


@contextmanager
def _answering(location: str, url: str) -> Generator[None]:
    """Turn what the server refuses into one line without its secret."""
    try:
        yield
    except RedisError as error:
        reason = without_secrets(str(error), url)
        raise ArtifactError(
            f"{location}: {reason}; nothing was exported, what was there stands"
        ) from None
