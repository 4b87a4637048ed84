"""The jobs of a comparison on a cluster: every try is a task, and no task waits for another."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import ray

from musketeers.cluster.connection import Cluster, Needs, connected
from musketeers.cluster.tasks import Task
from musketeers.comparison import jobs as work
from musketeers.comparison.jobs import Job, Plan
from musketeers.comparison.workers import Ended, failure_of
from musketeers.models.model import Settings
from musketeers.models.tuning import Try
from musketeers.parallel import libraries_on_one_thread


@contextmanager
def on_cluster(address: str | None, out: Path) -> Generator["ClusterWorkers"]:
    """Who does the jobs of a comparison that is written to `out`, until the block ends.

    Raises what `connected` raises.
    """
    with connected(address, out) as cluster:
        yield ClusterWorkers(cluster)


@dataclass(frozen=True, slots=True, eq=False)
class ClusterWorkers:
    """See `comparison.workers.Workers`.

    What follows from tries, such as the next one's settings, is decided in this process; a task
    only trains or measures, so that one processor is enough for all of them in turn.
    """

    cluster: Cluster
    _splits: dict[int, Any] = field(default_factory=dict[int, Any], init=False)
    """Seed -> where the object store has the split data."""

    @property
    def memory(self) -> int:
        """What the largest node has."""
        return int(max(node.memory for node in self.cluster.nodes))

    def check(self, job: Job, needed: int, held: int) -> None:  # noqa: ARG002
        """See `Workers.check`."""
        self.cluster.now().check(job.name, Needs(1, memory=needed))

    def each(self, plan: Plan, needs: Mapping[Job, int]) -> Generator[Ended]:
        """See `Workers.each`."""
        for seed in sorted({job.seed for job in needs} - set(self._splits)):
            self._splits[seed] = ray.put(work.splits_of(plan, seed))
        stopped = Event()
        # enough jobs under way that all processors have a try to train
        n_threads = 2 * int(sum(node.cpus for node in self.cluster.nodes))
        with ThreadPoolExecutor(n_threads) as pool:
            doing = {
                pool.submit(failure_of, partial(self._do, plan, job, needed, stopped)): job
                for job, needed in needs.items()
            }
            try:
                for future in as_completed(doing):
                    yield doing[future], future.result()
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)

    def _do(self, plan: Plan, job: Job, needed: int, stopped: Event) -> None:
        def start(name: str, do: Callable[..., Any], *arguments: object) -> Task:
            return Task.started(
                name, Needs(1, memory=needed), self.cluster,
                _on_one_thread, do, plan, job, self._splits[job.seed], *arguments,
            )  # fmt: skip

        def each(numbers: Sequence[int], settings: Sequence[Settings]) -> Iterator[Try]:
            tasks = [
                start(f"{job.name}, try {number + 1}", work.attempt, number, chosen)
                for number, chosen in zip(numbers, settings, strict=True)
            ]
            return (task.result(stopped) for task in tasks)

        if work.n_tries(plan, job) == 1:
            last = start(job.name, work.run)
        else:
            last = start(job.name, work.finish, work.tuned(plan, job, each))
        last.result(stopped)


def _on_one_thread(do: Callable[..., Any], *arguments: object) -> Any:
    with libraries_on_one_thread():
        return do(*arguments)
