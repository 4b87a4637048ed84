"""Users' ids under a secret key: whoever holds the key gives a user the same pseudonym.

A pseudonym is HMAC-SHA-256 of the id's one form, cut to 128 bits.  Without the key it tells nothing
of the id; with the key anyone can compute those of ids to try, so the key is to stay with those who
know the ids anyway.
"""

import hmac
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from musketeers import artifacts
from musketeers.data.vocabulary import plain
from musketeers.errors import ConfigError, DataError

BYTES = 16
"""Of a pseudonym: among a billion users the chance that any two are alike is below 1e-20."""

_KEY_BYTES = 32
_LEAST_KEY_BYTES = 16
_USER, _CHECK = b"musketeers/user\0", b"musketeers/check\0"


@dataclass(frozen=True, slots=True)
class Secret:
    """The key that the parties share, and nobody else."""

    key: bytes = field(repr=False)

    @classmethod
    def make(cls, path: Path) -> "Secret":
        """A new key from the system's entropy, written to `path`, which its owner alone can read.

        Raises `ArtifactError` if there is a file: a key that is lost takes all pseudonyms with it.
        """
        secret = cls(secrets.token_bytes(_KEY_BYTES))
        artifacts.write_private(path, secret.key.hex().encode() + b"\n")
        return secret

    @classmethod
    def read(cls, path: Path) -> "Secret":
        """The key in the file `path`, hexadecimal digits of 128 bits or more."""
        try:
            text = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read: {error.strerror}; give the key that the parties share "
                "(musketeers party secret makes one)"
            ) from None
        try:
            key = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            key = b""
        if len(key) < _LEAST_KEY_BYTES:
            # of a secret not even a part is shown
            raise ConfigError(
                f"{path}: is no key; it must hold {2 * _LEAST_KEY_BYTES} hexadecimal digits or "
                "more and nothing else (musketeers party secret makes one)"
            )
        return cls(key)

    @property
    def check(self) -> str:
        """The same for the same key: tells whether two parties use one, and not which."""
        return hmac.digest(self.key, _CHECK, "sha256")[:8].hex()

    def of(self, ids: pl.Series) -> pl.Series:
        """The pseudonyms of `ids`, in hexadecimal digits, in their order.

        An id has one form, whatever type it comes in: numbers, dates and booleans as they are
        written, bytes as the text they are, text in Unicode's form NFC.  "7" is 7; "007" is not.
        Raises `DataError` for ids that are missing, floats, or nested.
        """
        ids = plain(ids)
        if missing := ids.null_count():
            raise DataError(f"{missing} of {len(ids)} ids are null; every row needs an id")
        if not isinstance(ids.dtype, pl.String | pl.Binary):
            ids = ids.cast(pl.String)
        found = [hmac.digest(self.key, _USER + _form(one), "sha256")[:BYTES].hex() for one in ids]
        return pl.Series(ids.name, found, dtype=pl.String)


def _form(one: str | bytes) -> bytes:
    """The bytes that stand for an id, in whatever type it came."""
    if isinstance(one, bytes):
        try:
            one = one.decode()
        except UnicodeDecodeError:
            return one
    return (one if one.isascii() else unicodedata.normalize("NFC", one)).encode()
