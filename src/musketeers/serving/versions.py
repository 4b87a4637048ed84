"""Which version of the model serves, which could again, and how one follows the other.

A server is given a place: the folder of a run or a saved recommender, a link to one, or a folder
with a file `CURRENT` that holds the name of one beside it.  Every version is to have a folder of
its own; a new one is announced by changing the link or the file, which both happen at once or not
at all.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from musketeers.artifacts import MANIFEST
from musketeers.errors import ArtifactError, MusketeersError
from musketeers.recommender import version_of
from musketeers.serving.version import Version, model_folder

CURRENT = "CURRENT"
"""The file that names the run to serve, in a folder of several."""

_NAME_LIMIT = 4096
_SHOWN = 80
"""Characters of a name in an error."""
_REFUSED = 8
"""So many refused ones are remembered."""


class BusyError(Exception):
    """Another version is being read at this moment."""


class NothingBeforeError(Exception):
    """There is no version to go back to."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A folder that was to be served, and was not."""

    run: str
    at: datetime
    fault: str
    """One line."""


def chosen(place: Path) -> Path:
    """The folder that `place` says is to be served.

    Raises `ArtifactError` for a `CURRENT` that names no folder beside it.
    """
    pointer = place / CURRENT
    try:
        name = pointer.read_text(encoding="utf-8")[:_NAME_LIMIT].strip()
    except FileNotFoundError:
        return place
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{pointer}: cannot be read ({error}); write a run's name to it"
        ) from None
    if not name or name in (".", "..") or "/" in name or not _is_folder(place / name):
        raise ArtifactError(
            f"{pointer}: names {name[:_SHOWN]!r}, which is no folder beside it; write a run's name "
            "to it"
        )
    return place / name


@dataclass(slots=True, eq=False)
class Versions:
    """The version that serves, and the one before; safe to use from threads.

    A request takes `current` once and keeps it to its end.  A swap is one assignment: whoever asks
    gets the old or the new, whole.
    """

    place: Path
    load: Callable[[Path], Version]
    tell: Callable[..., object]
    """Told of what happens: an event's name, and what there is to say of it."""
    current: Version
    previous: Version | None = None
    refused: deque[Refused] = field(default_factory=lambda: deque[Refused](maxlen=_REFUSED))
    _looked_at: object = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def begin(
        cls, place: Path, load: Callable[[Path], Version], tell: Callable[..., object]
    ) -> "Versions":
        """With the version that is there now.  Raises `RunError` or `ArtifactError` without one."""
        version = load(chosen(place))
        found = cls(place, load, tell, version)
        found._looked_at = found._seen()
        return found

    def reload(self) -> Version:
        """Serve what the place says now, read anew, if all of it is as it should be.

        Its stages are read first where the old one's are there.  Where anything is amiss the old
        one goes on, and `MusketeersError` says why.  While one is read the one before is let go,
        so that there are never more than two in memory.  Raises `BusyError` while another is being
        read.
        """
        if not self._lock.acquire(blocking=False):
            raise BusyError
        try:
            return self._reload()
        finally:
            self._lock.release()

    def rollback(self) -> Version:
        """Serve the version before the current one again, which then can be gone back to.

        Takes no time, and needs no file.  Raises `NothingBeforeError` if there is none, `BusyError`
        while another is being read.
        """
        if not self._lock.acquire(blocking=False):
            raise BusyError
        try:
            if self.previous is None:
                raise NothingBeforeError
            self.current, self.previous = self.previous, self.current
            self.tell("rollback", model_version=self.current.name, run=self.current.run)
            return self.current
        finally:
            self._lock.release()

    def look(self) -> None:
        """Reload if the place says something else than when it was last looked at.

        What was refused is not tried again until it changes.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._seen() != self._looked_at:
                self._reload()
        except MusketeersError:
            pass  # remembered and told already
        finally:
            self._lock.release()

    def _reload(self) -> Version:
        self._looked_at = self._seen()
        run = self.place.name
        try:
            folder = chosen(self.place)
            run = folder.resolve().name
            if version_of(model_folder(folder)) != self.current.name:
                self.previous = None
            new = self._loaded(folder)
        except MusketeersError as error:
            self.refused.append(Refused(run, datetime.now(UTC), str(error)))
            self.tell("refused", run=run, fault=str(error))
            raise
        # the same model in another folder, or read anew, is nothing to go back from
        if new.name != self.current.name:
            self.previous = self.current
        self.current = new
        self.tell("serving", model_version=self.current.name, run=self.current.run)
        return self.current

    def _loaded(self, folder: Path) -> Version:
        try:
            new = self.load(folder)
            new.check_replaces(self.current)
            if new.stages and self.current.stages_now():
                # else callers would lose for a while what they had
                new.stages.result()
        except MusketeersError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"{folder}: cannot be served: {type(error).__name__}: {error}; see that it is "
                "whole and that there is memory for two versions"
            ) from error
        return new

    def _seen(self) -> object:
        """Something that changes when what is to be served does."""
        try:
            folder = chosen(self.place).resolve()
        except ArtifactError as error:
            return str(error)
        files = (folder / MANIFEST, folder / "model" / MANIFEST)
        return folder, *map(_stamp, files)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
