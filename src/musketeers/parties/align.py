"""The coordinator, who has no interactions and no items: one embedding for each user, for all."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from musketeers import config as configuration
from musketeers.cat.train import Aligned
from musketeers.config import RunConfig
from musketeers.errors import ConfigError, DataError
from musketeers.exchange import UserEmbeddings
from musketeers.execution import InTurn, Watched
from musketeers.parallel import libraries_on_one_thread
from musketeers.parties import places
from musketeers.parties.agreement import Agreed, agreed, signer_of
from musketeers.parties.alignment import Alignment, Source, read_alignment, write_alignment
from musketeers.parties.home import Home, Release
from musketeers.parties.publication import Publication, by_domain, told
from musketeers.pipeline import one_for_all
from musketeers.run_folder import locked
from musketeers.runs import Quiet, Watch, thread_count

_FOR_ALL = "alignment.safetensors"
_CHECKPOINTS = "checkpoints"


def file_for(domain: str | None) -> str:
    """The name of an alignment for one party, or for all."""
    return f"alignment-{domain}.safetensors" if domain else _FOR_ALL


def align(
    config: RunConfig,
    published: Sequence[str],
    out: str,
    home: Home,
    *,
    per_party: bool = False,
    keep: str | None = None,
    threads: int | None = None,
    watch: Watch | None = None,
) -> list[str]:
    """Train CAT on what the parties published, and write what it makes of it into the folder `out`.

    `published` are paths, addresses or patterns of the latest file of each party; a party whose
    file is not among them takes no part.  Written is one file, or with `per_party` one for each
    party with that party's users alone.  With `keep`, the folder of an earlier alignment, its
    encoder is used as it is, which takes vectors of the spaces that it was trained on; a party that
    has left is then one that knows nobody.  An interrupted training goes on by itself.

    Returns the places written.  Raises `ArtifactError` for a file that is not as its maker made it,
    that is older than one taken before, or that cannot be written; `ConfigError` for fewer than two
    parties; `DataError` if the pseudonyms of two cannot meet, or no user of theirs does.
    """
    watch, parties, signer = watch or Quiet(), agreed(config), signer_of(config, home, None)
    found = by_domain(places.find(published), parties.domains, dim=config.dim)
    for name, (place, one) in found.items():
        home.check(place, f"publications of {name}", one.sequence, one.digest)
    latest = {name: one for name, (_, one) in found.items()}
    if len(latest) < 2:
        raise ConfigError(
            f"{', '.join(latest) or 'nobody'} alone has published; there is something to align "
            "from two parties on"
        )
    home.take(
        [(f"publications of {name}", one.sequence, one.digest) for name, one in latest.items()]
    )
    old = None if keep is None else _kept(keep, parties, latest, dim=config.dim)
    sources = _sources(latest, old)
    users, shared = told(latest, [source.domain for source in sources])
    _check_overlap(shared)
    if old:
        aligned = old.encoder()
        aligned = replace(aligned, users=aligned.of(shared))
    else:
        aligned = _trained(shared, config, home, latest, thread_count(threads), watch)
    files: dict[str, Path] = {}
    with locked(home.path):
        sequence = 1 + max((one.sequence for one in home.releases()), default=0)
        for audience in latest if per_party else (None,):
            rows, file = _rows(shared, audience), home.file(sequence, audience)
            digest = write_alignment(
                str(file), users.ids(rows), replace(aligned, users=aligned.users[rows]), sources,
                signer, audience=audience, sequence=sequence,
            )  # fmt: skip
            # noted before it leaves, so that no number is given twice
            home.release(Release(sequence=sequence, digest=digest, defences=None))
            files[places.inside(out, file_for(audience))] = file
        for place, file in files.items():
            places.write(place, [file.read_bytes()])
    shutil.rmtree(home.path / _CHECKPOINTS, ignore_errors=True)
    return list(files)


def _sources(latest: Mapping[str, Publication], old: Alignment | None) -> tuple[Source, ...]:
    spaces = {one.domain: one.space for one in old.about.sources} if old else {}
    return tuple(
        Source(
            domain=name,
            space=latest[name].about.space if name in latest else spaces[name],
            sequence=latest[name].sequence if name in latest else None,
            digest=latest[name].digest if name in latest else None,
        )
        for name in (spaces or latest)
    )


def _kept(
    folder: str, parties: Agreed, latest: Mapping[str, Publication], *, dim: int
) -> Alignment:
    """The earlier alignment, if its encoder can be told what is published now."""
    names = [None, *parties.domains]
    files = [places.inside(folder, file_for(name)) for name in names]
    there = [file for file in files if places.exists(file)]
    old = read_alignment(there[0] if there else files[0], parties.coordinator, dim=dim)
    spaces = {source.domain: source.space for source in old.about.sources}
    for name, one in latest.items():
        if name not in spaces:
            raise ConfigError(
                f"{name} was not there when the encoder of {folder} was trained, so it cannot be "
                "kept; align without --keep"
            )
        if one.about.space != spaces[name]:
            raise ConfigError(
                f"{name} has trained its items again since the encoder of {folder} was trained, so "
                "it cannot be kept; align without --keep"
            )
    return old


def _check_overlap(shared: UserEmbeddings) -> None:
    if not (shared.known.sum(axis=1) > 1).any():
        raise DataError(
            f"none of {len(shared.known):,} users is known to two parties, so there is nothing to "
            "align; do their user ids mean the same?"
        )


def _rows(shared: UserEmbeddings, audience: str | None) -> np.ndarray:
    known = (
        shared.known.any(axis=1) if audience is None else shared.known[:, shared.index(audience)]
    )
    return np.flatnonzero(known)


def _trained(
    shared: UserEmbeddings,
    config: RunConfig,
    home: Home,
    latest: Mapping[str, Publication],
    n_threads: int,
    watch: Watch,
) -> Aligned:
    what = hashlib.sha256(configuration.dump(config).encode())
    for one in latest.values():
        what.update(one.digest.encode())
    folder = home.path / _CHECKPOINTS / f"{what.hexdigest()[:16]}-{n_threads}"
    n_epochs = config.cat.max_epochs
    with libraries_on_one_thread(), watch.stage(
        "cat", None, samples=len(shared.known), max_epochs=n_epochs
    ) as on_epoch:  # fmt: skip
        jobs = InTurn(lambda _stage, _domain, _epochs: Watched(folder, on_epoch))
        return one_for_all(shared, config, jobs, n_threads=n_threads)
