"""Back in the domain: ART, the choice, and a run like any other, told of what is published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32

from musketeers.cat.train import Aligned
from musketeers.config import RunConfig, changed
from musketeers.costs import metered
from musketeers.data import readers
from musketeers.data.overlap import overlap_report
from musketeers.data.splits import split
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError, DataError
from musketeers.memory import available
from musketeers.models.needs import Size, check_fit
from musketeers.parallel import libraries_on_one_thread
from musketeers.parties import places
from musketeers.parties.agreement import agreed, settings_of
from musketeers.parties.align import file_for
from musketeers.parties.alignment import Alignment, read_alignment
from musketeers.parties.home import Home
from musketeers.parties.publication import Publication, by_domain, told
from musketeers.pipeline import Models
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.results import RunResult
from musketeers.run_files import open_run
from musketeers.run_folder import check_place
from musketeers.runs import (
    Data,
    Quiet,
    Watch,
    fingerprints,
    fit_data,
    models_to_measure,
    thread_count,
)
from musketeers.seeding import Seed


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """What the party has from others, checked."""

    alignment: Alignment
    latest: dict[str, Publication]


def transfer(
    config: RunConfig,
    base: Path,
    domain: str,
    data: str | Path | None,
    secret: str | Path,
    shared: str,
    published: Sequence[str],
    out: Path,
    home: Home,
    *,
    resume: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """The domain told of the others, as a finished run in the folder `out`.

    `shared` is the folder that the coordinator wrote, `published` what it was made of: paths,
    addresses or patterns.  Stage 1 comes from `home`; `data` and `secret` must be those that it was
    pretrained with.  Without noise the run is bitwise the domain's part of `fit_run` on the data of
    all, with the same settings and secret.

    Raises what `fit_run` raises; `ArtifactError` for a file that is not as its maker made it, that
    is older than one taken before, or that is not what was aligned; and `DataError` for other data
    than were pretrained on.
    """
    watch, n_threads = watch or Quiet(), thread_count(threads, out if resume else None)
    check_place(out, resume=resume)
    own = settings_of(config, domain, data, secret)
    given = _given(config, domain, shared, published, home, watch)
    alone = _alone(home, domain, given.latest[domain].sequence)
    # of vectors that are folded in, the party draws what is held out by a seed of its own
    own = changed(own, {"seed": alone.config.seed})
    keys, learned = _stage_1(alone, domain)
    with metered() as cost:
        reading = readers.read(own.data, base=base, told=watch.rows)
        if fingerprints(reading.domains).items() - alone.manifest["data"].items():
            raise DataError(
                f"{own.data.domains[domain]}: is not what {domain} was pretrained on for its "
                f"publication {given.latest[domain].sequence}; give the same data and secret, or "
                "pretrain, publish and align anew"
            )
        # a party knows itself as it is, whatever it told the others
        itself = replace(given.latest[domain], keys=keys, users=learned.factors.users)
        everybody, exchanged = told({**given.latest, domain: itself}, given.alignment.domains)
        reading = readers.among(reading, everybody.values)
    users = reading.domains.users
    names, here = given.alignment.domains, reading.domains.domains[domain]
    size = Size(len(users), (len(here.items),), len(here.pairs), own.dim, len(names))
    check_fit(size, out, available() * 9 // 10, transfers=True)
    exchanged = exchanged.placed(users.rows(everybody.values), n_users=len(users))
    with libraries_on_one_thread():
        aligned = _aligned(given, users)
    with metered() as apart:
        splits = split(reading.domains, own.split, Seed(own.seed), told=watch.rows)
    learned = learned.placed(users.rows(keys), n_users=len(users))
    overlap = overlap_report(
        reading,
        {
            name: exchanged.known[:, place]
            for place, name in enumerate(exchanged.domains)
            if name != domain
        },
    )
    for warning in overlap.warnings:
        watch.say(f"warning: {warning}")
    done = Models({domain: learned}, aligned, shared=exchanged)
    costs = {"read": cost, "split": apart}
    inputs = {f"{name}, published": one.digest for name, one in given.latest.items()}
    fit_data(
        own, Data(reading.domains, overlap, splits, done=done, costs=costs), out,
        measured=models_to_measure(n_domains=len(names)),
        inputs={**inputs, "alignment": given.alignment.digest},
        resume=resume, n_threads=n_threads, watch=watch, command=command,
    )  # fmt: skip
    return open_run(out)


def _alone(home: Home, domain: str, number: int) -> RunResult:
    """The run of stage 1 that the publication of that number came from."""
    run = home.run(number)
    if not run.exists():
        raise ConfigError(
            f"{run}: is not there: publication {number} of {domain} was made of vectors from "
            "elsewhere, or in another private folder; pretrain here (musketeers party pretrain), "
            "for vectors from elsewhere with pretrain.method 'given'"
        )
    return open_run(run)


def _stage_1(run: RunResult, domain: str) -> tuple[pl.Series, Pretrained]:
    """The pseudonyms of the users who have training pairs, and what was learned of them alone."""
    made = run.stages.alone[domain]
    known = np.flatnonzero(run.splits[domain].train.known_users())
    learned = Factors(made.factors.users[known], made.factors.items)
    return run.recommender.users.ids(known), replace(made, factors=learned)


def _given(
    config: RunConfig,
    domain: str,
    shared: str,
    published: Sequence[str],
    home: Home,
    watch: Watch,
) -> _Given:
    """The alignment, and the very publications that it was made of."""
    parties = agreed(config)
    own = places.inside(shared, file_for(domain))
    place = own if places.exists(own) else places.inside(shared, file_for(None))
    alignment = read_alignment(place, parties.coordinator, dim=config.dim)
    if alignment.about.audience not in (None, domain):
        raise ArtifactError(f"{place}: is for {alignment.about.audience}, not for {domain}")
    home.check(place, "alignments", alignment.sequence, alignment.digest)
    found = by_domain(places.find(published), parties.domains, dim=config.dim)
    latest: dict[str, Publication] = {}
    for source in alignment.about.sources:
        if source.sequence is None:
            continue
        if source.domain not in found:
            raise ArtifactError(
                f"{place}: was made of publication {source.sequence} of {source.domain}, which is "
                "not among those given (--published)"
            )
        there, one = found.pop(source.domain)
        home.check(there, f"publications of {source.domain}", one.sequence, one.digest)
        if one.digest != source.digest:
            raise ArtifactError(
                f"{there}: is publication {one.sequence} of {source.domain}, but {place} was made "
                f"of its publication {source.sequence}; align again, or give that one"
            )
        latest[source.domain] = one
    if domain not in latest:
        raise ConfigError(
            f"{place}: {domain} took no part in it; publish (musketeers party pretrain), and let "
            "the coordinator align again"
        )
    taken = {f"publications of {name}": one for name, one in latest.items()}
    home.take(
        [
            (what, one.sequence, one.digest)
            for what, one in {"alignments": alignment, **taken}.items()
        ]
    )
    for name in found:
        watch.say(f"note: {name} has published, but was not aligned; it is left out")
    return _Given(alignment, latest)


def _aligned(given: _Given, users: Vocabulary) -> Aligned:
    """The encoder, and its embedding of every user of the vocabulary.

    Of users who were not handed over it is computed from what is published.
    """
    handed, encoder = given.alignment, given.alignment.encoder()
    table = np.zeros((len(users), handed.users.shape[1]), np.float32)
    rows = users.rows(handed.keys)
    table[rows[rows >= 0]] = handed.users[rows >= 0]
    missing = np.setdiff1d(np.arange(len(users)), rows)
    if len(missing):
        table[missing] = _encoded(given, users, encoder)[missing]
    return replace(encoder, users=table)


def _encoded(given: _Given, users: Vocabulary, encoder: Aligned) -> Float32[np.ndarray, "user dim"]:
    everybody, published = told(given.latest, given.alignment.domains)
    rows = users.rows(everybody.values)
    kept = published.of(np.flatnonzero(rows >= 0))
    return encoder.of(kept.placed(rows[rows >= 0], n_users=len(users)))
