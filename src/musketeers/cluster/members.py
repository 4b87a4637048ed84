"""What each member of a sharded run does: the whole method, on its own users."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from musketeers.cluster.collective import Collective
from musketeers.config import RunConfig
from musketeers.data.overlap import overlap_report
from musketeers.data.readers import Reading
from musketeers.data.shards import read_about, read_shard
from musketeers.evaluation.compare import Cell, Sums
from musketeers.group import member_of, of_all
from musketeers.run_files import sums_read
from musketeers.run_folder import RunFolder
from musketeers.runs import Data, Watch, fit_data

_PATIENCE = timedelta(minutes=30)
"""How long a member waits for the others; with nobody dead they may be that much slower."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What the members of a run are to do."""

    config: RunConfig
    out: Path
    """The run's folder, which all of them see."""
    measured: tuple[str, ...]
    """See `runs.models_to_measure`."""
    n_members: int
    n_threads: int
    """Of each member."""


def work(errand: Errand, place: int, host: str, port: int, watch: Watch) -> Mapping[Cell, Sums]:
    """Be the member at that place: fit its shard with the others, into a run folder of its own.

    They find each other at that port of `host`.  Gives what its users add to the comparison of what
    recommends with each domain alone (`RunResult.sums`).
    """
    store = TCPStore(host, port, timeout=_PATIENCE)
    dist.init_process_group(
        "gloo", store=store, rank=place, world_size=errand.n_members, timeout=_PATIENCE
    )
    with ExitStack() as after:
        after.callback(dist.destroy_process_group)
        after.enter_context(member_of(Collective()))
        _fit(errand, place, watch)
    return sums_read(folder_of(errand.out, place))


def folder_of(out: Path, place: int) -> Path:
    """The run of the member at that place."""
    return out / "shards" / str(place)


def _fit(errand: Errand, place: int, watch: Watch) -> None:
    folder = folder_of(errand.out, place)
    manifest = folder / "manifest.json"
    finished = of_all(np.array([manifest.exists() and RunFolder(folder).finished]))
    if finished.any():
        # nobody is finished before everybody has saved everything
        if not finished[place]:
            RunFolder(folder).finish()
        return
    fit_data(
        errand.config, _data(errand, place), folder,
        measured=errand.measured, inputs={"shard": f"{place} of {errand.n_members}"},
        resume=True, n_threads=errand.n_threads, watch=watch, command=(),
    )  # fmt: skip


def _data(errand: Errand, place: int) -> Data:
    shards = errand.out / "data"
    about = read_about(shards)
    if about is None:
        raise ValueError(f"{shards} is not there")
    domains, splits = read_shard(shards, place)
    sources = {name: counts.source() for name, counts in about.domains.items()}
    return Data(domains, overlap_report(Reading(domains, sources)), splits)
