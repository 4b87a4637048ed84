"""The folder of one training run: who may write it, what it must agree with, when it is done.

Next to the stages' artifacts it holds `config.toml`, `manifest.json`, `.lock` and, while
it is unfinished, `checkpoints/`.  The lock is the system's own (flock), so it goes with
its process, however that ends.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from musketeers import artifacts, memory
from musketeers.costs import Cost, metered
from musketeers.errors import ArtifactError, RunError
from musketeers.group import meet, of_all

FORMAT = 1
"""Raised by one whenever an older reader would misread a newer run folder."""

KINDS = {
    "run": "musketeers fit",
    "sharded run": "musketeers fit --shards",
    "comparison": "musketeers compare",
}
"""What a folder may hold -> the command that writes it."""

CHECKPOINTS = "checkpoints"
"""What an unfinished run has so far is in a folder of this name, which goes when it is finished."""

_MANIFEST = "manifest.json"
_CONFIG = "config.toml"
_LOCK = ".lock"
_KEYS = {
    "status": str,
    "settings": dict,
    "data": dict,
    "threads": int,
    "seconds": dict,
    "peak_memory_bytes": int,
    "resumed": list,
}
_PACKAGES = ("musketeers", "numpy", "torch", "numba", "polars")


@dataclass(frozen=True, slots=True)
class FolderCheckpoint:
    """The latest progress of one fit, as the artifact with the highest number in `folder`.

    Several processes may have one for the same folder, if they do the same fit: all that any of
    them saves is then a state of that fit.
    """

    folder: Path
    writer: str = ""
    """A name of this process alone, where others may be at the same fit: one that a cluster has
    given up for lost may be alive.  Letters and digits."""

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """What was saved last, checked, or None; raises `ArtifactError` if it is damaged.

        Of several members (`group`) the last that all have saved.
        """
        self._agree()
        while states := self._states():
            try:
                found = artifacts.load(self.folder / states[-1], "checkpoint")
            except ArtifactError:
                if states == self._states():
                    raise
            else:
                return found.tensors, found.about
        return None

    def save(self, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Put the new one beside the old, then remove the old."""
        old = self._states()
        number = _number(old[-1]) + 1 if old else 0
        place = self.folder / (f"{number}-{self.writer}" if self.writer else str(number))
        # no waiting for the disk: after a power cut the checksums tell a torn one
        artifacts.save(place, "checkpoint", tensors, about, durable=False)
        # while any member's new one is not there, all may need the old
        meet()
        for state in old:
            _remove(self.folder / state)

    def _agree(self) -> None:
        """Let go what not all members have saved."""
        states = self._states()
        last = of_all(np.array([_number(states[-1]) if states else -1])).min()
        for state in states:
            if _number(state) > last:
                _remove(self.folder / state)

    def _states(self) -> list[str]:
        """A crash between the two steps of `save` leaves more than one; the last one counts."""
        if not self.folder.is_dir():
            return []
        names = [p.name for p in self.folder.iterdir() if p.name.partition("-")[0].isdecimal()]
        return sorted(names, key=lambda name: (_number(name), name))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk; `create` opens it for writing, `open` a finished one for reading."""

    path: Path
    kind: str = "run"
    """One of `KINDS`; a folder of another kind is refused."""

    @classmethod
    @contextmanager
    def create(
        cls,
        path: Path,
        config_text: str,
        *,
        data: Mapping[str, str],
        threads: int,
        command: Sequence[str] = (),
        resume: bool = False,
        kind: str = "run",
    ) -> "Generator[RunFolder]":
        """The folder, locked for this process until the block ends.

        `config_text` is the resolved settings as TOML; `data` a fingerprint per domain.
        With ``resume=True`` an earlier run is continued if settings, data and threads are
        the same, and a finished one is given back with `finished` true, not to be written.

        Raises `RunError` if another process is writing there, if the folder holds other
        files, a finished run, or an unfinished one that `resume` does not ask for or that
        differs; `ArtifactError` if the disk refuses.
        """
        # nothing, not even a lock, goes into a folder that is not ours
        _check_ours(path, kind)
        with artifacts.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            check_place(path, resume=resume, kind=kind)
            run = cls(path, kind)
            settings = tomllib.loads(config_text)
            inputs = {"settings": settings, "data": dict(data), "threads": threads}
            if (path / _MANIFEST).exists():
                run._continue(inputs, command)
            else:
                run._begin(inputs, command)
            if not run.finished:
                artifacts.write_text(path / _CONFIG, config_text)
            yield run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A finished run, to read.

        Raises `RunError` if there is none, it is unfinished, or a comparison.
        """
        if not (path / _MANIFEST).is_file():
            raise RunError(f"{path}: holds no run; give the folder of a finished one")
        run = cls(path)
        if not run.finished:
            raise RunError(f"{path}: the run is unfinished; finish it with --resume")
        return run

    @property
    def finished(self) -> bool:
        """Whether everything the run was to make is there."""
        return self.manifest()["status"] == "finished"

    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says now; raises `RunError` if it is of another kind."""
        return _read_manifest(self.path, self.kind)

    def checkpoint(self, *job: str) -> FolderCheckpoint:
        """The place for the progress of one job, such as ``checkpoint("pretrain", "tv")``."""
        return FolderCheckpoint(self.path.joinpath(CHECKPOINTS, *job))

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep plain values until the run is finished, in place of those of before."""
        place = self.path / CHECKPOINTS
        with artifacts.writing(place):
            place.mkdir(exist_ok=True)
        artifacts.write_text(place / f"{name}.json", json.dumps(value) + "\n")

    def remembered(self, name: str) -> dict[str, Any] | None:
        """What `remember` kept, or None."""
        file = self.path / CHECKPOINTS / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def settle(self, config_text: str) -> None:
        """Say by which settings the run goes on, if not by those that it was begun with."""
        artifacts.write_text(self.path / _CONFIG, config_text)

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """`add` what the block took, also of a failed one."""
        with ExitStack() as after, metered() as cost:
            after.callback(self.add, stage, cost)
            yield

    def add(self, stage: str, cost: Cost) -> None:
        """Add to the stage's seconds what something took, and keep the larger peak."""
        manifest = self.manifest()
        seconds, peaks = manifest["seconds"], manifest.setdefault("peak_bytes", {})
        seconds[stage] = round(seconds.get(stage, 0.0) + cost.seconds, 3)
        peaks[stage] = max(peaks.get(stage, 0), cost.peak_bytes)
        manifest["peak_memory_bytes"] = max(manifest["peak_memory_bytes"], cost.peak_bytes)
        self._write(manifest)

    def finish(self) -> None:
        """Declare the run complete: its checkpoints go, and nobody may write it again."""
        _remove(self.path / CHECKPOINTS)
        self._clear_drafts()
        self._write(self.manifest() | {"status": "finished", "finished": _now()})

    def withdraw(self) -> None:
        """Leave the folder as if the run had not begun, for one that has made nothing yet."""
        for name in (_CONFIG, _MANIFEST):
            _remove(self.path / name)

    def _begin(self, inputs: dict[str, Any], command: Sequence[str]) -> None:
        self._clear_drafts()
        self._write(
            {
                "format": FORMAT,
                "kind": self.kind,
                "status": "running",
                "started": _now(),
                "finished": None,
                "command": list(command),
                "versions": versions(),
                "seed": inputs["settings"].get("seed"),
                **inputs,
                "seconds": {},
                "peak_bytes": {},
                "peak_memory_bytes": 0,
                "resumed": [],
            }
        )

    def _continue(self, inputs: dict[str, Any], command: Sequence[str]) -> None:
        manifest = self.manifest()
        if differing := _differences({key: manifest.get(key) for key in inputs}, inputs):
            raise RunError(
                f"{self.path}: the run was started with other inputs ({'; '.join(differing)}); "
                "use the same ones or another folder"
            )
        if manifest["status"] != "finished":
            self._clear_drafts()
            manifest["resumed"].append(
                {"started": _now(), "command": list(command), "versions": versions()}
            )
            self._write(manifest)

    def _clear_drafts(self) -> None:
        # those of checkpoints go with these: a process that was given up may still be at one
        for draft in list(self.path.rglob(f"{artifacts.DRAFT_PREFIX}*")):
            if self.path / CHECKPOINTS not in draft.parents:
                _remove(draft)

    def _write(self, manifest: dict[str, Any]) -> None:
        manifest["peak_memory_bytes"] = max(manifest["peak_memory_bytes"], memory.peak())
        artifacts.write_text(self.path / _MANIFEST, json.dumps(manifest, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _number(state: str) -> int:
    return int(state.partition("-")[0])


def check_place(path: Path, *, resume: bool, kind: str = "run") -> None:
    """Raise `RunError` unless a run may be written to `path`; touches nothing.

    For telling early, before the data are read; `RunFolder.create` looks again.
    """
    _check_ours(path, kind)
    if resume or not (path / _MANIFEST).exists():
        return
    if _read_manifest(path, kind)["status"] == "finished":
        raise RunError(f"{path}: holds a finished run, never overwritten; choose another folder")
    raise RunError(f"{path}: holds an unfinished run; add --resume or choose another folder")


def _check_ours(path: Path, kind: str) -> None:
    """Refuse a place that is neither free nor of this kind."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: is a file; choose a folder for the run")
    if not path.exists() or all(_is_left_over(entry) for entry in path.iterdir()):
        return
    if not (path / _MANIFEST).is_file():
        raise RunError(f"{path}: holds other files; choose an empty folder or a new name")
    _read_manifest(path, kind)


def _is_left_over(entry: Path) -> bool:
    """Whether a run that was killed before it began may have made this."""
    return entry.name == _LOCK or entry.name.startswith(artifacts.DRAFT_PREFIX)


def _read_manifest(path: Path, kind: str) -> dict[str, Any]:
    file = path / _MANIFEST
    try:
        found: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("kind") not in tuple(KINDS):
        raise RunError(f"{file}: is not a run's manifest; choose another folder")
    if found["kind"] != kind:
        has_runs = found["kind"] == "sharded run" and kind == "run"
        where = f"such as {path / 'shards' / '0'}" if has_runs else f"made by {KINDS[kind]}"
        raise RunError(
            f"{path}: holds a {found['kind']}, made by {KINDS[found['kind']]}; give a {kind}'s "
            f"folder, {where}"
        )
    if found.get("format") != FORMAT:
        raise RunError(
            f"{file}: has format {found.get('format')!r}, this version reads {FORMAT}; "
            "use the version of musketeers that wrote it"
        )
    if wrong := [key for key, kind in _KEYS.items() if not isinstance(found.get(key), kind)]:
        raise RunError(f"{file}: {wrong[0]!r} is missing or damaged; start a new run elsewhere")
    return found


@contextmanager
def locked(path: Path) -> Generator[None]:
    """The folder `path` for this process alone until the block ends.

    Raises `RunError` if another process has it.
    """
    with artifacts.writing(path / _LOCK):
        handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take_lock(path, handle)
        with artifacts.writing(path / _LOCK):
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            # by name: a forked helper that outlives us must not keep it
            fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        with artifacts.writing(path / _LOCK):
            os.close(handle)


def _take_lock(path: Path, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunError(
                f"{path}: cannot be locked: {error.strerror}; choose a folder on a local disk"
            ) from None
        holder = os.pread(handle, 20, 0).decode(errors="replace") or "of another user"
        raise RunError(
            f"{path}: process {holder} is writing here; wait for it or choose another folder"
        ) from None


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Every leaf that differs, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys: list[str] = sorted({*old, *new})
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    name = where.removeprefix("settings.")
    return [] if old == new else [f"{name}: {old} -> {new}"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _remove(path: Path) -> None:
    # another process that does so too takes what is missing
    with artifacts.writing(path), suppress(FileNotFoundError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
