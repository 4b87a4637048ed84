"""What the domains share, and what looks wrong about them, before anything is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from musketeers.data.domains import Domain
from musketeers.data.readers import Reading

_SMALL_OVERLAP = 0.01
_SWAPPED_SHARE, _SWAPPED_RATIO = 0.2, 4.0
"""Ids in the wrong role: at least this share of them, and so many times those in the right one."""
_MISSING_NAMES = ("nan", "none", "na", "null")


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


@dataclass(frozen=True, slots=True, eq=False)
class _Ids:
    """One domain's ids as text, the form in which all kinds can be compared."""

    users: pl.Series
    items: pl.Series


def overlap_report(reading: Reading) -> OverlapReport:
    """Sizes, shared users and warnings; each warning is one line with a value and a remedy."""
    domains = reading.domains.domains
    known = np.stack([domain.pairs.known_users() for domain in domains.values()]).astype(np.int64)
    common = known @ known.T
    times_known = np.bincount(known.sum(axis=0), minlength=len(domains) + 1)[1:]
    return OverlapReport(
        domains={name: _facts(name, reading) for name in domains},
        known_in=tuple(times_known.tolist()),
        common=tuple(tuple(row) for row in common.tolist()),
        warnings=tuple(_warnings(reading, common)),
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


def _warnings(reading: Reading, common: np.ndarray) -> Iterator[str]:
    domains = reading.domains.domains
    ids = {name: _texts(domain, reading) for name, domain in domains.items()}
    names = list(domains)
    if len(names) == 1:
        yield (
            f"{names[0]} is the only domain: it learns alone; "
            "add a domain with the same users for transfer"
        )
    yield from _mixed_types(reading)
    yield from _swapped(ids)
    yield from _little_overlap(names, common)
    yield from _shared_items(ids)
    for name, domain in domains.items():
        yield from _single_interactions(name, domain)
    # over all domains at once: "Ann" here and "ann" there is an overlap lost
    yield from _odd_texts("user ids", _text(reading.domains.users.values))
    for name, own in ids.items():
        yield from _odd_texts(f"item ids of {name}", own.items)


def _texts(domain: Domain, reading: Reading) -> _Ids:
    users = reading.domains.users.values.filter(pl.Series(domain.pairs.known_users()))
    return _Ids(_text(users), _text(domain.items.values))


def _text(ids: pl.Series) -> pl.Series:
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


def _swapped(ids: Mapping[str, _Ids]) -> Iterator[str]:
    """A domain whose items are others' users or whose users are others' items."""
    if len(ids) == 1:
        return
    for name, own in ids.items():
        others = [other for n, other in ids.items() if n != name]
        users = pl.concat([other.users for other in others])
        items = pl.concat([other.items for other in others])
        right = _share(own.users, users)
        wrong, what = max(
            (_share(own.items, users), "item ids are user ids"),
            (_share(own.users, items), "user ids are item ids"),
        )
        if wrong >= _SWAPPED_SHARE and wrong > _SWAPPED_RATIO * right:
            yield (
                f"{wrong:.0%} of {name}'s {what} of other domains, but only {right:.0%} of its "
                "user ids are theirs: check that user and item are not swapped, here or there"
            )


def _share(ids: pl.Series, others: pl.Series) -> float:
    return int(ids.is_in(others.implode()).sum()) / len(ids)


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


def _shared_items(ids: Mapping[str, _Ids]) -> Iterator[str]:
    pairs = [
        f"{a} and {b} {shared}"
        for a, b in combinations(ids, 2)
        if (shared := int(ids[a].items.is_in(ids[b].items.implode()).sum()))
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
