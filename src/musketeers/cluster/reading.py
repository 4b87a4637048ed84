"""Reading, k-core, split and shards by Ray Data, with the result of one machine.

No process ever holds all pairs or all users of a domain; each may hold its items.  What becomes of
a part is in `blocks`; where parts go, and what all of them together come to, in `surveys` (files),
`cores` (the k-core) and `writing` (purposes and shards).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from musketeers import artifacts
from musketeers.cluster.asking import settings
from musketeers.cluster.cores import core
from musketeers.cluster.places import Place, find
from musketeers.cluster.surveys import survey
from musketeers.cluster.writing import write
from musketeers.config import RunConfig
from musketeers.data import shards
from musketeers.data.pseudonyms import Secret
from musketeers.data.readers import refuse_shared, refuse_units, wanted
from musketeers.data.shards import About
from musketeers.errors import ConfigError, DataError, RunError
from musketeers.protocols import Rows, untold


def partition(
    config: RunConfig,
    folder: Path,
    n_shards: int,
    *,
    base: Path,
    told: Rows = untold,
    say: Callable[[str], object] = lambda _: None,
) -> About:
    """Read and split the domains on the connected cluster, into `folder`, in shards.

    They are those that `shards.write_shards` makes of `readers.read` and `splits.split`.  Domains
    are Parquet files, at paths that every node sees or addresses that fsspec knows; relative paths
    count from `base`.  Afterwards all of `folder` is there, or nothing.  If it is there already,
    made of the same files and settings, nothing is read, and `say` is told so.  `told` hears how
    many rows have been read, and how many pairs have a purpose.

    Raises `DataError` where one machine does, and for CSV files and times that are text;
    `ConfigError` for fewer than one shard and for cold users; `RunError` if `folder` holds what was
    made of others; `ArtifactError` if it cannot be written; `ClusterError` if the cluster fails.
    """
    _check(config, n_shards)
    folder = folder.absolute()  # tasks may run anywhere
    columns = {name: wanted(config.data, name) for name in config.data.domains}
    places = {name: find(source, base) for name, source in config.data.domains.items()}
    refuse_shared({n: [(p.name, p.identity) for p in own] for n, own in places.items()})
    secret = Secret.read(base / config.data.secret) if config.data.secret else None
    inputs = _fingerprint(config, places, secret)
    if about := shards.read_about(folder):
        _refuse_others(folder, about, inputs, n_shards)
        say(f"{folder}: holds these data in {n_shards} shards already")
        return about
    with settings():
        cores = {
            name: core(name, survey(name, places[name], own, told), config.data, n_shards, told)
            for name, own in columns.items()
        }
        refuse_units({name: found.unit for name, found in cores.items()})
        with artifacts.new_folder(folder) as draft:
            write(cores, config, secret, draft, n_shards, told)
            counts = {name: found.counts for name, found in cores.items()}
            about = About(shards=n_shards, inputs=inputs, domains=counts)
            shards.write_about(draft, about)
    return about


def _check(config: RunConfig, n_shards: int) -> None:
    if n_shards < 1:
        raise ConfigError(f"shards is {n_shards}; use 1 or more")
    if config.split.cold:
        raise ConfigError(
            f"split.cold is {config.split.cold}, and a domain in shards has no cold users; set it "
            "to 0, or fit without shards"
        )
    if not config.data.domains:
        raise DataError("no domain is given; name at least one file under [data.domains]")


def _fingerprint(
    config: RunConfig, places: Mapping[str, Sequence[Place]], secret: Secret | None
) -> str:
    """Another one for other settings and for other files."""
    data = config.data.model_dump(mode="json", exclude={"domains", "secret"})
    split, key = config.split.model_dump(mode="json"), secret.check if secret else None
    found = {name: [(p.name, p.version) for p in own] for name, own in places.items()}
    whole = json.dumps([data, split, config.seed, key, found], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _refuse_others(folder: Path, about: About, inputs: str, n_shards: int) -> None:
    if about.shards != n_shards:
        raise RunError(
            f"{folder}: holds data in {about.shards} shards, and {n_shards} are asked for; ask for "
            f"{about.shards}, or choose another folder"
        )
    if about.inputs != inputs:
        raise RunError(
            f"{folder}: holds data of other settings or files; remove it or choose another folder"
        )
