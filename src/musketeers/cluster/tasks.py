"""Tasks on a cluster: started with what they need, and waited for without end only if they can run.

Ray does a task again whose worker or node was lost.  A task that no node can do waits forever
there, so whoever waits here looks at the nodes now and then.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from musketeers.cluster.connection import Cluster, Needs
from musketeers.cluster.parcels import Parcel, unpack
from musketeers.device import computing_on
from musketeers.errors import ClusterError
from musketeers.parallel import libraries_on_one_thread

LOSSES = 5
"""Workers that a task may lose; what goes wrong so often is not the machines' fault."""
UNFIT = 60.0
"""Seconds in which nodes that a task needs may come back."""
LOOK = 2.0
"""Seconds between two looks at which nodes there are."""


@dataclass(slots=True)
class Patience:
    """Whether the nodes that are left can do what is left to do, looked at now and then."""

    cluster: Cluster
    needs: Mapping[str, Needs]
    """Of each task by its name."""
    looked: float = field(default_factory=time.monotonic)
    fit: float = field(default_factory=time.monotonic)
    """When they could last."""

    def look(self, names: Iterable[str]) -> None:
        """Raise `ClusterError` if for too long they could not do the tasks of these names."""
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        try:
            left = self.cluster.now()
            for name in names:
                left.check(name, self.needs[name])
        except ClusterError:
            if now - self.fit > UNFIT:
                raise
        else:
            self.fit = now


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One that was started."""

    name: str
    """What a person calls it."""
    needs: Needs
    cluster: Cluster
    answer: Any
    """Ray's reference to its result."""

    @classmethod
    def started(
        cls, name: str, needs: Needs, cluster: Cluster, do: Callable[..., Any], *arguments: Any
    ) -> "Task":
        """`do` with these arguments on some node, references among them as what they stand for."""
        remote = ray.remote(do).options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory, name=name,
            # one that is lost may live on for a moment, and take away what it itself had written
            max_retries=LOSSES, retry_exceptions=[OSError],
        )  # fmt: skip
        return cls(name, needs, cluster, remote.remote(*arguments))

    def result(self, stopped: Event) -> Any:
        """What it gave, or raises what it raised.

        Raises `ClusterError` if its worker is lost again and again, if for a minute no node has had
        what it needs, and once everything is `stopped`.  What was begun is not cancelled (Ray may
        crash on it), but ends with the connection.
        """
        try:
            patience = Patience(self.cluster, {self.name: self.needs})
            while not ray.wait([self.answer], timeout=LOOK)[0]:
                if stopped.is_set():
                    raise ClusterError(f"{self.name} was stopped")
                patience.look([self.name])
            return ray.get(self.answer)
        except RayTaskError as error:
            raise getattr(error, "cause", None) or error from None
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ClusterError(
                f"{self.name} was lost with its worker {LOSSES + 1} times, the last time: "
                f"{reason}; look at the nodes' memory and logs, --resume goes on"
            ) from None


def spread(name: str, needs: Needs, cluster: Cluster, do: Parcel) -> Callable[..., Generator[Any]]:
    """As `map` with what the parcel holds: every call a task, all of them begun at once.

    The first argument of a call is its number, from 0.
    """

    def each(*columns: Iterable[Any]) -> Generator[Any]:
        device = "cuda" if needs.gpus else "cpu"
        begun = [
            Task.started(
                f"{name}, try {row[0] + 1}", needs, cluster,
                _call, device, do.data, row, *do.arrays,
            )
            for row in zip(*columns, strict=True)
        ]  # fmt: skip
        return (task.result(Event()) for task in begun)

    return each


def _call(device: str, data: bytes, row: Sequence[Any], *arrays: np.ndarray) -> Any:
    with libraries_on_one_thread(), computing_on(device):
        return unpack(data, arrays)(*row)
