"""Group commit: one thread of SQLite writes what many ask for, all that wait in one transaction."""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from musketeers import artifacts
from musketeers.errors import ArtifactError

Work = Callable[[sqlite3.Connection], int]

_PATIENCE = 30
"""Seconds that a caller waits for an answer: far more than a commit takes."""
_LARGEST_GROUP = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """The right to change a database, which one process has at a time.

    SQLite locks by itself, but up to 3.51.2 a commit of one connection beside a checkpoint of
    another can corrupt the file (its "WAL-reset bug").  Whoever writes, checkpoints or closes a
    connection holds the turn, so that these never meet.
    """

    _handle: int

    @classmethod
    def of(cls, database: Path) -> "Turn":
        """That of the database, by a file beside it; raises `ArtifactError` if the disk refuses."""
        path = database.with_name(f"{database.name}-lock")
        with artifacts.writing(database):
            return cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @contextmanager
    def taken(self) -> Generator[None]:
        """Wait for the turn, and have it until the block ends."""
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    work: Work
    done: "Future[int]" = field(default_factory=lambda: Future[int]())


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """The one thread that changes a database."""

    _connection: sqlite3.Connection
    _turn: Turn
    _jobs: "SimpleQueue[_Job | None]"
    """None is the last: the thread then ends."""
    _gate: Lock
    """Held to put something into the queue, so that nothing comes after the last."""
    _threads: list[Thread]
    """The one thread, until it has ended."""

    @classmethod
    def start(cls, connection: sqlite3.Connection, turn: Turn) -> "Writer":
        """A thread that alone uses the connection, which is in autocommit mode."""
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        thread = Thread(target=_serve, args=(connection, turn, jobs), name="fresh", daemon=True)
        thread.start()
        return cls(connection, turn, jobs, Lock(), [thread])

    def do(self, work: Work) -> int:
        """What `work` returns, once the transaction that it was part of is durable.

        It may change the database, but neither commit nor roll back.  Raises `sqlite3.Error` if it
        or the transaction fails, then nothing is changed, and `ArtifactError` if the writer is
        closed, or if the answer takes too long; what was asked may then be done later.
        """
        job = _Job(work)
        with self._gate:
            if not self._threads:
                raise ArtifactError("the store of interactions is closed; open it again")
            self._jobs.put(job)
        try:
            return job.done.result(_PATIENCE)
        except TimeoutError:
            job.done.cancel()
            raise ArtifactError(
                f"the store of interactions has not answered for {_PATIENCE} seconds; see whether "
                "its disk is slow, or another process that has it open was stopped"
            ) from None

    def close(self) -> bool:
        """Do what was asked before, and end; whether it was open."""
        with self._gate:
            if not self._threads:
                return False
            self._jobs.put(None)
            thread = self._threads.pop()
        thread.join()
        return True


def _serve(connection: sqlite3.Connection, turn: Turn, jobs: "SimpleQueue[_Job | None]") -> None:
    last = False
    while not last:
        group, last = _waiting(jobs)
        if group:
            _commit(connection, turn, group)


def _waiting(jobs: "SimpleQueue[_Job | None]") -> tuple[list[_Job], bool]:
    """All that wait now, at least one if it is not the end; and whether it is."""
    group: list[_Job] = []
    job = jobs.get()
    while job is not None:
        if job.done.set_running_or_notify_cancel():
            group.append(job)
        if len(group) == _LARGEST_GROUP:
            return group, False
        try:
            job = jobs.get_nowait()
        except Empty:
            return group, False
    return group, True


def _commit(connection: sqlite3.Connection, turn: Turn, group: list[_Job]) -> None:
    """Do all in one transaction and tell everybody how it ended."""
    try:
        with turn.taken():
            results = _in_one(connection, group)
    except Exception as error:  # noqa: BLE001  whoever waits must be answered
        for job in group:
            job.done.set_exception(error)
        return
    for job, result in zip(group, results, strict=True):
        job.done.set_result(result)


def _in_one(connection: sqlite3.Connection, group: list[_Job]) -> list[int]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        results = [job.work(connection) for job in group]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some failures roll back by themselves
            connection.execute("ROLLBACK")
        raise
    return results
