"""All members of a sharded run at once, on whatever nodes there are, until they are done."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import floor

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from musketeers.cluster.board import Board
from musketeers.cluster.collective import MembersLostError
from musketeers.cluster.connection import Cluster, Needs, in_cpus
from musketeers.cluster.distant import Distant, hearing
from musketeers.cluster.members import Errand, work
from musketeers.errors import ClusterError, MusketeersError
from musketeers.evaluation.compare import Cell, Sums
from musketeers.runs import Quiet, Watch

STARTS = 8
"""How often members are started before a run gives up."""

_SMALLER = 'take more shards, or put items in shards too (pretrain.item_tables = "sharded")'

_POLL = 0.25
_SECONDS = 60.0
"""That Ray may take to place members, and members to end."""


def check_processors(cluster: Cluster, n_members: int, n_threads: int) -> None:
    """Raise `ClusterError` unless there are as many processors as the members have threads."""
    cluster.check("a member", Needs(n_threads))
    if sum(floor(node.cpus / n_threads) for node in cluster.nodes) < n_members:
        raise ClusterError(
            f"{n_members} members need {in_cpus(n_threads)} each, but the nodes of the cluster "
            f"have {', '.join(f'{node.cpus:g}' for node in cluster.nodes)}; take fewer shards or "
            "threads, or add nodes"
        )


def together(
    errand: Errand, cluster: Cluster, memory: int, watch: Watch
) -> list[Mapping[Cell, Sums]]:
    """What each member found, in their order; each takes `memory` bytes.

    When some are lost, all begin anew from their last progress on the nodes that are left.  Raises
    what a member raises if it is a `MusketeersError`, `ClusterError` where the cluster has too
    little for them, and `MembersLostError` where it loses some for the `STARTS`-th time.
    """
    cluster.check("a member", Needs(errand.n_threads, memory=memory), smaller=_SMALLER)
    share = _share(cluster, errand, memory)
    for _ in range(STARTS - 1):
        try:
            return _attempt(errand, share, memory, watch)
        except MembersLostError as error:
            watch.say(f"members were lost: {error}")
        cluster = cluster.answering()
        share = _share(cluster, errand, memory)
        watch.say(f"all members go on from their last epoch on {len(cluster.nodes)} nodes")
    return _attempt(errand, share, memory, watch)


def _attempt(errand: Errand, share: float, memory: int, watch: Watch) -> list[Mapping[Cell, Sums]]:
    host = ray.util.get_node_ip_address()
    # the driver outlives the members, so they meet there
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    board, member, tasks = Board.opened(), ray.remote(work), []
    try:
        with _places(errand.n_members, share, memory) as places, hearing(board, watch) as hear:
            for place in range(errand.n_members):
                there = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=place)
                task = member.options(
                    num_cpus=share, memory=memory, max_retries=0, scheduling_strategy=there
                )
                told = Quiet() if place else Distant(board)
                tasks.append(task.remote(errand, place, host, store.port, told))
            waiting = tasks
            while waiting:
                done, waiting = ray.wait(waiting, timeout=_POLL)
                hear()
                ray.get(done)
            return ray.get(tasks)
    except RayError as error:
        raise _told(error) from None
    finally:
        # without their places members end, and until they have they may write
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=_SECONDS)


def _told(error: RayError) -> MusketeersError:
    """What a member raised, or `MembersLostError` if one is gone."""
    if not isinstance(error, RayTaskError):
        first = str(error).strip().splitlines()[0]
        if isinstance(error, OutOfMemoryError):
            return ClusterError(
                f"a member needs more memory than its node has ({first}); take more shards, or "
                "nodes with more memory"
            )
        return MembersLostError(first)
    cause = error.cause
    if isinstance(cause, MusketeersError):
        return cause
    return ClusterError(
        f"a member ended with an unexpected {type(cause).__name__}: {cause}; please report it"
    )


@contextmanager
def _places(n: int, share: float, memory: int) -> Generator[PlacementGroup]:
    """A place for each member, on as many nodes as there are."""
    places = placement_group([{"CPU": share, "memory": memory}] * n, strategy="SPREAD")
    try:
        if not places.wait(_SECONDS):
            raise ClusterError(
                f"Ray finds no place for {n} members of {share:g} CPUs and {memory / 1e9:.1f} GB "
                f"each within {_SECONDS:.0f} seconds; see what else runs there (ray status)"
            )
        yield places
    finally:
        remove_placement_group(places)


def _share(cluster: Cluster, errand: Errand, memory: int) -> float:
    """The most CPUs that each member can have, no more than its threads.

    On fewer nodes than before they must do with parts of one: slower, and the same result.  Raises
    `ClusterError` if the nodes' memory is not enough for all.
    """
    n, nodes = errand.n_members, cluster.nodes
    if sum(floor(node.memory / memory) for node in nodes) < n:
        raise ClusterError(
            f"{n} members need {memory / 1e9:.1f} GB of memory each, but the nodes of the cluster "
            f"have {', '.join(f'{node.memory / 1e9:.1f}' for node in nodes)}; add nodes, and go on "
            "with --resume"
        )
    parts = {float(errand.n_threads)} | {node.cpus / k for node in nodes for k in range(1, n + 1)}
    # Ray counts ten-thousandths, and above 1 whole ones
    shares = (floor(part) if part >= 1 else floor(part * 1e4) / 1e4 for part in parts)
    return max(
        share
        for share in shares
        if share <= errand.n_threads
        and sum(floor(min(node.cpus / share, node.memory / memory)) for node in nodes) >= n
    )
