"""The jobs of a run as tasks of a Ray cluster: whole domains, each on one node at a time."""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from musketeers.cluster.board import Board, News, View
from musketeers.cluster.connection import Cluster, Needs, connected
from musketeers.cluster.parcels import Shelf, unpack
from musketeers.cluster.tasks import LOSSES, Patience, spread
from musketeers.costs import Cost, metered
from musketeers.data.domains import Split
from musketeers.device import computing_on, gpu
from musketeers.errors import ClusterError, MusketeersError
from musketeers.execution import Keeper, Made, Watched, Work
from musketeers.models.needs import Size, one_domain
from musketeers.parallel import libraries_on_one_thread

_POLL = 0.1


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """The `Executor` that lets a Ray cluster do the jobs; same results as `execution.Here`.

    Each job is a task that asks for as many CPUs as the run has threads, for a GPU if the run is on
    one, and for memory (`models.needs.one_domain`).  What several jobs use is sent once.  A job
    whose worker is lost begins again elsewhere, from the last epoch that it saved.
    """

    address: str | None = None
    """See `connected`."""

    @contextmanager
    def workers(self, folder: Path | None) -> Generator["RayWorkers"]:
        """See `Executor.workers`; raises what `connected` raises."""
        with connected(self.address, folder) as cluster:
            yield RayWorkers(cluster, Board.opened())


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """The `Workers` of a cluster."""

    cluster: Cluster
    board: Board
    shelf: Shelf = field(default_factory=Shelf)

    def check(self, splits: Mapping[str, Split], *, n_threads: int, dim: int) -> None:
        """See `Workers.check`."""
        for name, split in splits.items():
            self.cluster.check(f"a job of {name}", _needs(split, n_threads, dim))

    def each(
        self,
        keeper: Keeper,
        stage: str,
        work: Mapping[str, Work[Made]],
        *,
        max_epochs: int,
        dim: int,
    ) -> dict[str, Made]:
        """See `Workers.each`.

        Raises what a job raises if it is a `MusketeersError`, and else `ClusterError`, which says
        in one line why a job or the cluster gave up.
        """
        largest = max(keeper.splits.values(), key=lambda split: len(split.train))
        # a control may bring a domain of its own, which is no larger
        sizes = {name: keeper.splits.get(name, largest) for name in work}
        domains = {f"{stage} {name}": name for name in work}
        needs = {job: _needs(sizes[name], keeper.n_threads, dim) for job, name in domains.items()}
        for job, needed in needs.items():
            self.cluster.check(job, needed)

        def lost(job: str, host: str) -> None:
            name = domains[job]
            keeper.say(f"{stage:<8} {name:<11}  lost its worker and goes on on {host}")

        view = View(lambda job: keeper.watched(stage, domains[job], max_epochs), lost)
        tasks: dict[Any, str] = {}
        made: dict[str, Made] = {}
        try:
            for job, name in domains.items():
                folder = keeper.place(stage, name)
                task = self._start(work[name], job, folder and folder.resolve(), needs[job])
                tasks[task] = job
            for job, found, cost in self._ended(tasks, view, Patience(self.cluster, needs)):
                made[domains[job]] = found
                keeper.spent(stage, domains[job], cost)
        except RayTaskError as error:
            raise _ours(error, stage) from None
        except RayError as error:
            raise ClusterError(f"{stage}: {_line(error)}; go on with --resume") from None
        finally:
            # what still runs ends with the connection: to cancel what has just ended may crash Ray
            view.close()
        return {name: made[name] for name in work}

    def spread(
        self, name: str, do: Callable[..., Made], *, n_threads: int, memory: int
    ) -> Callable[..., Iterable[Made]]:
        """See `Workers.spread`."""
        needs = Needs(n_threads, 1 if gpu() else 0, memory)
        self.cluster.check(name, needs)
        return spread(name, needs, self.cluster, self.shelf.pack(do))

    def _ended(
        self, tasks: dict[Any, str], view: View, patience: Patience
    ) -> Generator[tuple[str, Any, Cost]]:
        """What each job makes and what it took, when it ends; those that go on stay in `tasks`."""
        while tasks:
            ready, _ = ray.wait(list(tasks), timeout=_POLL)
            # asked for after: a job that is over has told all before
            for news in self.board.take():
                if news.job in tasks.values():
                    view.hear(news)
            for task in ready:
                # a copy, since the store's memory goes with the connection
                made, cost = copy.deepcopy(ray.get(task))
                job = tasks.pop(task)
                view.end(job)
                yield job, made, cost
            patience.look(tasks.values())

    def _start(self, do: Work[Any], job: str, folder: Path | None, needs: Needs) -> Any:
        parcel = self.shelf.pack(do)
        task = ray.remote(_do).options(
            name=job, num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory,
            max_retries=LOSSES,
        )  # fmt: skip
        return task.remote(
            parcel.data, job, folder, "cuda" if needs.gpus else "cpu", self.board, *parcel.arrays
        )


def _needs(split: Split, n_threads: int, dim: int) -> Needs:
    train = split.train
    size = Size(train.n_users, (train.n_items,), len(train), dim, 1)
    return Needs(n_threads, 1 if gpu() else 0, one_domain(size, n_threads=n_threads))


def _do(
    data: bytes, job: str, folder: Path | None, device: str, board: Board, *arrays: np.ndarray
) -> tuple[Any, Cost]:
    """One job, on a worker."""
    work = unpack(data, arrays)
    news = partial(News, job, token_hex(8), ray.util.get_node_ip_address())
    told = [board.tell(news())]
    # only who has been heard of can be missed
    ray.get(told)

    def on_epoch(epoch: Any) -> None:
        told[0] = board.tell(news(epoch))

    watched = Watched(folder, on_epoch, writer=news().attempt)
    with libraries_on_one_thread(), computing_on(device), metered() as cost:
        made = work(watched)
    ray.get(told)
    return made, cost


def _ours(error: RayTaskError, stage: str) -> MusketeersError:
    """What the job raised, if it is one of ours; else that it failed, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, MusketeersError):
        return cause
    return ClusterError(f"{stage}: a job failed on the cluster: {_line(cause or error)}")


def _line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
