"""How large a planted workload is: presets, scales, and what cannot be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice

from musketeers.config import check_domain_name
from musketeers.errors import ConfigError

FEW = 5
"""Pairs that every user has in a domain, if its mean is twice that; and of each item, at least, in
a catalogue that is scaled down."""

_LEAST_ITEMS = 100
_LEAST_USERS = 10


@dataclass(frozen=True, slots=True)
class Size:
    """One domain's."""

    items: int
    pairs: int
    """Distinct (user, item)."""

    def most(self) -> int:
        """Items that one user can have: a quarter of the catalogue."""
        return self.items // 4


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be planted."""

    users: int
    domains: Mapping[str, Size]
    known: float
    """The probability that a domain knows a user; everybody is known in one at least."""
    common: float
    """The share of a user's taste that is the same in all domains."""


_PRESETS = {
    # Li et al., WSDM 2023, table 1: everybody known everywhere
    "paper": Workload(
        1_166_552,
        {
            "app_ins": Size(100_000, 101_981_793),
            "app_use": Size(100_000, 18_156_535),
            "articles": Size(50_000, 102_832_656),
            "video_s": Size(50_000, 74_911_020),
            "video_l": Size(50_000, 11_412_988),
        },
        known=1.0,
        common=0.7,
    ),
    # departments of a shop: ten pairs for each user, ten for each item, few users shared
    "sparse": Workload(
        1_000_000,
        {
            "books": Size(400_000, 4_000_000),
            "electronics": Size(400_000, 4_000_000),
            "home": Size(400_000, 4_000_000),
            "toys": Size(400_000, 4_000_000),
        },
        known=0.35,
        common=0.7,
    ),
}
PRESETS = tuple(_PRESETS)


def workload(
    preset: str = "paper",
    scale: float = 1.0,
    *,
    domains: int | None = None,
    users: int | None = None,
    items: int | None = None,
    pairs: int | None = None,
    known: float | None = None,
    common: float | None = None,
) -> Workload:
    """A preset, scaled, with what is given in place of its own; numbers given are not scaled.

    Users and pairs are `scale` times those of the preset, so that users keep their mean number of
    pairs; items are sqrt(scale) times, but no more than a fifth of the pairs.  `domains` takes
    so many of the preset's, in turn; `items` and `pairs` hold for each domain.

    Raises `ConfigError` for values out of range and for sizes that cannot be together.
    """
    if preset not in _PRESETS:
        raise ConfigError(f"preset is {preset!r}; choose one of {', '.join(_PRESETS)}")
    base = _PRESETS[preset]
    if not 0 < scale <= 1:
        raise ConfigError(f"scale is {scale}; it is above 0 and at most 1")
    sizes = {
        name: _replaced(_scaled(size, scale), items, pairs)
        for name, size in _taken(base.domains, len(base.domains) if domains is None else domains)
    }
    found = Workload(
        users=max(1, round(base.users * scale)) if users is None else users,
        domains=sizes,
        known=_share("known", base.known if known is None else known),
        common=_share("common", base.common if common is None else common),
    )
    _check(found)
    return found


def check_known(name: str, size: Size, n_known: int) -> None:
    """Raise `ConfigError` unless so many users can have the pairs of domain `name`."""
    most = n_known * size.most()
    if not n_known <= size.pairs <= most:
        raise ConfigError(
            f"{name}: {size.pairs:,} pairs for {n_known:,} users and {size.items:,} items; a user "
            f"has from 1 to {size.most():,}, a quarter of the items, so give {n_known:,} to "
            f"{most:,} pairs, or other users or items"
        )


def _check(found: Workload) -> None:
    if found.users < _LEAST_USERS:
        raise ConfigError(f"users is {found.users}; give {_LEAST_USERS} or more, or a larger scale")
    for name, size in found.domains.items():
        if size.items < _LEAST_ITEMS:
            raise ConfigError(
                f"{name}: items is {size.items}; give {_LEAST_ITEMS} or more, or a larger scale"
            )
        if size.pairs < 2 * size.items:
            raise ConfigError(
                f"{name}: {size.pairs:,} pairs for {size.items:,} items; give two for each item or "
                "more, so that all can occur"
            )
        if size.pairs >= 2**32 or max(size.items, found.users) >= 2**31:
            raise ConfigError(f"{name}: {size.pairs:,} pairs are too many; give fewer than 2^32")


def _taken(domains: Mapping[str, Size], n: int) -> list[tuple[str, Size]]:
    """The first `n` of the domains, and again from the first, with a number, if there are fewer."""
    if not 1 <= n <= 1000:
        raise ConfigError(f"domains is {n}; give 1 to 1000")
    rounds = (
        (name if turn == 1 else f"{name}-{turn}", size)
        for turn in count(1)
        for name, size in domains.items()
    )
    found = list(islice(rounds, n))
    for name, _ in found:
        check_domain_name(name)
    return found


def _scaled(size: Size, scale: float) -> Size:
    pairs = round(size.pairs * scale)
    return Size(min(round(size.items * math.sqrt(scale)), pairs // FEW), pairs)


def _replaced(size: Size, items: int | None, pairs: int | None) -> Size:
    return Size(size.items if items is None else items, size.pairs if pairs is None else pairs)


def _share(what: str, share: float) -> float:
    if not 0 <= share <= 1:
        raise ConfigError(f"{what} is {share}; it is a share, between 0 and 1")
    return float(share)
