"""In a party's own environment: stage 1, and the one file that leaves."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from musketeers.config import RunConfig
from musketeers.data.pseudonyms import Secret
from musketeers.errors import ConfigError, DataError, RunError
from musketeers.parallel import libraries_on_one_thread
from musketeers.parties import fold_in, places
from musketeers.parties.agreement import agreed, settings_of, signer_of
from musketeers.parties.defences import Defences
from musketeers.parties.fold_in import Items, donor_rows, donors_items
from musketeers.parties.home import Home
from musketeers.parties.publication import Publication, by_domain
from musketeers.parties.release import release
from musketeers.pretrain.given import directions
from musketeers.protocols import untold
from musketeers.results import RunResult
from musketeers.runs import Watch, fit_run
from musketeers.seeding import Seed


def pretrain(
    config: RunConfig,
    base: Path,
    domain: str,
    data: str | Path | None,
    secret: str | Path,
    out: str,
    home: Home,
    *,
    defences: Defences | None = None,
    donors: Path | None = None,
    among: Sequence[str] = (),
    resume: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> Publication:
    """Learn alone from the domain's `data`, and publish its users' vectors at `out`.

    `config` are the settings that all parties agreed on; relative paths in them count from `base`.
    What is learned stays in the folder `home`, which has the party's key.  With `resume` an attempt
    that was interrupted goes on; one that was about to publish publishes what it was about to.

    With the `defences`' mode ``fold-in`` the vectors are not those of stage 1: items are learned
    from the users whose ids are in the file `donors`, and each user is solved for beside them
    (`fold_in`).  Without `donors` the items are those of the last publication, so that the
    coordinator may keep its encoder.

    With `among`, places of what other parties published, only users whom one of them knows leave.

    Raises what `fit_run` raises, `ConfigError` for settings that need pooled data and defences that
    do not go together, and `ArtifactError` for a place that cannot be written.
    """
    how = defences or Defences()
    how.check()
    folds = how.mode == "fold-in"
    own, key = settings_of(config, domain, data, secret), Secret.read(Path(secret))
    signer_of(config, home, domain)  # before anything is trained
    sequence = len(home.releases()) + 1
    if resume and sequence > 1 and not home.run(sequence).exists():
        sequence -= 1
    run = home.run(sequence)
    if run.exists() and not resume:
        raise RunError(
            f"{run}: an attempt was interrupted; go on with it (--resume), or remove the folder"
        )
    if folds:
        fold_in.check(own)
        own = fold_in.private_seed(own, run)
    elif donors:
        raise ConfigError(f"{donors}: donors are for vectors that are folded in (--mode fold-in)")
    found = fit_run(
        own, base, run, only="smf", resume=resume, threads=threads, watch=watch, command=command
    )
    users = found.recommender.users
    leave = found.splits[domain].train.known_users()
    if among:
        others = by_domain(places.find(among), agreed(config).domains, dim=config.dim)
        elsewhere = [users.rows(one.keys) for name, (_, one) in others.items() if name != domain]
        leave &= np.isin(np.arange(len(users)), np.concatenate([[-1], *elsewhere]))
    known = np.flatnonzero(leave)
    if not len(known):
        raise DataError(f"{domain}: no user of it is known to another party, so nobody would leave")
    made = found.stages.alone[domain].factors
    vectors, items = made.users, made.items
    # a digest of items would tell whoever can train them what everybody's data are
    space = secrets.token_hex(8)
    if folds:
        kept = _items(found, domain, donors, key, home, sequence)
        vectors, items, space = _folded_in(found, domain, kept), kept.vectors, kept.mark
    return release(
        home, sequence, out, domain, users.ids(known), vectors[known], how,
        axes=directions(items), space=space, secret=key,
        told=watch.rows if watch else untold,
    )  # fmt: skip


def _items(
    found: RunResult, domain: str, donors: Path | None, key: Secret, home: Home, sequence: int
) -> Items:
    """Those of the donors, or of the last publication; kept in `home`."""
    if home.items(sequence).exists():
        return Items.load(home.items(sequence))
    if donors is None:
        kept = Items.load(home.items(sequence - 1))
    else:
        rows = donor_rows(donors, found.config, domain, found.recommender.users, key)
        with libraries_on_one_thread():
            kept = donors_items(
                found.splits[domain], found.recommender.domains[domain].items, rows,
                Seed(found.config.seed).child("donors"),
                dim=found.config.dim, n_threads=found.manifest["threads"],
            )  # fmt: skip
    kept.save(home.items(sequence))
    return kept


def _folded_in(found: RunResult, domain: str, kept: Items) -> Float32[np.ndarray, "user dim"]:
    catalogue = found.recommender.domains[domain].items
    with libraries_on_one_thread():
        return kept.users(found.splits[domain], catalogue, n_threads=found.manifest["threads"])
