"""Who may ask for what: bearer keys, each with scopes and perhaps domains of its own.

Gives `Keys` (from a TOML file and two environment variables; only SHA-256 hashes are kept),
`new_key`, `check_bind`, and for routes `requires`.  The gate identifies the caller of every
request (`Keys.identify`) and puts the `Key` into ``request.state.key``; `requires` refuses those
that lack a scope or the domain in the path.

Without any key the service is *open*: for this machine alone, everything but administration is
allowed, and what a web page from elsewhere could make a browser send is refused.
"""

import hmac
import ipaddress
import re
import secrets
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from fastapi import Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from musketeers.errors import ConfigError
from musketeers.serving.problems import Problem

Scope = Literal["read", "explain", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USER_VARIABLE = "MUSKETEERS_KEY"
ADMIN_VARIABLE = "MUSKETEERS_ADMIN_KEY"
MIN_CHARACTERS = 32
"""Of a key that somebody makes up; those of `new_key` have 43."""

_VARIABLES: dict[str, tuple[Scope, ...]] = {
    USER_VARIABLE: ("read", "explain", "write"),
    ADMIN_VARIABLE: SCOPES,
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """What one caller may do; `name` is all that logs say of it."""

    name: str
    scopes: frozenset[str]
    domains: frozenset[str] | None = None
    """None: all."""
    digest: bytes = field(default=b"", repr=False)

    def may_see(self, domain: str) -> bool:
        """Whether the key is one for `domain`."""
        return self.domains is None or domain in self.domains

    def check_domain(self, domain: str) -> None:
        """Raise `Problem` (403) unless the key is one for `domain`."""
        if not self.may_see(domain):
            raise Problem(403, "domain_forbidden", "The key is not one for this domain.")


OPEN = Key("open", frozenset({"read", "explain", "write"}))
"""Whoever asks where no keys are set."""


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of a service; none at all makes it open."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def collect(cls, path: Path | None, environment: Mapping[str, str]) -> "Keys":
        """The keys of a file, if any, and of the two environment variables, if set.

        The file holds ``[keys.NAME]`` tables with `sha256` (of the key, in hexadecimal), `scopes`
        and perhaps `domains`.  Others may read it: a hash of 256 random bits tells nothing.

        Raises `ConfigError` if anything in it is missing, unknown or twice there, or if others
        may write it.
        """
        found = _of_file(path) if path else []
        for name, scopes in _VARIABLES.items():
            if name in environment:
                found.append(_of_variable(name, environment[name], scopes))
        seen: dict[bytes, str] = {}
        for key in found:
            if (other := seen.setdefault(key.digest, key.name)) != key.name:
                raise ConfigError(f"keys {other} and {key.name} are the same; make a new one")
        return cls(tuple(found))

    @property
    def open(self) -> bool:
        """Whether no keys are set."""
        return not self.keys

    def identify(self, authorization: bytes, host: bytes, origin: bytes) -> Key | None:
        """Who asks, from the values of three headers (empty where absent).

        None if a key is needed and none was given.  Raises `Problem`: 401 for an unknown key;
        where it is open, 421 for a Host that is not this machine and 403 for a foreign Origin.
        """
        if not self.keys:
            _check_local(host, origin)
            return OPEN
        if not authorization:
            return None
        scheme, _, secret = authorization.partition(b" ")
        key = self._find(secret.strip()) if scheme.lower() == b"bearer" else None
        if key is None:
            raise _unauthenticated('Bearer error="invalid_token"')
        return key

    def _find(self, secret: bytes) -> Key | None:
        digest, found = sha256(secret).digest(), None
        # to the end in any case: the time must not tell which key is near
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_key(name: str, scopes: Sequence[str] = ("read",)) -> tuple[str, str]:
    """A new key of 256 random bits, and the lines for the file of keys.

    The key itself is kept nowhere.  Raises `ConfigError` for a bad name or scope.
    """
    secret = secrets.token_urlsafe(32)
    table = {"sha256": sha256(secret.encode()).hexdigest(), "scopes": list(scopes)}
    _of_table(name, table, "new key")
    return secret, tomli_w.dumps({"keys": {name: table}})


def check_bind(host: str, keys: Keys) -> None:
    """Raise `ConfigError` if others than this machine could reach an open service."""
    if keys.open and not _is_loopback(host):
        raise ConfigError(
            f"host {host!r} can be reached from elsewhere and no key is set; set {USER_VARIABLE}, "
            "give a file of keys, or serve on 127.0.0.1"
        )


def requires(scope: Scope) -> Any:
    """What a route declares to be for keys with `scope`, and to receive the `Key`.

    To be used as ``dependencies=[requires("read")]`` or ``key: Annotated[Key, requires("read")]``.
    Where the path has a parameter `domain`, the key must be one for it.  Answers 401 without a
    key, 403 where the key does not suffice.
    """
    return Security(_Needs(scope))


class _Needs(SecurityBase):
    """A security scheme to FastAPI, which puts it into the OpenAPI document."""

    scheme_name = "key"
    model = HTTPBearer(description="A key that the operator of the service gave out.")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(self, request: Request) -> Key:
        key: Key | None = request.state.key
        if key is None:
            raise _unauthenticated("Bearer")
        if self._scope not in key.scopes:
            if key is OPEN:
                raise Problem(403, "no_admin_key", f"No key is set here; set {ADMIN_VARIABLE}.")
            raise Problem(403, "scope_forbidden", f"The key lacks the scope {self._scope}.")
        if (domain := request.path_params.get("domain")) is not None:
            key.check_domain(domain)
        return key


def _unauthenticated(challenge: str) -> Problem:
    return Problem(401, headers={"WWW-Authenticate": challenge})


def _check_local(host: bytes, origin: bytes) -> None:
    """Refuse what a page from elsewhere makes a browser send, also under a name made to point here.

    A page cannot set either header.
    """
    if not _is_local_host(host):
        raise Problem(421)
    if origin and origin.partition(b"://")[2] != host:
        raise Problem(403, "foreign_origin", "Pages from elsewhere may not use this service.")


@lru_cache(maxsize=64)
def _is_local_host(host: bytes) -> bool:
    name = re.sub(r":\d{1,5}$", "", host.decode("latin-1"))
    if name.startswith("["):
        return name.endswith("]") and _is_loopback(name[1:-1])
    return ":" not in name and _is_loopback(name)


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _of_file(path: Path) -> list[Key]:
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: anyone may write it and so add keys; chmod o-w it")
    try:
        found: Any = tomllib.loads(content.decode())
    except ValueError as error:
        raise ConfigError(f"{path}: is no TOML file in UTF-8: {_position(error)}") from None
    if unknown := sorted(found.keys() - {"keys"}):
        raise ConfigError(f"{path}: {unknown[0]!r} is not known; each key is a table [keys.NAME]")
    tables = found.get("keys")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: holds no key; each is a table [keys.NAME]")
    return [_of_table(name, table, str(path)) for name, table in tables.items()]


def _position(error: ValueError) -> str:
    """Where the file breaks, without its text: somebody may have put a key there."""
    where = re.search(r"\(at (line \d+, column \d+|end of document)\)", str(error))
    return where[1] if where else "some bytes are not"


def _of_table(name: str, table: Any, origin: str) -> Key:
    where = f"{origin}: keys.{name!r}" if not _NAME.fullmatch(name) else f"{origin}: keys.{name}"
    if not _NAME.fullmatch(name) or name in (*_VARIABLES, OPEN.name):
        raise ConfigError(f"{where}: a name has 1 to 64 of A-Z a-z 0-9 _ -, and none of ours")
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: must be a table with sha256 and scopes")
    if unknown := sorted(table.keys() - {"sha256", "scopes", "domains"}):
        raise ConfigError(f"{where}: {unknown[0]!r} is not known; sha256, scopes and domains are")
    digest = table.get("sha256")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ConfigError(
            f"{where}: sha256 must be the key's SHA-256 hash, 64 digits of 0-9 a-f; never the key"
        )
    scopes = _names(table.get("scopes"), f"{where}: scopes")
    if wrong := sorted(scopes - {*SCOPES}):
        raise ConfigError(f"{where}: no scope is called {wrong[0]!r}; there are {_listed(SCOPES)}")
    domains = _names(table["domains"], f"{where}: domains") if "domains" in table else None
    return Key(name, scopes, domains, bytes.fromhex(digest))


def _names(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{where} must be a list of at least one name")
    return frozenset(value)


def _of_variable(name: str, secret: str, scopes: Sequence[str]) -> Key:
    if len(secret) < MIN_CHARACTERS or not re.fullmatch(r"[!-~]+", secret):
        raise ConfigError(
            f"{name} must be at least {MIN_CHARACTERS} characters of ASCII without blanks (found "
            f"{len(secret)}); make one with `openssl rand -base64 32`"
        )
    return Key(name, frozenset(scopes), None, sha256(secret.encode()).digest())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
