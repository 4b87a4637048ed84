"""One run whose users are spread over the members of a cluster; none of them ever holds all."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.cluster.collective import MembersLostError
from musketeers.cluster.connection import Node, connected, living
from musketeers.cluster.members import Errand, folder_of, work
from musketeers.config import RunConfig
from musketeers.errors import ClusterError, ConfigError, MusketeersError
from musketeers.run_folder import RunFolder, check_place
from musketeers.runs import STAGED, Quiet, Watch, models_to_measure

KIND = "sharded run"

_STARTS = 8
"""How often the members are started at most before a run gives up."""

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
        n_threads = _threads(threads, out if resume else None, cluster.nodes, n_shards)
        inputs = {"shards": str(n_shards), "models": ",".join(measured)}
        with RunFolder.create(
            out, configuration.dump(config), data=inputs, threads=n_threads, command=command,
            resume=resume, kind=KIND,
        ) as run:  # fmt: skip
            if run.finished:
                return
            with run.timed("read"):
                read_into_shards(config, base, out / "data", n_shards, watch=watch)
            errand = Errand(config, out.resolve(), measured, n_shards, n_threads, ("", 0))
            with run.timed("fit"):
                _work(errand, cluster.nodes, watch)
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


def _threads(
    threads: int | None, resumed: Path | None, nodes: Sequence[Node], n_shards: int
) -> int:
    """Of each member; by default as the run to be resumed had, or an even share of the cluster."""
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; use 1 or more")
    if threads is None and resumed and (resumed / "manifest.json").exists():
        return int(RunFolder(resumed, KIND).manifest()["threads"])
    return threads or max(1, floor(sum(node.cpus for node in nodes) / n_shards))


def _work(errand: Errand, nodes: Sequence[Node], watch: Watch) -> None:
    """Let the members work until all are done, anew after each loss."""
    share = _share(nodes, errand)
    if share < errand.n_threads:
        raise ClusterError(
            f"{errand.n_members} members need {errand.n_threads} CPUs each, but the nodes of the "
            f"cluster have {', '.join(f'{node.cpus:g}' for node in nodes)}; take fewer shards or "
            "threads, or add nodes"
        )
    for _ in range(_STARTS):
        lost = _attempt(errand, share, watch)
        if lost is None:
            return
        nodes = living()
        share = _share(nodes, errand)
        watch.say(
            f"members were lost ({lost}); all go on from the last epoch on {len(nodes)} nodes"
        )
    raise ClusterError(
        f"members were lost {_STARTS} times, the last time because {lost}; look after the cluster "
        "and go on with --resume"
    )


def _attempt(errand: Errand, share: float, watch: Watch) -> str | None:
    """Let all members work; why some were lost, or None if all are done."""
    host = ray.util.get_node_ip_address()
    # the driver outlives the members, so they meet there
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    errand = replace(errand, meeting=(host, store.port))
    with _places(errand.n_members, share) as places:
        member = ray.remote(work)
        waiting = [
            member.options(
                num_cpus=share,
                max_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    places, placement_group_bundle_index=place
                ),
            ).remote(errand, place, watch if place == 0 else Quiet())
            for place in range(errand.n_members)
        ]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
        except RayError as error:
            return _reason(error)
        finally:
            for task in waiting:
                ray.cancel(task, force=True)
            # whoever still works may write
            ray.wait(waiting, num_returns=len(waiting), timeout=_SECONDS)
    return None


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
def _places(n: int, share: float) -> Generator[PlacementGroup]:
    """A place for each member, on as many nodes as there are."""
    places = placement_group([{"CPU": share}] * n, strategy="SPREAD")
    try:
        if not places.wait(_SECONDS):
            raise ClusterError(
                f"Ray finds no place for {n} members of {share:g} CPUs each within {_SECONDS:.0f} "
                "seconds; see what else runs on the cluster (ray status)"
            )
        yield places
    finally:
        remove_placement_group(places)


def _share(nodes: Sequence[Node], errand: Errand) -> float:
    """The most CPUs that each member can have, no more than its threads.

    On fewer nodes than before they must do with parts of one: slower, and the same result.
    """
    n, wanted = errand.n_members, errand.n_threads
    parts = {float(wanted)} | {node.cpus / k for node in nodes for k in range(1, n + 1)}
    for part in sorted((part for part in parts if part <= wanted), reverse=True):
        # Ray counts ten-thousandths, and above 1 whole ones
        share = floor(part) if part >= 1 else floor(part * 1e4) / 1e4
        if sum(floor(node.cpus / share) for node in nodes) >= n:
            return share
    raise ClusterError("no node of the cluster is left; add one and go on with --resume")


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
