"""One run whose users are spread over the members of a cluster; none of them ever holds all."""

from collections.abc import Sequence
from math import floor
from pathlib import Path

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.cluster.connection import Cluster, connected
from musketeers.cluster.gang import check_processors, together
from musketeers.cluster.members import Errand, folder_of
from musketeers.cluster.reading import partition
from musketeers.cluster.whole import FILE, Whole
from musketeers.config import RunConfig
from musketeers.data.shards import About
from musketeers.errors import ConfigError, MusketeersError
from musketeers.models.needs import Size, shard_fit
from musketeers.progress import is_finished
from musketeers.run_folder import RunFolder, check_place
from musketeers.runs import STAGED, Quiet, Watch, models_to_measure

KIND = "sharded run"


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
) -> Whole:
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
        if not (resume and is_finished(out, KIND)):
            check_processors(cluster, n_shards, n_threads)
        inputs = {"shards": str(n_shards), "models": ",".join(measured)}
        with RunFolder.create(
            out, configuration.dump(config), data=inputs, threads=n_threads, command=command,
            resume=resume, kind=KIND,
        ) as run:  # fmt: skip
            if run.finished:
                return Whole.read(out)
            about = _read(config, base, run, n_shards, watch)
            memory = _memory(about, config, n_shards, transfers="cat_art" in measured)
            errand = Errand(config, out.resolve(), measured, n_shards, n_threads)
            with run.timed("fit"):
                sums = together(errand, cluster, memory, watch)
            whole = Whole.of([folder_of(out, place) for place in range(n_shards)], sums)
            artifacts.write_text(out / FILE, whole.to_json())
            run.finish()
    return whole


def _read(config: RunConfig, base: Path, run: RunFolder, n_shards: int, watch: Watch) -> About:
    """The data in shards; if they cannot be had, the run was never begun."""
    place = run.path / "data"
    try:
        with run.timed("read"):
            return partition(config, place, n_shards, base=base, told=watch.rows, say=watch.say)
    except MusketeersError:
        if not place.exists():
            run.withdraw()
        raise


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
    """Bytes that a member takes at least: its share of the largest domain, and its items."""
    domains = about.domains.values()
    size = Size(
        max(one.users for one in domains),
        tuple(one.items for one in domains),
        sum(one.pairs for one in domains),
        config.dim,
        len(about.domains),
    )
    sharded = config.pretrain.item_tables == "sharded"
    return shard_fit(size, n_shards, transfers=transfers, sharded_items=sharded)
