"""One run whose users are spread over the members of a cluster; none of them ever holds all."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.cluster.board import open_board
from musketeers.cluster.collective import MembersLostError
from musketeers.cluster.connection import Cluster, Needs, connected
from musketeers.cluster.distant import Distant, hearing
from musketeers.cluster.members import Errand, folder_of, work
from musketeers.cluster.reading import partition
from musketeers.config import RunConfig
from musketeers.data.shards import About
from musketeers.errors import ClusterError, ConfigError, MusketeersError
from musketeers.models.needs import Size, whole_fit
from musketeers.run_folder import RunFolder, check_place
from musketeers.runs import STAGED, Quiet, Watch, models_to_measure

KIND = "sharded run"

_STARTS = 8
"""How often the members are started at most before a run gives up."""

_POLL = 0.25
_SECONDS = 60.0
"""That Ray may take to place members, and members to end."""


def fit_sharded(
    config: RunConfig,
    base: Path,
    out: Path,
    *,
    n_shards: int,
    address: str | None = None,
    resume: bool = False,
    threads: int | None = None,
    only: str | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> None:
    """Train, measure and save with the users spread over `n_shards` members of a Ray cluster.

    Each has `threads` processors, by default its even share of the cluster's, and writes a run
    folder of its own for its users, ``OUT/shards/0`` and so on, which recommends, explains, serves
    and exports like any other; ``OUT/metrics.json`` is of all users.  The result depends on the
    number of members and threads, and not on where they are: when some are lost, all go on from the
    last epoch on the nodes that are left, to the same result, bit by bit.  With `resume` so does an
    interrupted run.

    Raises what `connection.connected`, reading and training raise, `ConfigError` for what members
    cannot do together, and `ClusterError` where the cluster has too little for them, or loses them
    over and over.
    """
    measured = _checked(config, n_shards, only)
    check_place(out, resume=resume, kind=KIND)
    watch = watch or Quiet()
    with connected(address, out) as cluster:
        n_threads = _threads(threads, out if resume else None, cluster, n_shards)
        inputs = {"shards": str(n_shards), "models": ",".join(measured)}
        with RunFolder.create(
            out, configuration.dump(config), data=inputs, threads=n_threads, command=command,
            resume=resume, kind=KIND,
        ) as run:  # fmt: skip
            if run.finished:
                return
            with run.timed("read"):
                about = partition(
                    config, out / "data", n_shards, base=base, told=watch.rows, say=watch.say
                )
            memory = _memory(about, config, n_shards, transfers="cat_art" in measured)
            errand = Errand(config, out.resolve(), measured, n_shards, n_threads, ("", 0))
            with run.timed("fit"):
                _work(errand, cluster, memory, watch)
            artifacts.write_text(out / "metrics.json", _metrics(out, n_shards))
            run.finish()


def _checked(config: RunConfig, n_shards: int, only: str | None) -> tuple[str, ...]:
    """The models to measure; `ConfigError` for what members cannot do together."""
    if n_shards < 2:
        raise ConfigError(f"shards is {n_shards}; use 2 or more, or leave them out")
    if only not in (None, *STAGED):
        raise ConfigError(
            f"{only} is not trained on shards of users; name one of {', '.join(STAGED)}, or leave "
            "out the shards"
        )
    for name in config.data.domains:
        if (method := config.pretrain.method_of(name)) != "bpr":
            raise ConfigError(
                f"pretrain.method of {name} is {method}, for which one machine must see all users; "
                "set it to bpr, or leave out the shards"
            )
    return models_to_measure(only, n_domains=len(config.data.domains))


def _threads(threads: int | None, resumed: Path | None, cluster: Cluster, n_shards: int) -> int:
    """Of each member; by default as the run to be resumed had, or an even share of the cluster."""
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; use 1 or more")
    if threads is None and resumed and (resumed / "manifest.json").exists():
        return int(RunFolder(resumed, KIND).manifest()["threads"])
    return threads or max(1, floor(sum(node.cpus for node in cluster.nodes) / n_shards))


def _memory(about: About, config: RunConfig, n_shards: int, *, transfers: bool) -> int:
    """Bytes that a member takes at least: its share of the largest domain, and all items."""
    domains = about.domains.values()
    size = Size(
        max(one.users for one in domains) // n_shards,
        tuple(one.items for one in domains),
        sum(one.pairs for one in domains) // n_shards,
        config.dim,
        len(about.domains),
    )
    return whole_fit(size, transfers=transfers)


def _work(errand: Errand, cluster: Cluster, memory: int, watch: Watch) -> None:
    """Let the members work until all are done, anew after each loss."""
    cluster.check("a member", Needs(errand.n_threads, memory=memory))
    if (share := _share(cluster, errand, memory)) < errand.n_threads:
        raise ClusterError(
            f"{errand.n_members} members need {errand.n_threads} CPUs each, but the nodes of the "
            f"cluster have {', '.join(f'{node.cpus:g}' for node in cluster.nodes)}; take fewer "
            "shards or threads, or add nodes"
        )
    lost = 0
    while (why := _attempt(errand, share, memory, watch)) and (lost := lost + 1) < _STARTS:
        cluster = cluster.answering()
        share = _share(cluster, errand, memory)
        n_nodes = len(cluster.nodes)
        watch.say(f"members were lost ({why}); all go on from the last epoch on {n_nodes} nodes")
    if why:
        raise ClusterError(
            f"members were lost {lost} times, the last time because {why}; look after the cluster "
            "and go on with --resume"
        )


class _LostError(Exception):
    """Some members are gone, and the others can do nothing without them."""


def _attempt(errand: Errand, share: float, memory: int, watch: Watch) -> str:
    """Let all members work until all are done; why some were lost, or nothing."""
    try:
        _until_done(errand, share, memory, watch)
    except _LostError as error:
        return str(error)
    return ""


def _until_done(errand: Errand, share: float, memory: int, watch: Watch) -> None:
    host = ray.util.get_node_ip_address()
    # the driver outlives the members, so they meet there
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    errand = replace(errand, meeting=(host, store.port))
    board, member = open_board(), ray.remote(work)
    with _places(errand.n_members, share, memory) as places, hearing(board, watch) as hear:
        waiting = [
            member.options(
                num_cpus=share,
                memory=memory,
                max_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    places, placement_group_bundle_index=place
                ),
            ).remote(errand, place, Quiet() if place else Distant(board))
            for place in range(errand.n_members)
        ]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=_POLL)
                hear()
                ray.get(done)
        except RayError as error:
            raise _LostError(_reason(error)) from None
        finally:
            for task in waiting:
                ray.cancel(task, force=True)
            # whoever still works may write
            if waiting:
                ray.wait(waiting, num_returns=len(waiting), timeout=_SECONDS)


def _reason(error: RayError) -> str:
    """Why a member was lost; raises what it raised if it was not."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, MusketeersError) and not isinstance(cause, MembersLostError):
        raise cause from None
    if isinstance(cause, OutOfMemoryError):
        raise ClusterError(
            "a member needs more memory than its node has; take more shards, or nodes with more"
        ) from None
    if isinstance(error, RayTaskError) and not isinstance(cause, MembersLostError):
        raise ClusterError(
            f"a member ended with an unexpected {type(cause).__name__}: {cause}; please report it"
        ) from None
    return str(cause).strip().splitlines()[0]


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


def _metrics(out: Path, n_shards: int) -> str:
    """The means of all shards' users, as `metrics.json` has them."""
    each = [json.loads((folder_of(out, n) / "metrics.json").read_text()) for n in range(n_shards)]
    whole = each[0] | {"shards": n_shards}
    whole["models"] = {
        model: {
            domain: _mean([one["models"][model][domain] for one in each]) for domain in by_domain
        }
        for model, by_domain in each[0]["models"].items()
    }
    return json.dumps(whole, indent=2) + "\n"


def _mean(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counted = [part for part in parts if part["users"]]
    n_users = sum(part["users"] for part in counted)
    names = [name for name in parts[0] if name != "users"]
    return {
        "users": n_users,
        **{
            name: sum(part["users"] * part[name] for part in counted) / n_users if n_users else None
            for name in names
        },
    }
