"""What leaves a domain: its users' vectors under pseudonyms, signed, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl
from jaxtyping import Float32
from pydantic import BaseModel, Field

from musketeers.data.pseudonyms import BYTES
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, DataError
from musketeers.exchange import UserEmbeddings
from musketeers.parties.defences import Defences
from musketeers.parties.guarantee import Mode, statement
from musketeers.parties.keys import Signer
from musketeers.parties.sealed import STRICT, Count, Schema, Sealed, damaged, read, write
from musketeers.tensor_files import Layout

_KEYS, _USERS = "keys", "users"

_MOST_SPREAD = 1000.0
"""Times the median length that a vector may have."""

_ROUNDING = 1e-9
"""Share by which two ways to the same number may differ."""

Mark = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class AboutUsers(BaseModel):
    """What a party says of the vectors that it publishes."""

    model_config = STRICT

    users: Count
    dim: Annotated[int, Field(ge=1, le=4096)]
    space: Mark
    """The same for vectors that can be compared: those solved for against the same items."""
    secret: Mark
    """The same for pseudonyms that can be compared (`Secret.check`)."""
    defences: Defences
    mode: Mode
    """The weaker of those of all releases that the party made, this one included."""
    mu: Annotated[float, Field(gt=0)] | None
    """Of all releases with noise that the party made, these included; None if any was without."""
    statement: Annotated[str, Field(max_length=1000)]
    """What they guarantee together."""


def _layout(about: AboutUsers) -> Layout:
    return {
        _KEYS: (np.dtype(np.uint8), (about.users, BYTES)),
        _USERS: (np.dtype(np.float32), (about.users, about.dim)),
    }


SCHEMA = Schema("publication", AboutUsers, _layout)


@dataclass(frozen=True, slots=True, eq=False)
class Publication:
    """What one party published."""

    domain: str
    sequence: int
    digest: str
    about: AboutUsers
    keys: pl.Series
    """The users' pseudonyms, ascending."""
    users: Float32[np.ndarray, "user dim"]


def publish(
    place: str,
    keys: pl.Series,
    users: Float32[np.ndarray, "user dim"],
    about: AboutUsers,
    signer: Signer,
    *,
    domain: str,
    sequence: int,
) -> Publication:
    """Write a row of `users` for each of the pseudonyms `keys`, which must ascend."""
    tensors = {_KEYS: as_bytes(keys), _USERS: np.ascontiguousarray(users, np.float32)}
    return _of(write(place, SCHEMA, about, tensors, signer, maker=domain, sequence=sequence))


def read_publication(place: str, public: Mapping[str, str], *, dim: int) -> Publication:
    """What a party published, checked; vectors narrower than `dim` are filled with zeros.

    `public` has the parties' keys by domain.  Raises `ArtifactError`, which says what is wrong.
    """
    sealed = read(place, SCHEMA, public)
    about, keys, users = sealed.about, sealed.tensors[_KEYS], sealed.tensors[_USERS]
    if about.dim > dim:
        raise ArtifactError(
            f"{place}: {sealed.maker}'s vectors have {about.dim} numbers, the settings' dim is "
            f"{dim}; let all parties use the same settings"
        )
    own = about.defences.mu
    less = about.mu is not None and (own is None or about.mu < own * (1 - _ROUNDING))
    if less or about.statement != statement(about.mode, about.mu, about.defences.delta):
        raise damaged(place, "says of itself what does not follow from what it states")
    check_keys(place, keys)
    lengths = np.linalg.norm(users, axis=1)
    longest, middle = int(lengths.argmax()), float(np.median(lengths))
    if not middle:
        raise damaged(place, "holds vectors of which half or more are zero")
    if lengths[longest] > _MOST_SPREAD * middle:
        raise damaged(
            place,
            f"holds a vector in row {longest} of length {lengths[longest]:.3g}, {_MOST_SPREAD:g} "
            f"times the median {middle:.3g}",
        )
    return _of(sealed, dim=dim)


def _of(sealed: Sealed[AboutUsers], dim: int | None = None) -> Publication:
    users = sealed.tensors[_USERS]
    if dim and users.shape[1] < dim:
        users = np.pad(users, ((0, 0), (0, dim - users.shape[1])))
    keys = as_text(sealed.tensors[_KEYS])
    return Publication(sealed.maker, sealed.sequence, sealed.digest, sealed.about, keys, users)


def told(
    published: Mapping[str, Publication], domains: Sequence[str]
) -> tuple[Vocabulary, UserEmbeddings]:
    """All users whom anybody published, and what the `domains`, in this order, tell of them.

    One that has published nothing knows nobody.  Raises `DataError` if the pseudonyms of two
    parties cannot meet.
    """
    first, *others = published.values()
    for other in others:
        if other.about.secret != first.about.secret:
            raise DataError(
                f"{first.domain} and {other.domain} made pseudonyms with different secrets, so no "
                "user of theirs can meet; let all parties use one (--secret)"
            )
    users = Vocabulary.of(pl.concat([one.keys for one in published.values()]))
    shape, dim = len(users), first.users.shape[1]
    tables = {name: np.zeros((shape, dim), np.float32) for name in domains}
    known = {name: np.zeros(shape, np.bool_) for name in domains}
    for name, one in published.items():
        rows = users.rows(one.keys)
        tables[name][rows] = one.users
        known[name][rows] = True
    return users, UserEmbeddings.collect(tables, known)


def by_domain(
    places: Sequence[str], public: Mapping[str, str], *, dim: int
) -> dict[str, tuple[str, Publication]]:
    """What is published at the `places`, in the order of the parties: the place, and what is there.

    Raises `ArtifactError` for two of one party, and what `read_publication` raises.
    """
    found: dict[str, tuple[str, Publication]] = {}
    for place in places:
        one = read_publication(place, public, dim=dim)
        if one.domain in found:
            raise ArtifactError(
                f"{found[one.domain][0]} and {place} are both by {one.domain}; give the latest of "
                "each party alone"
            )
        found[one.domain] = place, one
    return {name: found[name] for name in public if name in found}


def as_bytes(keys: pl.Series) -> np.ndarray:
    """Pseudonyms as they are in a file, a row each."""
    raw = keys.str.decode("hex").to_list()
    return np.frombuffer(b"".join(raw), np.uint8).reshape(len(keys), BYTES)


def as_text(keys: np.ndarray) -> pl.Series:
    """Pseudonyms as they are in a vocabulary."""
    raw = keys.tobytes()
    rows = [raw[n : n + BYTES] for n in range(0, len(raw), BYTES)]
    return pl.Series("id", rows, dtype=pl.Binary).bin.encode("hex")


def check_keys(place: str, keys: np.ndarray) -> None:
    """Raise `ArtifactError` unless the pseudonyms ascend, each once."""
    high, low = keys.view(">u8").T
    ascends = (high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] < low[1:]))
    if not ascends.all():
        raise damaged(place, "holds pseudonyms that repeat or do not ascend")
