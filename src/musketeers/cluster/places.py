"""Parquet files where every node of a cluster finds them: paths, and addresses for fsspec."""

from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from musketeers.data import files
from musketeers.errors import DataError, MissingExtraError, MusketeersError

_SCHEME, _LOCAL = "://", "file://"
_VERSIONS = ("ETag", "etag", "generation", "md5", "mtime", "LastModified", "last_modified")
"""What stores call that by which one tells that a file has become another; the first one counts."""


@dataclass(frozen=True, slots=True)
class Place:
    """One file."""

    name: str
    """An absolute path, or an address such as s3://bucket/file.parquet."""
    identity: Hashable
    """Equal for two names of one file."""
    version: str
    """Another one once the file is."""

    @property
    def is_address(self) -> bool:
        """Whether a store has it, and not a file system of the machine."""
        return _SCHEME in self.name


def find(source: str, base: Path) -> tuple[Place, ...]:
    """The Parquet files that `source` names, sorted; a relative path counts from `base`.

    `source` is a file, a folder (every .parquet directly in it, hidden ones left out), or a glob.
    Raises `DataError` if there is none or one is of another format, and if the store refuses or
    does not answer; `MissingExtraError` if its address needs a package.
    """
    found = _in_store(source) if _is_address(source) else _on_disk(source, base)
    for place in found:
        if files.ending(PurePosixPath(place.name)) not in (None, ".parquet"):
            raise DataError(
                f"{place.name}: is CSV, and a cluster reads Parquet; convert it to Parquet"
            )
    return found


@contextmanager
def opened(place: str) -> Generator[tuple[BinaryIO, dict[str, Any]]]:
    """The file, and how Arrow is to read it; any failure in the block is one `DataError`."""
    with _answering(place), files.explained(place):
        if _SCHEME not in place:
            with Path(place).open("rb") as file:
                yield file, {"buffer_size": files.BUFFER}
            return
        system, path = _system(place)
        # Arrow asks for the parts that it needs, each in one request
        with cast(BinaryIO, system.open(path, "rb", cache_type="none")) as file:
            yield file, {"pre_buffer": True}


def _is_address(source: str) -> bool:
    return _SCHEME in source and not source.startswith(_LOCAL)


def _on_disk(source: str, base: Path) -> tuple[Place, ...]:
    found: list[Place] = []
    for path in files.find(source.removeprefix(_LOCAL), base.absolute()):
        with files.explained(path):
            state = path.stat()
        version = f"{state.st_size} {state.st_mtime_ns}"
        found.append(Place(str(path), files.identity(path), version))
    return tuple(found)


def _in_store(source: str) -> tuple[Place, ...]:
    with _answering(source), files.explained(source):
        system, path = _system(source)
        system.invalidate_cache()  # what a store held when it was asked before
        if "*" in path or "?" in path or "[" in path:
            listed = system.glob(path, detail=True).values()
            otherwise = "no file matches the pattern"
        elif system.isdir(path):
            listed = [e for e in system.ls(path, detail=True) if _ends(e) is not None]
            otherwise = f"the folder holds no {', '.join(files.ENDINGS)} file"
        else:
            listed, otherwise = [system.info(path)], ""
        own = [e for e in listed if e["type"] == "file" and not _name(e).startswith(".")]
        if not own:
            raise DataError(f"{source}: {otherwise or 'is no file'}")
        places = [_place(system, entry) for entry in own]
    return tuple(sorted(places, key=lambda place: place.name))


def _name(entry: dict[str, Any]) -> str:
    return PurePosixPath(entry["name"]).name


def _ends(entry: dict[str, Any]) -> str | None:
    return files.ending(PurePosixPath(entry["name"]))


def _place(system: Any, entry: dict[str, Any]) -> Place:
    name = str(system.unstrip_protocol(entry["name"]))
    version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), "")
    return Place(name, name, f"{entry['size']} {version}")


def _system(place: str) -> tuple[Any, str]:
    """fsspec's view of what stores the file, and what it is called there."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(place)
    except ImportError as error:
        raise MissingExtraError(
            f"{place}: needs a package that is not installed: {error}"
        ) from None


@contextmanager
def _answering(place: str) -> Generator[None]:
    """Turn what a store refuses into one `DataError`; they raise all sorts of things."""
    try:
        yield
    except MusketeersError:
        raise
    except Exception as error:  # noqa: BLE001  each store has errors of its own
        reason = files.one_line(error) or type(error).__name__
        raise DataError(
            f"{place}: cannot be reached ({reason}); check the address and the access that this "
            "machine and every node has"
        ) from None
