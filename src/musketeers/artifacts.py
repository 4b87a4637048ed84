"""Arrays and their description on disk: no pickle, nothing half-written, nothing unchecked.

An artifact is one folder: `tensors.safetensors`, any small files given with it, and
`manifest.json`, which says what the folder is and lists every other file with its size
and SHA-256.  The folder is made as a hidden draft beside its place and renamed into it,
so a reader sees all of it or none of it, whenever the writer was killed.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from musketeers.errors import ArtifactError
from musketeers.tensor_files import HEADER_LIMIT, Parts, arrays, bytes_of, in_parts

FORMAT = 1
"""Raised by one whenever an older reader would misread a newer folder."""

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
DRAFT_PREFIX = ".saving-"
"""How the names of unfinished files and folders begin; a killed writer leaves them behind."""

_MANIFEST_LIMIT = 1 << 20
_PART = 1 << 18
_ROWS = 1 << 16
_NO_ROOM = {
    errno.ENOSPC: "disk is full",
    errno.EDQUOT: "disk quota is used up",
    errno.EFBIG: "file is larger than this system allows",
}


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """What `load` read: arrays by name, the description, and the other files' bytes."""

    tensors: dict[str, np.ndarray]
    about: dict[str, Any]
    files: dict[str, bytes]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Listed(_Strict):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class _Manifest(_Strict):
    format: Literal[1]
    kind: str
    about: dict[str, Any]
    files: dict[str, _Listed]


def save(
    folder: Path,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    *,
    files: Mapping[str, bytes] | None = None,
    durable: bool = True,
) -> None:
    """Write a new artifact; `folder` then holds all of it, or after an error all or nothing.

    `tensors` are boolean, integer or floating-point arrays without NaN and infinity;
    `about` must survive JSON; `files` are kept byte by byte under plain names.
    ``durable=False`` skips the waits for the disk: safe against a killed process, while
    a power cut may leave a folder that `load` refuses.

    Raises `ArtifactError` if `folder` already holds something, if an argument breaks
    these rules, or if the disk is full or refuses.
    """
    contents: dict[str, Parts] = {TENSORS: _in_parts(folder, tensors)}
    contents |= {name: [data] for name, data in _named(folder, files or {}).items()}
    manifest = _manifest(folder, kind, about, contents)
    with new_folder(folder) as draft:
        # the manifest comes last: a folder that has one had all else written before
        for name, parts in {**contents, MANIFEST: [manifest]}.items():
            _write(draft / name, parts, durable=durable)
        if durable:
            sync(draft)
    if durable:
        with writing(folder):
            sync(folder.parent)


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """A draft to fill, which becomes `folder` when the block ends; after an error it is gone.

    Raises `ArtifactError` if `folder` already holds something, or if the disk is full or refuses.
    """
    with writing(folder):
        if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
            raise ArtifactError(f"{folder}: already exists; choose another place or remove it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(folder)
        draft.mkdir()
        try:
            yield draft
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def load(folder: Path, kind: str) -> Artifact:
    """Read back what `save` wrote as the same `kind`.

    Every byte is read once and checked against the manifest before it is parsed.  Raises
    `ArtifactError` for a missing, incomplete, altered or foreign folder, for one written
    by another format, and for arrays with NaN or infinity.
    """
    about, contents = _read_folder(folder, kind)
    tensors = _parsed(folder / TENSORS, contents.pop(TENSORS))
    for name, array in tensors.items():
        check_tensor(folder / TENSORS, name, array)
    return Artifact(tensors, about, {name: bytes(data) for name, data in contents.items()})


def load_without_tensors(folder: Path, kind: str) -> Artifact:
    """As `load`, but for the arrays, which may be large and are not looked at."""
    about, contents = _read_folder(folder, kind, leave_out=TENSORS)
    return Artifact({}, about, {name: bytes(data) for name, data in contents.items()})


def write_text(path: Path, text: str) -> None:
    """Like `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, *parts: bytes | np.ndarray) -> None:
    """Put the `parts` in the file `path`, as `new_file` does."""
    with new_file(path) as draft:
        _write(draft, parts, durable=False)


@contextmanager
def new_file(path: Path) -> Generator[Path]:
    """A draft to write, which replaces `path` when the block ends; readers see the old or the new.

    Missing parent folders are made.  Raises `ArtifactError` if the disk is full or refuses;
    the old file then stands.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path)
        try:
            yield draft
            sync(draft)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_private(path: Path, data: bytes) -> None:
    """Put `data` in a new file that its owner alone can read.

    Raises `ArtifactError` if there is a file already, or if the disk is full or refuses.
    """
    with writing(path):
        if os.path.lexists(path):
            raise ArtifactError(f"{path}: already exists, and is kept; choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, [data], durable=True, mode=0o600)
        sync(path.parent)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn the system's refusals to write `path` into one clear `ArtifactError`."""
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise ArtifactError(
                f"{_NO_ROOM[error.errno]}: {path} was not written; free some space and try again"
            ) from None
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in the way" if in_the_way else error.strerror
        raise ArtifactError(
            f"{path}: cannot be written: {reason}; choose a place you may write to"
        ) from None


def sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_parts(folder: Path, tensors: Mapping[str, np.ndarray]) -> Parts:
    for name, array in tensors.items():
        check_tensor(folder, name, array)
    head, *arrays = in_parts(tensors)
    if len(head) - 8 > HEADER_LIMIT:
        raise ArtifactError(
            f"{folder}: the names and shapes of {len(tensors)} tensors take {len(head) - 8} bytes, "
            f"more than {HEADER_LIMIT}; save fewer, larger tensors"
        )
    return [head, *arrays]


def _named(folder: Path, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    for name in files:
        if not _is_plain(name) or name in (TENSORS, MANIFEST):
            raise ArtifactError(
                f"{folder}: {name!r} cannot name a file here; use a plain name without '/' "
                "and leading dot"
            )
    return files


def _manifest(
    folder: Path, kind: str, about: Mapping[str, Any], contents: Mapping[str, Parts]
) -> bytes:
    listed = {name: _listed(parts) for name, parts in contents.items()}
    whole = {"format": FORMAT, "kind": kind, "about": dict(about), "files": listed}
    try:
        data = json.dumps(whole, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder}: the description cannot be written as JSON: {error}; give plain "
            "finite numbers, texts, lists and mappings"
        ) from None
    if len(data) > _MANIFEST_LIMIT:
        raise ArtifactError(
            f"{folder}: the description takes {len(data)} bytes, more than {_MANIFEST_LIMIT}; "
            "put long lists into files"
        )
    return data


def _listed(parts: Parts) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for part in map(bytes_of, parts):
        digest.update(part)
        size += part.nbytes
    return {"sha256": digest.hexdigest(), "bytes": size}


def _read_manifest(folder: Path, kind: str) -> _Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: is not an artifact folder; check the path")
    if not os.path.lexists(path):
        raise ArtifactError(
            f"{path}: is missing, so the folder is incomplete or no artifact; save it anew"
        )
    try:
        raw: Any = json.loads(
            bytes(_read(path, limit=_MANIFEST_LIMIT)[0]), parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not JSON ({error})") from None
    _check_format(path, raw)
    try:
        manifest = _Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{where!r}: {first['msg']}") from None
    if manifest.kind != kind:
        raise ArtifactError(
            f"{folder}: holds {manifest.kind!r} where {kind!r} is needed; give the path of one"
        )
    return manifest


def _check_format(path: Path, raw: Any) -> None:
    found: Any = raw.get("format") if isinstance(raw, dict) else None
    if type(found) is not int or found < 1:
        raise ArtifactError(
            f"{path}: has no known format number (found {found!r}, this version reads {FORMAT}); "
            "save the artifact anew"
        )
    if found > FORMAT:
        raise ArtifactError(
            f"{path}: written by a newer version (format {found}, this version reads {FORMAT}); "
            "upgrade musketeers"
        )


def _read_folder(
    folder: Path, kind: str, *, leave_out: str | None = None
) -> tuple[dict[str, Any], dict[str, memoryview]]:
    """What the folder is, and its files but for one."""
    try:
        manifest = _read_manifest(folder, kind)
        _check_listing(folder, manifest)
        contents = {
            name: _checked(folder / name, listed)
            for name, listed in manifest.files.items()
            if name != leave_out
        }
    except OSError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder}: cannot be read: {error.strerror}") from None
    return manifest.about, contents


def _check_listing(folder: Path, manifest: _Manifest) -> None:
    """Refuse names that lead elsewhere and files that nobody vouches for."""
    for name in manifest.files:
        if not _is_plain(name) or name == MANIFEST:
            raise _damaged(folder / MANIFEST, f"lists {name!r}, which is no plain file name")
    if TENSORS not in manifest.files:
        raise _damaged(folder / MANIFEST, f"does not list {TENSORS}")
    extra = {entry.name for entry in folder.iterdir()} - {MANIFEST, *manifest.files}
    if extra:
        raise ArtifactError(
            f"{folder / min(extra)}: is not listed in {MANIFEST}; remove it or get a clean copy"
        )


def _checked(path: Path, listed: _Listed) -> memoryview:
    if not os.path.lexists(path):
        raise _damaged(path, f"is missing though {MANIFEST} lists it")
    data, digest = _read(path, limit=listed.bytes)
    if len(data) != listed.bytes:
        raise _damaged(path, f"has {len(data)} bytes where {MANIFEST} says {listed.bytes}")
    if digest != listed.sha256:
        raise _damaged(path, f"does not have the SHA-256 that {MANIFEST} says")
    return data


def _read(path: Path, *, limit: int) -> tuple[memoryview, str]:
    """The bytes of a regular file of at most `limit` bytes, and their SHA-256.

    They are in memory of their own, which may be written to.  Follows no link, waits for no pipe.
    """
    if path.is_symlink():
        raise ArtifactError(f"{path}: is a symbolic link; put the file itself there")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb", buffering=0) as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise _damaged(path, "is not a regular file")
        if state.st_size > limit:
            raise _damaged(path, f"has {state.st_size} bytes, more than {limit}")
        # not zeroed first, as a bytearray would be
        data, n_read, digest = np.empty(state.st_size, np.uint8).data, 0, hashlib.sha256()
        # a part at a time, which is digested while it is in the cache
        while part := file.readinto(data[n_read : n_read + _PART]):
            digest.update(data[n_read : n_read + part])
            n_read += part
        return data[:n_read], digest.hexdigest()


def _parsed(path: Path, data: memoryview) -> dict[str, np.ndarray]:
    if (size := int.from_bytes(data[:8], "little")) > HEADER_LIMIT:
        raise _damaged(path, f"has a header of {size} bytes, more than {HEADER_LIMIT}")
    try:
        return arrays(data)
    except ValueError as error:
        raise _damaged(path, f"is not a readable safetensors file ({error})") from None


def check_tensor(path: Path | str, name: str, array: np.ndarray) -> None:
    """Raise `ArtifactError` for a type that is not saved, and for NaN and infinity."""
    # a float of more than 64 bits is another one on every kind of machine
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ArtifactError(
            f"{path}: tensor {name!r} has type {array.dtype}; save booleans, integers or "
            "floats of at most 64 bits"
        )
    if array.dtype.kind == "f" and (place := _not_finite(array)) is not None:
        row = f" in row {place[0]}" if len(place) else ""
        raise ArtifactError(
            f"{path}: tensor {name!r} holds {array[place]}{row}; only finite numbers "
            "are allowed, train again with a smaller learning rate"
        )


def _not_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Where the first number is that is not; looked for in parts, since the table may be large."""
    rows = np.atleast_1d(array)
    for start in range(0, len(rows), _ROWS):
        found = np.argwhere(~np.isfinite(rows[start : start + _ROWS]))
        if len(found):
            place = (start + int(found[0][0]), *found[0][1:].tolist())
            return place[: array.ndim]
    return None


def _is_plain(name: str) -> bool:
    return (
        0 < len(name) <= 200
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & {"/", "\\"}
    )


def _damaged(path: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"{path}: {fault}; it is damaged, get a clean copy or make it anew")


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _draft(place: Path) -> Path:
    return place.parent / f"{DRAFT_PREFIX}{uuid.uuid4().hex}"


def _write(path: Path, parts: Parts, *, durable: bool, mode: int = 0o666) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        for left in map(bytes_of, parts):
            while left:
                left = left[os.write(handle, left) :]
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)
