"""What a party, or the coordinator, keeps to itself: its key, what it gave away, what it took.

key.pem           the private key
releases.json     every file that it published, in order
releases/         the files themselves, kept before they leave, so that noise is drawn once
N/                stage 1 of publication N: a run like any other
items/N/          what donors' histories say of items, if publication N is folded in
seen.json         the latest file of each other party that was taken
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from musketeers import artifacts
from musketeers.errors import ArtifactError
from musketeers.parties.defences import Defences
from musketeers.parties.keys import Signer
from musketeers.parties.sealed import STRICT, Count, Digest
from musketeers.run_folder import locked

_KEY, _RELEASES, _SEEN = "key.pem", "releases.json", "seen.json"


class Release(BaseModel):
    """A file that left."""

    model_config = STRICT

    sequence: Count
    digest: Digest
    defences: Defences | None
    """Of a publication; the coordinator's files have none."""


class Seen(BaseModel):
    """The latest file of its kind and maker that was taken."""

    model_config = STRICT

    sequence: Count
    digest: Digest


_RELEASE_LIST: TypeAdapter[tuple[Release, ...]] = TypeAdapter(tuple[Release, ...])
_SEEN_TABLE: TypeAdapter[dict[str, Seen]] = TypeAdapter(dict[str, Seen])


@dataclass(frozen=True, slots=True)
class Home:
    """A party's private folder."""

    path: Path

    def make_key(self) -> str:
        """A new private key; its public one.  Raises `ArtifactError` if there is one."""
        return Signer.make(self.path / _KEY).public

    def signer(self) -> Signer:
        """Raises `ConfigError` if there is no key."""
        return Signer.read(self.path / _KEY)

    def releases(self) -> tuple[Release, ...]:
        """All that left, the oldest first."""
        return self._read(_RELEASES, _RELEASE_LIST, ())

    def release(self, one: Release) -> None:
        """Note, before it leaves, what is going to."""
        self._write(_RELEASES, _RELEASE_LIST, (*self.releases(), one))

    def file(self, sequence: int, audience: str | None = None) -> Path:
        """Where the file of that number, and for those alone, is kept."""
        name = f"{sequence}-{audience}" if audience else f"{sequence}"
        return self.path / "releases" / f"{name}.safetensors"

    def run(self, sequence: int) -> Path:
        """Where stage 1 of the publication of that number is kept."""
        return self.path / str(sequence)

    def items(self, sequence: int) -> Path:
        """Where the donors' items of the publication of that number are kept, if it has such."""
        return self.path / "items" / str(sequence)

    def check(self, place: str, what: str, sequence: int, digest: str) -> None:
        """Raise `ArtifactError` for a file that is older than one that was taken before.

        `what` it is, and by whom, tells files of a kind apart.
        """
        last = self._seen().get(what)
        if last and sequence < last.sequence:
            raise ArtifactError(
                f"{place}: is number {sequence} of {what}, but number {last.sequence} was taken "
                "before; an old one must not come back: get the latest"
            )
        if last and sequence == last.sequence and digest != last.digest:
            raise ArtifactError(
                f"{place}: is number {sequence} of {what}, but not the number {sequence} that was "
                "taken before; its maker must give each file a number of its own: ask for a new one"
            )

    def take(self, files: Sequence[tuple[str, int, str]]) -> None:
        """Note (what, sequence, digest) of files that were taken, all of which were checked."""
        new = {what: Seen(sequence=number, digest=digest) for what, number, digest in files}
        with locked(self.path):
            self._write(_SEEN, _SEEN_TABLE, {**self._seen(), **new})

    def _seen(self) -> dict[str, Seen]:
        return self._read(_SEEN, _SEEN_TABLE, {})

    def _read(self, name: str, kind: TypeAdapter[Any], default: Any) -> Any:
        path = self.path / name
        try:
            return kind.validate_json(path.read_bytes())
        except FileNotFoundError:
            return default
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtifactError(
                f"{path}: is damaged ({first['msg']}); restore it from a copy: without it old "
                "files could come back, and noise could be spent twice"
            ) from None

    def _write(self, name: str, kind: TypeAdapter[Any], value: Any) -> None:
        text = json.dumps(kind.dump_python(value, mode="json"), indent=1)
        artifacts.write_text(self.path / name, text + "\n")
