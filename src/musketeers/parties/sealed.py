"""One signed file: arrays whose names, types and shapes its manifest fixes, and nothing else.

The file is in the format of safetensors.  Beside the arrays its header holds two texts, a manifest
in canonical JSON and the signature of it; the manifest has the checksum of all that follows the
header.  A reader knows from the manifest what the header must be, byte for byte, and refuses every
other one: there is no room for anything that the manifest's schema has no name for, and no byte
can change unnoticed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from musketeers.artifacts import check_tensor
from musketeers.config import check_domain_name
from musketeers.errors import ArtifactError
from musketeers.memory import available
from musketeers.parties import places
from musketeers.parties.keys import SIGNATURE_BYTES, Signer, is_signed_by
from musketeers.tensor_files import (
    HEADER_LIMIT,
    Layout,
    bytes_of,
    header,
    in_parts,
    size,
    views,
)

FORMAT = 1
"""Raised by one whenever an older reader would misread a newer file."""


def _checked_name(name: str) -> str:
    check_domain_name(name)
    return name


STRICT = ConfigDict(
    frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)
"""Fields of their types alone, and no others."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=2**48)]
Name = Annotated[str, AfterValidator(_checked_name)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]

_MANIFEST, _SIGNATURE = "manifest", "signature"
_PURPOSE = b"musketeers/sealed\0"
_CHUNK = 1 << 24

About = TypeVar("About", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Schema(Generic[About]):
    """What one kind of file holds."""

    kind: str
    about: type[About]
    """What it says of its arrays; strict."""
    layout: Callable[[About], Layout]
    """The arrays that then must be there."""


class _Manifest(BaseModel):
    model_config = STRICT

    format: Literal[1]
    kind: str
    maker: Name
    """Whose signature it must have."""
    sequence: Count
    made: Moment
    sha256: Digest
    """Of the arrays' bytes, in the order in which they lie."""
    about: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Sealed(Generic[About]):
    """A file's contents."""

    maker: str
    sequence: int
    """Of the files of its kind that its maker made; a larger number replaces a smaller one."""
    made: str
    """When, in universal time."""
    digest: str
    """SHA-256 of its manifest: of all that it says and holds."""
    about: About
    tensors: Mapping[str, np.ndarray]


def write(
    place: str,
    schema: Schema[About],
    about: About,
    tensors: Mapping[str, np.ndarray],
    signer: Signer,
    *,
    maker: str,
    sequence: int,
) -> Sealed[About]:
    """Put the arrays, which must be those that the schema names, into the file `place`."""
    found = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    if found != dict(schema.layout(about)):
        raise ValueError(f"{place}: {found} are not the arrays of a {schema.kind}")
    data = hashlib.sha256()
    for part in in_parts(tensors)[1:]:
        data.update(bytes_of(part))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = _Manifest(
        format=FORMAT, kind=schema.kind, maker=maker, sequence=sequence, made=made,
        sha256=data.hexdigest(), about=about.model_dump(mode="json"),
    )  # fmt: skip
    text = _canonical(manifest)
    notes = {_MANIFEST: text, _SIGNATURE: signer.sign(_message(text)).hex()}
    places.write(place, in_parts(tensors, notes))
    return Sealed(maker, sequence, made, _digest(text), about, tensors)


def read(place: str, schema: Schema[About], public: Mapping[str, str]) -> Sealed[About]:
    """A file of that kind, checked; `public` has the keys of all who may have made it.

    Nothing is taken from it before its signature is verified, and no memory before its size is what
    its manifest says.  Raises `ArtifactError`, which says what of it is wrong.
    """
    with places.reading(place) as (take, n_bytes):
        head = take(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > HEADER_LIMIT:
            raise damaged(place, "does not begin as a sealed file does")
        head += take(length)
        notes = _notes(place, head[8:])
        manifest = _manifest(place, notes[_MANIFEST], schema.kind)
        _check_signature(place, manifest.maker, notes, public)
        about = _about(place, manifest, schema.about)
        layout = schema.layout(about)
        if head != header(layout, notes):
            raise damaged(place, "has a header with more, or less, than its manifest says")
        data = _data(place, take, n_bytes - len(head), sum(map(size, layout.values())))
    if hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise damaged(place, "does not have the SHA-256 that its manifest says")
    tensors = views(data, layout)
    for name, array in tensors.items():
        check_tensor(place, name, array)
    return Sealed(
        manifest.maker, manifest.sequence, manifest.made, _digest(notes[_MANIFEST]), about, tensors
    )


def damaged(place: str, fault: str) -> ArtifactError:
    """What to raise for a file that its maker did not make so."""
    return ArtifactError(f"{place}: {fault}; it is damaged or forged, get it anew")


def _canonical(fields: BaseModel) -> str:
    return json.dumps(
        fields.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _message(text: str) -> bytes:
    return _PURPOSE + text.encode()


def _notes(place: str, text: bytes) -> dict[str, str]:
    try:
        fields: Any = json.loads(text)
        notes: Any = fields.get("__metadata__") if isinstance(fields, dict) else None
    except (ValueError, RecursionError):
        raise damaged(place, "does not begin as a sealed file does") from None
    if not isinstance(notes, dict) or set(notes) != {_MANIFEST, _SIGNATURE}:
        raise ArtifactError(
            f"{place}: is not signed; take files that musketeers party wrote, and no others"
        )
    return {name: str(note) for name, note in notes.items()}


def _manifest(place: str, text: str, kind: str) -> _Manifest:
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged(place, "has a manifest that is not JSON") from None
    found = fields.get("kind") if isinstance(fields, dict) else None
    if found != kind:
        raise ArtifactError(f"{place}: is {found!r} where {kind!r} is needed; check the path")
    number = fields.get("format")
    if type(number) is int and number > FORMAT:
        raise ArtifactError(
            f"{place}: written by a newer version (format {number}, this version reads {FORMAT}); "
            "upgrade musketeers"
        )
    manifest = _valid(place, fields, _Manifest)
    if _canonical(manifest) != text:
        raise damaged(place, "has a manifest that is not in its one form")
    return manifest


def _about(place: str, manifest: _Manifest, kind: type[About]) -> About:
    about = _valid(place, manifest.about, kind)
    if about.model_dump(mode="json") != manifest.about:
        raise damaged(place, "has a manifest that is not in its one form")
    return about


def _valid(place: str, fields: Any, kind: type[About]) -> About:
    try:
        # as JSON: what a file says has JSON's types, such as lists where we have tuples
        return kind.model_validate_json(json.dumps(fields))
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, first["loc"])) if first else "manifest"
        reason = first["msg"] if first else str(error)
        raise damaged(place, f"has a manifest with {where!r} wrong: {reason}") from None


def _check_signature(
    place: str, maker: str, notes: Mapping[str, str], public: Mapping[str, str]
) -> None:
    message = _message(notes[_MANIFEST])
    if maker not in public:
        raise ArtifactError(
            f"{place}: is by {maker!r}, who is none of {', '.join(public)}; add the party and its "
            "public key to the settings, or leave the file out"
        )
    try:
        signature = bytes.fromhex(notes[_SIGNATURE])
    except ValueError:
        signature = b""
    if len(signature) != SIGNATURE_BYTES or signature.hex() != notes[_SIGNATURE]:
        raise damaged(place, "has a signature that is none")
    if is_signed_by(public[maker], signature, message):
        return
    for name, key in public.items():
        if is_signed_by(key, signature, message):
            raise ArtifactError(
                f"{place}: says that it is by {maker}, but {name} signed it; ask {maker} for its "
                "own"
            )
    raise ArtifactError(
        f"{place}: says that it is by {maker}, but its signature is not {maker}'s: it was changed, "
        "or the public key in the settings is another one; get it anew"
    )


def _data(place: str, take: Callable[[int], bytes], there: int, wanted: int) -> bytearray:
    """The rest of the file, if it is what it should be and there is memory for it."""
    if there != wanted:
        raise damaged(place, f"has {there:,} bytes of arrays where its manifest says {wanted:,}")
    if wanted > (free := available()):
        raise ArtifactError(
            f"{place}: needs {wanted / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; close "
            "other programs"
        )
    data, start = bytearray(wanted), 0
    while start < wanted and (part := take(min(_CHUNK, wanted - start))):
        data[start : start + len(part)] = part
        start += len(part)
    if start < wanted:
        raise damaged(place, f"ends after {start:,} of {wanted:,} bytes")
    return data
