"""What the coordinator gives back: the encoder, and what of a user is the same in all domains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl
from jaxtyping import Float32
from pydantic import BaseModel, Field

from musketeers.cat.model import shapes
from musketeers.cat.train import Aligned
from musketeers.data.pseudonyms import BYTES
from musketeers.errors import ArtifactError
from musketeers.parties.keys import Signer
from musketeers.parties.publication import Mark, as_bytes, as_text, check_keys
from musketeers.parties.sealed import STRICT, Count, Digest, Name, Schema, read, write
from musketeers.tensor_files import Layout
from musketeers.training import History

MAKER = "coordinator"

_KEYS, _USERS = "keys", "users"
_WEIGHTS = "weights/"
_MOST_EPOCHS = 100
"""So that beside as many sources as there may be the header stays within its limit."""


class Source(BaseModel):
    """One of the domains that the encoder was trained on."""

    model_config = STRICT

    domain: Name
    space: Mark
    """That of its vectors then; others tell the encoder nothing that it knows."""
    sequence: Count | None
    """Of the publication that was aligned; None of a party that has left."""
    digest: Digest | None
    """Likewise."""


class Pass(BaseModel):
    """One epoch of the encoder's training, as `training.Epoch` has it."""

    model_config = STRICT

    number: Annotated[int, Field(ge=0)]
    train_loss: float | None
    valid: float
    seconds: float
    valid_seconds: float
    passes: int


class AboutAligned(BaseModel):
    """What the coordinator says of an alignment."""

    model_config = STRICT

    audience: Name | None
    """The only party whose users are in it; None: all users are."""
    users: Count
    dim: Annotated[int, Field(ge=1, le=4096)]
    length: Annotated[float, Field(gt=0)]
    """Mean length of the encoder's output; the vectors are divided by it."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=200)]
    """What the encoder is told of a user, in this order."""
    epochs: Annotated[tuple[Pass, ...], Field(min_length=1, max_length=_MOST_EPOCHS)]
    """The encoder's training; of a long one some epochs, the best among them."""


def _layout(about: AboutAligned) -> Layout:
    single = np.dtype(np.float32)
    weights = shapes(len(about.sources), about.dim)
    return {
        _KEYS: (np.dtype(np.uint8), (about.users, BYTES)),
        _USERS: (single, (about.users, about.dim)),
        **{_WEIGHTS + name: (single, shape) for name, shape in weights.items()},
    }


SCHEMA = Schema("alignment", AboutAligned, _layout)


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """What the coordinator made of publications."""

    sequence: int
    digest: str
    about: AboutAligned
    keys: pl.Series
    """Pseudonyms of the users of `users`, ascending."""
    users: Float32[np.ndarray, "user dim"]
    weights: Mapping[str, np.ndarray]

    @property
    def domains(self) -> tuple[str, ...]:
        """What the encoder is told of, in order; those that have left, too."""
        return tuple(source.domain for source in self.about.sources)

    def encoder(self) -> Aligned:
        """The network, and the embeddings of the users that are here."""
        epochs = [one.model_dump() for one in self.about.epochs]
        return Aligned(self.users, self.about.length, self.weights, History.from_json(epochs))


def write_alignment(
    place: str,
    keys: pl.Series,
    aligned: Aligned,
    sources: tuple[Source, ...],
    signer: Signer,
    *,
    audience: str | None,
    sequence: int,
) -> str:
    """Write a row of ``aligned.users`` for each of the pseudonyms `keys`, and the encoder.

    Returns the file's digest.
    """
    about = AboutAligned(
        audience=audience,
        users=len(keys),
        dim=aligned.users.shape[1],
        length=aligned.length,
        sources=sources,
        epochs=_thinned(aligned.history),
    )
    tensors = {
        _KEYS: as_bytes(keys),
        _USERS: aligned.users,
        **{_WEIGHTS + name: array for name, array in aligned.weights.items()},
    }
    return write(place, SCHEMA, about, tensors, signer, maker=MAKER, sequence=sequence).digest


def _thinned(history: History) -> tuple[Pass, ...]:
    epochs = [Pass(**one) for one in history.to_json()]
    best = history.epochs.index(history.best)
    some = np.linspace(0, len(epochs) - 1, min(len(epochs), _MOST_EPOCHS - 1)).astype(int)
    return tuple(epochs[n] for n in sorted({*some.tolist(), best}))


def read_alignment(place: str, public: str, *, dim: int) -> Alignment:
    """What the coordinator of that public key made, checked.

    Raises `ArtifactError`, which says what is wrong.
    """
    sealed = read(place, SCHEMA, {MAKER: public})
    about, tensors = sealed.about, sealed.tensors
    if about.dim != dim:
        raise ArtifactError(
            f"{place}: its vectors have {about.dim} numbers, the settings' dim is {dim}; let all "
            "parties use the same settings"
        )
    check_keys(place, tensors[_KEYS])
    weights = {
        name.removeprefix(_WEIGHTS): array
        for name, array in tensors.items()
        if name.startswith(_WEIGHTS)
    }
    keys = as_text(tensors[_KEYS])
    return Alignment(sealed.sequence, sealed.digest, about, keys, tensors[_USERS], weights)
