"""What the domains share, and what looks wrong about them, before anything is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from musketeers.data.domains import Domain
from musketeers.data.readers import Reading

_SMALL_OVERLAP = 0.01
_SWAPPED_SHARE, _SWAPPED_RATIO = 0.2, 4.0
"""Ids in the wrong role: at least this share of them, and so many times those in the right one."""
_MISSING_NAMES = ("nan", "none", "na", "null")
_NOWHERE: Mapping[str, Bool[np.ndarray, " user"]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """One domain in numbers, after the k-core unless stated."""

    users: int
    items: int
    interactions: int
    density: float
    """Share of all (user, item) pairs that were observed."""
    mean_per_user: float
    rows_read: int
    """Before anything was dropped."""
    repeats: int
    dropped: int
    """Distinct pairs lost to the k-core."""


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Domains, the users they share, and warnings."""

    domains: Mapping[str, DomainFacts]
    known_in: tuple[int, ...]
    """Users known in exactly 1, 2, ... domains."""
    common: tuple[tuple[int, ...], ...]
    """Users known in both domains, by row and column in the order of `domains`."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "domains": {name: asdict(facts) for name, facts in self.domains.items()},
            "known_in": list(self.known_in),
            "common": [list(row) for row in self.common],
            "warnings": list(self.warnings),
        }


def overlap_report(
    reading: Reading,
    elsewhere: Mapping[str, Bool[np.ndarray, " user"]] = _NOWHERE,
    *,
    apart: bool = False,
) -> OverlapReport:
    """Sizes, shared users and warnings; each warning is one line with a value and a remedy.

    `elsewhere` says whom domains know of which nothing else is told, by name; `apart`, that there
    are domains of which not even that is told yet.
    """
    domains = reading.domains.domains
    known = np.stack([domain.pairs.known_users() for domain in domains.values()])
    everywhere = np.stack([*known, *elsewhere.values()])
    common = np.array([[np.count_nonzero(a & b) for b in everywhere] for a in everywhere])
    times_known = np.bincount(everywhere.sum(axis=0), minlength=len(everywhere) + 1)[1:]
    names, here = [*domains, *elsewhere], len(domains)
    return OverlapReport(
        domains={name: _facts(name, reading) for name in domains},
        known_in=tuple(times_known.tolist()),
        common=tuple(tuple(row) for row in common[:here, :here].tolist()),
        warnings=tuple(_warnings(reading, known, names, common, apart=apart)),
    )


def _facts(name: str, reading: Reading) -> DomainFacts:
    domain, source = reading.domains.domains[name], reading.sources[name]
    users, items = int(domain.pairs.known_users().sum()), len(domain.items)
    return DomainFacts(
        users=users,
        items=items,
        interactions=len(domain.pairs),
        density=len(domain.pairs) / (users * items),
        mean_per_user=len(domain.pairs) / users,
        rows_read=source.rows,
        repeats=source.repeats,
        dropped=source.dropped,
    )


def _warnings(
    reading: Reading,
    known: Bool[np.ndarray, "domain user"],
    names: list[str],
    common: Int64[np.ndarray, "n n"],
    *,
    apart: bool,
) -> Iterator[str]:
    domains = reading.domains.domains
    items = {name: _text(domain.items.values) for name, domain in domains.items()}
    if len(names) == 1 and not apart:
        yield (
            f"{names[0]} is the only domain: it learns alone; "
            "add a domain with the same users for transfer"
        )
    yield from _mixed_types(reading)
    yield from _swapped(_text(reading.domains.users.values), items, known)
    yield from _little_overlap(names, common)
    yield from _shared_items(items)
    for name, domain in domains.items():
        yield from _single_interactions(name, domain)
    # over all domains at once: "Ann" here and "ann" there is an overlap lost
    yield from _odd_texts("user ids", reading.domains.users.values)
    for name, domain in domains.items():
        yield from _odd_texts(f"item ids of {name}", domain.items.values)


def _text(ids: pl.Series) -> pl.Series:
    """The form in which ids of all kinds can be compared."""
    # bytes need not be UTF-8; their hexadecimal form can be compared all the same
    return ids.bin.encode("hex") if ids.dtype == pl.Binary else ids.cast(pl.String)


def _mixed_types(reading: Reading) -> Iterator[str]:
    types = {name: source.user_type for name, source in reading.sources.items()}
    if len(set(types.values())) > 1:
        found = ", ".join(f"{kind} in {name}" for name, kind in types.items())
        yield (
            f"user ids are {found}: all were compared as text; write one type everywhere if "
            "the overlap is smaller than it should be"
        )


def _swapped(
    users: pl.Series, items: Mapping[str, pl.Series], known: Bool[np.ndarray, "domain user"]
) -> Iterator[str]:
    """A domain whose items are others' users or whose users are others' items."""
    if len(items) == 1:
        return
    as_users = _rows_among(users, items)
    for n, name in enumerate(items):
        others = [other for other in range(len(items)) if other != n]
        known_elsewhere = np.logical_or.reduce(known[others])
        are_items = np.zeros(len(users), np.bool_)
        for other in others:
            are_items[as_users[other][as_users[other] >= 0]] = True
        rows = as_users[n]
        right = known_elsewhere[known[n]].mean()
        wrong, what = max(
            (np.mean((rows >= 0) & known_elsewhere[rows]), "item ids are user ids"),
            (are_items[known[n]].mean(), "user ids are item ids"),
        )
        if wrong >= _SWAPPED_SHARE and wrong > _SWAPPED_RATIO * right:
            yield (
                f"{wrong:.0%} of {name}'s {what} of other domains, but only {right:.0%} of its "
                "user ids are theirs: check that user and item are not swapped, here or there"
            )


def _rows_among(
    users: pl.Series, items: Mapping[str, pl.Series]
) -> list[Int64[np.ndarray, " item"]]:
    """For each domain's items the row of the user of the same id, -1 where there is none."""
    table = pl.DataFrame({"id": users}).with_row_index("row")
    asked = pl.DataFrame({"id": pl.concat(items.values())})
    found = asked.join(table, on="id", how="left", maintain_order="left")["row"]
    rows = found.cast(pl.Int64).fill_null(-1).to_numpy()
    return np.split(rows, np.cumsum([len(ids) for ids in items.values()])[:-1])


def _little_overlap(names: list[str], common: np.ndarray) -> Iterator[str]:
    others = common.sum(axis=1) - common.diagonal()
    alone = {name for name, shared in zip(names, others, strict=True) if not shared}
    for name in names if len(names) > 1 else ():
        if name in alone:
            yield (
                f"{name} shares no user with any other domain: transfer cannot help it; "
                "check that user ids mean the same everywhere"
            )
    for a, b in combinations(range(len(names)), 2):
        smaller = min(common[a, a], common[b, b])
        if not {names[a], names[b]} & alone and common[a, b] < _SMALL_OVERLAP * smaller:
            yield (
                f"{names[a]} and {names[b]} share {common[a, b]} users, under "
                f"{_SMALL_OVERLAP:.0%} of the {smaller} in the smaller: little can be "
                "transferred; check the user ids"
            )


def _shared_items(items: Mapping[str, pl.Series]) -> Iterator[str]:
    pairs = [
        f"{a} and {b} {shared}"
        for a, b in combinations(items, 2)
        if (shared := int(items[a].is_in(items[b].implode()).sum()))
    ]
    if pairs:
        yield (
            f"item ids occur in two domains ({', '.join(pairs)}): they count as different "
            "items; if they are the same products, check that the domains are not one catalogue"
        )


def _single_interactions(name: str, domain: Domain) -> Iterator[str]:
    if single := int((domain.pairs.counts() == 1).sum()):
        yield (
            f"{single} users of {name} have one interaction: nothing of theirs can be held out; "
            "set data.min_user to 3 or more to drop them"
        )


def _odd_texts(what: str, values: pl.Series) -> Iterator[str]:
    if values.dtype != pl.String:
        return
    table = pl.DataFrame({"id": values, "folded": values.str.strip_chars().str.to_lowercase()})
    named = table.filter(pl.col("folded").is_in(_MISSING_NAMES))["id"]
    if len(named):
        yield (
            f"{what} include {', '.join(map(repr, named))}: kept as ids; if they stand for "
            "missing values, remove those rows"
        )
    twins = table.filter(pl.col("folded").is_duplicated()).sort("folded", "id")
    if len(twins):
        extra = len(twins) - twins["folded"].n_unique()
        yield (
            f"{extra} {what} differ from another only by case or blanks, such as "
            f"{' and '.join(map(repr, twins['id'][:2]))}: kept apart; write them alike if they "
            "are the same"
        )
