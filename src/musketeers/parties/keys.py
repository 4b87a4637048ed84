"""Who made it: each party signs what it gives away, by Ed25519 (RFC 8032)."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from musketeers import artifacts
from musketeers.errors import ConfigError, MissingExtraError

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
except ImportError:
    raise MissingExtraError(
        "parties sign what they exchange, which needs a package that is not installed: "
        "pip install 'musketeers[parties]'"
    ) from None

_PREFIX = "ed25519:"
_PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Signer:
    """Who holds a private key."""

    _key: Ed25519PrivateKey

    @classmethod
    def make(cls, path: Path) -> "Signer":
        """A new key, written to `path` (PKCS #8, PEM), which its owner alone can read.

        Raises `ArtifactError` if there is a file already.
        """
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        artifacts.write_private(path, pem)
        return cls(key)

    @classmethod
    def read(cls, path: Path) -> "Signer":
        """The key that `make`, or ``openssl genpkey -algorithm ed25519``, wrote."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read: {error.strerror}; this is to be the party's own key "
                "(musketeers party key makes one)"
            ) from None
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"{path}: is no private Ed25519 key in PEM without a password; make one "
                "(musketeers party key)"
            )
        return cls(key)

    @property
    def public(self) -> str:
        """What the others know the party by, as settings have it."""
        return _PREFIX + base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(message)


def check_public(names: Mapping[str, str]) -> None:
    """Raise `ConfigError` unless every name has a public key, and each its own."""
    owners: dict[str, str] = {}
    for name, text in names.items():
        if _public(text) is None:
            raise ConfigError(
                f"parties: the public key of {name} is {text!r}, no key; it is {_PREFIX} and 44 "
                "letters, as musketeers party key prints it"
            )
        if (other := owners.setdefault(text, name)) != name:
            raise ConfigError(
                f"parties: {other} and {name} have the same public key; each needs its own"
            )


def is_signed_by(text: str, signature: bytes, message: bytes) -> bool:
    """Whether the signature of the message is of the public key `text`."""
    key = _public(text)
    try:
        if key is not None:
            key.verify(signature, message)
    except InvalidSignature:
        return False
    return key is not None


def _public(text: str) -> Ed25519PublicKey | None:
    try:
        raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None
    if not text.startswith(_PREFIX) or len(raw) != _PUBLIC_BYTES:
        return None
    return Ed25519PublicKey.from_public_bytes(raw)
