"""Data with a known answer, for tests, demonstrations and benchmarks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64

from musketeers.config import SplitConfig
from musketeers.data.domains import Domain, Domains, Split
from musketeers.data.interactions import Interactions
from musketeers.data.splits import split
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import DataError
from musketeers.seeding import Seed

_CELLS = 1 << 22
"""Scores held at a time; part of the result, as it sets the order of random draws."""
_FIRST_SECOND, _SECONDS = 1_700_000_000, 365 * 24 * 3600


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """Domains whose taste is known by construction, and their random split."""

    domains: Domains
    splits: Mapping[str, Split]


def planted(
    names: tuple[str, ...],
    seed: Seed,
    *,
    n_users: int = 400,
    n_items: int = 80,
    dim: int = 4,
    common: float = 0.8,
    pairs_per_user: int = 12,
    known: float = 1.0,
    popularity: float = 0.0,
    activity: float = 0.0,
) -> Planted:
    """Users whose taste is `common` parts shared and the rest private to each domain.

    At ``common=0`` no method can gain from transfer; at 1 all domains tell the same story.
    A user's items are drawn without repeats, with probability proportional to
    exp(taste . item) / rank**popularity, so that ``popularity=1`` is Zipf's law.  The number
    of pairs is log-normal with mean about `pairs_per_user` and deviation `activity` of the
    logarithm, between 1 and `n_items`.  `known` is the probability that a user is known in a
    domain; everybody is known in at least one.  Times are random seconds within a year.
    Raises `DataError` if a share is outside its range.
    """
    for what, share in (("common", common), ("known", known)):
        if not 0 <= share <= 1:
            raise DataError(f"{what} is {share}; it is a share, between 0 and 1")
    shared = seed.child("shared").numpy().standard_normal((n_users, dim))
    present = known_where(len(names), seed.child("known").numpy(), n_users=n_users, known=known)
    found: dict[str, Domain] = {}
    for name, here in zip(names, present, strict=True):
        rng = seed.child("domain", name).numpy()
        private = rng.standard_normal((n_users, dim))
        taste = np.sqrt(common) * shared + np.sqrt(1 - common) * private
        items = rng.standard_normal((n_items, dim))
        fame = -popularity * np.log(1 + rng.permutation(n_items))
        volume = np.exp(activity * rng.standard_normal(n_users) - activity**2 / 2)
        counts = np.rint(pairs_per_user * volume).clip(1, n_items).astype(np.int64) * here
        pairs = _drawn(taste, items, fame, counts, rng)
        times = _FIRST_SECOND + rng.integers(_SECONDS, size=len(pairs))
        found[name] = Domain(_numbered(f"{name}-", n_items), pairs, times)
    domains = Domains(_numbered("user-", n_users), found)
    return Planted(domains, split(domains, SplitConfig(), seed))


def frames(domains: Domains) -> dict[str, pl.DataFrame]:
    """Each domain as a table of `user_id`, `item_id` and, if it has times, `timestamp`."""
    tables: dict[str, pl.DataFrame] = {}
    for name, domain in domains.domains.items():
        columns = {
            "user_id": domains.users.ids(domain.pairs.users()),
            "item_id": domain.items.ids(domain.pairs.items),
        }
        if domain.times is not None:
            columns["timestamp"] = pl.Series(domain.times)
        tables[name] = pl.DataFrame(columns)
    return tables


def known_where(
    n_domains: int, rng: np.random.Generator, *, n_users: int, known: float
) -> Bool[np.ndarray, "domain user"]:
    """Which domains know each user: with probability `known`, and one for whom none would."""
    present = rng.random((n_domains, n_users)) < known
    nowhere = np.flatnonzero(~present.any(axis=0))
    present[rng.integers(n_domains, size=len(nowhere)), nowhere] = True
    return present


def _drawn(
    taste: Float64[np.ndarray, "user dim"],
    items: Float64[np.ndarray, "item dim"],
    fame: Float64[np.ndarray, " item"],
    counts: Int64[np.ndarray, " user"],
    rng: np.random.Generator,
) -> Interactions:
    """`counts` items of each user; the largest scores plus Gumbel noise sample the softmax."""
    chosen: list[Int64[np.ndarray, " pair"]] = []
    step = max(1, _CELLS // len(items))
    for start in range(0, len(taste), step):
        scores = taste[start : start + step] @ items.T + fame
        best = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)
        wanted = counts[start : start + step, np.newaxis]
        chosen.append(best[np.arange(len(items)) < wanted])
    return Interactions.from_pairs(
        np.repeat(np.arange(len(taste)), counts),
        np.concatenate(chosen),
        n_users=len(taste),
        n_items=len(items),
    )


def _numbered(prefix: str, n: int) -> Vocabulary:
    """Text ids that sort in the order of their numbers."""
    width = len(str(n - 1))
    return Vocabulary.of(pl.Series([f"{prefix}{i:0{width}}" for i in range(n)]))
