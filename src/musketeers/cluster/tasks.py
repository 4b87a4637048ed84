"""Tasks on a cluster: started with what they need, and waited for without end only if they can run.

Ray does a task again whose worker or node was lost.  A task that no node can do waits forever
there, so whoever waits here looks at the nodes now and then.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from musketeers.cluster.connection import Cluster, Needs
from musketeers.errors import ClusterError

RETRIES = 10
"""How often a task is done again whose worker or node was lost."""
UNFIT = 60.0
"""Seconds in which nodes that a task needs may come back."""
_LOOK = 2.0


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
            max_retries=RETRIES, retry_exceptions=[OSError],
        )  # fmt: skip
        return cls(name, needs, cluster, remote.remote(*arguments))

    def result(self, stopped: Event) -> Any:
        """What it gave, or raises what it raised.

        Raises `ClusterError` if its worker is lost again and again, if for a minute no node has had
        what it needs, and once everything is `stopped`.  What was begun is not cancelled (Ray may
        crash on it), but ends with the connection.
        """
        try:
            fit = time.monotonic()
            while not ray.wait([self.answer], timeout=_LOOK)[0]:
                if stopped.is_set():
                    raise ClusterError(f"{self.name} was stopped")
                try:
                    self.cluster.now().check(self.name, self.needs)
                except ClusterError:
                    if time.monotonic() - fit > UNFIT:
                        raise
                else:
                    fit = time.monotonic()
            return ray.get(self.answer)
        except RayTaskError as error:
            raise getattr(error, "cause", None) or error from None
        except RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ClusterError(
                f"{self.name} was lost with its worker {RETRIES + 1} times, the last time: "
                f"{reason}; look at the nodes' memory and logs, --resume goes on"
            ) from None
