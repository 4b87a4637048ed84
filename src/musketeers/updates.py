"""A finished run with one domain more, or with new data of one: only what must be is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64

from musketeers import config as configuration
from musketeers.config import Column, DataConfig, RunConfig
from musketeers.costs import metered
from musketeers.data import readers
from musketeers.data.columns import kind
from musketeers.data.domains import Domain, Domains, Split
from musketeers.data.drift import Reference, drift
from musketeers.data.overlap import overlap_report
from musketeers.data.readers import ROLES, Reading, Role, Source
from musketeers.data.splits import split_again
from musketeers.errors import ConfigError, DataError, RunError, UnknownNameError
from musketeers.evaluation.evaluate import PerUser, evaluate
from musketeers.pipeline import Models
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.results import RunResult
from musketeers.run_files import open_run, read_back
from musketeers.run_folder import check_place
from musketeers.runs import Data, Quiet, Watch, fit_data, models_to_measure, thread_count
from musketeers.seeding import Seed

_AS_IN_THE_RUN: Mapping[Role, str | None] = MappingProxyType({})


def add_domain(
    run: Path | str,
    domain: str,
    data: Path | str,
    out: Path | str,
    *,
    columns: Mapping[Role, str | None] = _AS_IN_THE_RUN,
    resume: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """The finished run `run` with one domain more, as a run of its own in the folder `out`.

    `data` is read as the run's domains were: a file, a folder or a glob, with the run's settings.
    `columns` names those of it (``user``, ``item``, ``timestamp``) that differ from the run's, and
    all if the run names them for each domain.  All else comes from the folder `run`, which is not
    changed.  Trained are stage 1 of the domain, and what all domains are told of each other:
    stages 2 and 3 and the choice.  The others' splits and stage 1 stay bitwise as they are, user
    by user; users whom they do not know get the mean user's vector, as ever.

    `resume`, `threads` and what is raised for `out` are as in `fit_run`.  Raises `RunError` for a
    `run` that is unfinished or was made with ``only``, `ConfigError` for a domain that it has, and
    `DataError` for data that cannot be read, ids of another type, users none of whom the run knows,
    and ``split.method = "time"``.
    """
    found = _updatable(run := Path(run))
    if domain in found.splits:
        raise ConfigError(
            f"domain {domain!r} is in {run} already; refresh it (musketeers refresh), or choose "
            "another name"
        )
    config = _with_source(found.config, domain, data, columns)
    _update(
        run, found, config, domain, Path(out),
        resume=resume, threads=threads, watch=watch or Quiet(), command=command,
    )  # fmt: skip
    del found
    return read_back(out)


def refresh(
    run: Path | str,
    domain: str,
    data: Path | str,
    out: Path | str,
    *,
    resume: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """The finished run `run` with other data of one of its domains, as a run of its own in `out`.

    `data` are all the domain's data as they are now; what is not in them is forgotten.  Trained is
    the same, and errors are the same, as in `add_domain`; but `UnknownNameError` for a domain that
    the run does not have.  Pairs that are still there keep their purpose (`split_again`).  The same
    data, in a run with the users that it had when the domain's stage 1 was trained, give the same
    results bitwise.

    `watch` hears how far the data have moved since the last full fit (`data.drift`); beyond its
    thresholds a warning, which the report repeats, advises another.
    """
    found = _updatable(run := Path(run))
    if domain not in found.splits:
        raise UnknownNameError(
            f"domain {domain!r} is not among {', '.join(map(repr, found.splits))} in {run}; name "
            "one of those, or add it (musketeers add-domain)"
        )
    config = _with_source(found.config, domain, data)
    _update(
        run, found, config, domain, Path(out),
        resume=resume, threads=threads, watch=watch or Quiet(), command=command,
    )  # fmt: skip
    del found
    return read_back(out)


def _updatable(run: Path) -> RunResult:
    found = open_run(run)
    if found.stages.shared:
        raise RunError(
            f"{run}: is one party's, to whom other data came as publications; pretrain on the new "
            "data, publish and align anew (musketeers party)"
        )
    models = found.manifest["data"]["models"]
    if models != ",".join(models_to_measure(n_domains=len(found.splits))):
        raise RunError(
            f"{run}: was fitted with --only {models}, without all stages to go on from; update a "
            "run that was fitted without --only"
        )
    return found


def _with_source(
    config: RunConfig,
    domain: str,
    data: Path | str,
    columns: Mapping[Role, str | None] = _AS_IN_THE_RUN,
) -> RunConfig:
    """The run's settings, which also name these data and their columns."""
    settings: dict[str, object] = {"data.domains": {**config.data.domains, domain: str(data)}}
    if domain in config.pretrain.given:
        raise ConfigError(
            f"domain {domain!r} brings its own vectors (pretrain.given), which new data do not "
            "change; fit anew with vectors of the new data"
        )
    if isinstance(methods := config.pretrain.method, dict):
        settings["pretrain.method"] = {domain: "bpr", **methods}
    for role in ROLES:
        names: Column | None = getattr(config.data, role)
        if column := columns.get(role):
            others = {name: config.data.column(role, name) for name in config.data.domains}
            settings[f"data.{role}"] = {**others, domain: column}
        elif isinstance(names, dict) and domain not in names:
            raise ConfigError(
                f"data.{role} names a column for each domain, none for {domain!r}; name it, too "
                f"(--{role})"
            )
    return configuration.changed(config, settings)


def _update(
    run: Path,
    found: RunResult,
    config: RunConfig,
    domain: str,
    out: Path,
    *,
    resume: bool,
    threads: int | None,
    watch: Watch,
    command: Sequence[str],
) -> None:
    check_place(out, resume=resume)
    n_threads = thread_count(threads, out if resume else None)
    with metered() as cost:
        own = readers.read(_alone(config.data, domain), base=Path(), told=watch.rows)
    _check_ids(found, domain, own, config.data.domains[domain])
    was = _reading(found)
    reading = readers.joined({**dict.fromkeys(found.splits, was), domain: own})
    rows = reading.domains.users.rows(was.domains.users.values)
    overlap = overlap_report(reading)
    references = dict(found.references)
    if domain in found.splits:
        reference = references.setdefault(domain, _reference(found, domain))
        overlap = replace(
            overlap, warnings=(*overlap.warnings, *_drifted(domain, own, reference, watch))
        )
    for warning in overlap.warnings:
        watch.say(f"warning: {warning}")
    splits = _splits(found, reading.domains, domain, rows, config)
    alone = {
        name: _carried(found.stages.alone[name], found.splits[name], splits[name], rows)
        for name in splits
        if name != domain
    }
    now = Data(reading.domains, overlap, splits, done=Models(alone), costs={"read": cost})
    fit_data(
        config, now, out,
        measured=models_to_measure(n_domains=len(splits)), inputs={"updates": _identity(run)},
        resume=resume, n_threads=n_threads, watch=watch, command=command,
        add=partial(_compared, found, domain, rows, references, n_threads),
    )  # fmt: skip


def _alone(config: DataConfig, domain: str) -> DataConfig:
    return config.model_copy(update={"domains": {domain: config.domains[domain]}})


def _check_ids(found: RunResult, domain: str, own: Reading, source: str) -> None:
    """Whether ids mean the same as in the run, as far as can be told."""
    users, known = own.domains.users, found.recommender.users
    asked, fitted = kind(users.values), kind(known.values)
    # as in a fit, a run whose user ids are text compares all as text
    if asked != fitted != "text":
        raise DataError(f"{source}: user ids are {asked}, those of the run {fitted}; convert them")
    if domain in found.splits:
        items, before = own.domains.domains[domain].items, found.recommender.domains[domain].items
        if (asked := kind(items.values)) != (fitted := kind(before.values)):
            raise DataError(
                f"{source}: item ids are {asked}, those of {domain} in the run {fitted}; convert "
                "them"
            )
    elsewhere = [
        model.seen.known_users()
        for name, model in found.recommender.domains.items()
        if name != domain
    ]
    rows = known.rows(users.values)
    if elsewhere and not np.any(elsewhere, axis=0)[rows[rows >= 0]].any():
        raise DataError(
            f"{source}: none of its {len(users):,} users is known in another domain of the run, so "
            "nothing can be transferred; check that user ids mean the same everywhere"
        )


def _reading(found: RunResult) -> Reading:
    """The run's domains as they were read, but for the times."""
    model = found.recommender
    domains = {name: Domain(part.items, part.seen) for name, part in model.domains.items()}
    sources = {
        name: Source(
            facts.rows_read, facts.repeats, facts.dropped,
            kind(model.users.values), kind(model.domains[name].items.values),
        )
        for name, facts in found.overlap.domains.items()
    }  # fmt: skip
    return Reading(Domains(model.users, domains), sources)


def _reference(found: RunResult, domain: str) -> Reference:
    model, users = found.recommender.domains[domain], found.recommender.users
    return Reference(model.items, model.seen.item_counts(), users, model.known)


def _drifted(domain: str, own: Reading, reference: Reference, watch: Watch) -> list[str]:
    """The warning that a full fit is due, if it is; else `watch` hears that it is not."""
    now = own.domains.domains[domain]
    found = drift(reference, now.items, now.pairs.item_counts(), own.domains.users.values)
    since = f"{domain} since the last full fit"
    if alarms := found.alarms():
        return [f"{since}: {'; '.join(alarms)}; fit anew with the current data of all domains"]
    watch.say(f"{since}: {found.summary()}")
    return []


def _splits(
    found: RunResult,
    domains: Domains,
    updated: str,
    rows: Int64[np.ndarray, " user_before"],
    config: RunConfig,
) -> dict[str, Split]:
    """Those of the run, where a user of the run has the row that `rows` says, and the new one."""
    n_users = len(domains.users)
    splits: dict[str, Split] = {}
    for name, split in found.splits.items():
        items = domains.domains[name].items
        places = items.rows(found.recommender.domains[name].items.values)
        splits[name] = split.moved(rows, places, n_users=n_users, n_items=len(items))
    others = [split for name, split in splits.items() if name != updated]
    eligible, new_elsewhere = np.zeros((2, n_users), np.bool_)
    for split in others:
        eligible |= split.train.known_users()
        if split.cold:
            new_elsewhere |= split.cold.test.known_users()
    splits[updated] = split_again(
        updated, domains.domains[updated], splits.get(updated), config.split, Seed(config.seed),
        eligible=eligible & ~new_elsewhere,
    )  # fmt: skip
    return splits


def _carried(
    made: Pretrained, before: Split, now: Split, rows: Int64[np.ndarray, " user_before"]
) -> Pretrained:
    """A domain's stage 1, its users at their new rows."""
    known = before.train.known_users()
    learned = Factors(made.factors.users[known], made.factors.items)
    return replace(made, factors=learned).placed(rows[known], n_users=now.train.n_users)


def _identity(run: Path) -> str:
    """Of one run alone, whatever its settings: its manifest knows when it was made."""
    return sha256((run / "manifest.json").read_bytes()).hexdigest()


def _compared(
    found: RunResult,
    updated: str,
    rows: Int64[np.ndarray, " user_before"],
    references: Mapping[str, Reference],
    n_threads: int,
    result: RunResult,
) -> RunResult:
    """The result, with what each domain was served before and is served now side by side."""
    before: dict[str, PerUser] = {}
    after: dict[str, PerUser] = {}
    for name, model in found.recommender.about["model"].items():
        if name == updated:
            old, new = _on_what_both_hold_out(found, result, name, rows, n_threads)
        else:
            old = found.metrics[model][name]
            new = result.metrics[result.recommender.about["model"][name]][name]
        if len(new.users):
            before[name] = PerUser(rows[old.users], old.values)
            after[name] = new
    update = {"before": before, "after": after} if after else {}
    return replace(result, update=update, references=references)


def _on_what_both_hold_out(
    found: RunResult,
    result: RunResult,
    domain: str,
    rows: Int64[np.ndarray, " user_before"],
    n_threads: int,
) -> tuple[PerUser, PerUser]:
    """What the domain was served and is served, on the test pairs of both; rows as in each.

    A user with more held-out pairs than before would seem better served by some metrics and worse
    by others.  What either run knows of a user beside those pairs is skipped in both lists.
    """
    model, then = result.recommender, found.recommender
    was, now = then.domains[domain], model.domains[domain]
    forth = rows, now.items.rows(was.items.values)
    back = then.users.rows(model.users.values), was.items.rows(now.items.values)
    here = {"n_users": len(model.users), "n_items": len(now.items)}
    there = {"n_users": len(then.users), "n_items": len(was.items)}
    held = found.splits[domain].test.moved(*forth, **here)
    test = result.splits[domain].test
    test = test.only(test.held_by(held))
    known = now.seen.union(was.seen.moved(*forth, **here))
    known = known.only(~known.held_by(test))
    old = evaluate(
        was.scorer, test.moved(*back, **there), known.moved(*back, **there), n_threads=n_threads
    )
    return old, evaluate(now.scorer, test, known, n_threads=n_threads)
