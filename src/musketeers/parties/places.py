"""Where parties exchange files: a path, or an address that fsspec knows (s3://, gs://, ...)."""

import os
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from musketeers import artifacts
from musketeers.errors import ArtifactError, ConfigError, MissingExtraError
from musketeers.tensor_files import Parts, bytes_of

Read = Callable[[int], bytes]
"""How many bytes at most -> the next ones of a file."""

_SCHEME, _LOCAL = "://", "file://"


def find(patterns: Sequence[str]) -> list[str]:
    """The files that the patterns name, each once, in the order of their names.

    Raises `ArtifactError` for a pattern that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if "*" not in pattern else _globbed(pattern)
        if not names:
            raise ArtifactError(f"{pattern}: matches no file; check the path")
        found |= dict.fromkeys(names)
    return sorted(found)


def inside(place: str, name: str) -> str:
    """The file `name` in the folder `place`."""
    return f"{place.rstrip('/')}/{name}" if place.strip("/") else f"{place}{name}"


def exists(place: str) -> bool:
    """Whether there is such a file."""
    if (path := _local(place)) is not None:
        return os.path.lexists(path)
    with _answering(place):
        return bool(_system(place).exists(place))


@contextmanager
def reading(place: str) -> Generator[tuple[Read, int]]:
    """What gives the file's next so many bytes, and its size; of this machine's, no link, no pipe.

    Raises `ArtifactError` if it cannot be read.
    """
    if (path := _local(place)) is None:
        with _answering(place):
            file = _system(place).open(place, "rb")

        def read(size: int) -> bytes:
            with _answering(place):
                return file.read(size)

        with closing(file):
            yield read, int(file.size)
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ArtifactError(f"{place}: cannot be read: {error.strerror}") from None
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        os.close(handle)
        raise ArtifactError(f"{place}: is not a regular file; name the file itself")
    with os.fdopen(handle, "rb") as file:
        yield file.read, state.st_size


def write(place: str, parts: Parts) -> None:
    """Put a file there, whole or not at all; one of the same name is replaced.

    Raises `ArtifactError` if it cannot be written.
    """
    if (path := _local(place)) is not None:
        artifacts.write_bytes(path, *parts)
        return
    with _answering(place):
        # in one call: stores make an object of what it is given, or nothing
        _system(place).pipe_file(place, b"".join(map(bytes_of, parts)))


def _local(place: str) -> Path | None:
    if place.startswith(_LOCAL):
        return Path(place.removeprefix(_LOCAL))
    return None if _SCHEME in place else Path(place)


def _globbed(pattern: str) -> list[str]:
    if (path := _local(pattern)) is not None:
        root = Path(path.anchor or ".")
        found = root.glob(str(path.relative_to(root)))
        # a writer that was killed leaves hidden files behind
        return [str(one) for one in found if one.is_file() and not one.name.startswith(".")]
    with _answering(pattern):
        system = _system(pattern)
        return [str(system.unstrip_protocol(name)) for name in system.glob(pattern)]


def _system(place: str) -> Any:
    """fsspec's view of what stores the file."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtraError(
            f"{place}: an address needs a package that is not installed: "
            "pip install 'musketeers[parties]'"
        ) from None
    try:
        return url_to_fs(place)[0]
    except ImportError as error:
        raise MissingExtraError(
            f"{place}: needs a package that is not installed: {error}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{place}: is no address that is known: {error}") from None


@contextmanager
def _answering(place: str) -> Generator[None]:
    """Turn what a store refuses into one clear `ArtifactError`; they raise all sorts of things."""
    try:
        yield
    except (ArtifactError, ConfigError, MissingExtraError):
        raise
    except Exception as error:  # noqa: BLE001  each store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "there is no such file"
        raise ArtifactError(
            f"{place}: cannot be reached: {reason}; check the address and your access"
        ) from None
