r"""Domains whose ideal ranking is known: users like genres, and genres have items.

The next item of user u is i with probability

    p(i | u) = sum_g theta[u, g] phi[g, i]

and a user's items are drawn one after the other, repeats drawn again.  So of the items that a user
does not have yet, the next is i with a probability in proportion to p(i | u), whatever came before:
ranking by p is ideal for unseen items too.  p is an inner product, which the library can rank by.

theta = softmax(2 z) with z = sqrt(common) s + sqrt(1 - common) r; s is the user's, r the user's in
this domain, both standard normal, one number for each genre.  phi[g] is the fame of the genre's
items.  Fame is Zipf's law with a flat top (Mandelbrot), 1 / (rank + n_items / 500), ranks at
random.  An item is in one genre, and by a quarter in a second one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from numba import njit

from musketeers.data.interactions import Interactions
from musketeers.data.workload import FEW, Size
from musketeers.parallel import each
from musketeers.seeding import Seed
from musketeers.splitmix import GOLDEN, below, mix, stream

GENRES = 32

_SHARPNESS = 2.0
_FLAT = 1 / 500
"""Ranks, as a share of the catalogue, over which fame falls by half."""
_SECOND = 0.25
_ACTIVITY = 1.0
"""Deviation of the logarithm of a user's activity."""
_ACTIVE_ALIKE = 0.5
"""Correlation of that logarithm between any two domains."""
_USERS_AT_ONCE = 1 << 14
_PAIRS_AT_ONCE = 1 << 20

_loop = njit(nogil=True, cache=True, error_model="numpy")
_part = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """Walker's alias tables of all genres, one behind the other.

    A slot stands for its item in `limits` + 1 of 2^32 cases, else for the item in `others`.
    """

    starts: Int64[np.ndarray, " genre_plus_one"]
    items: Int32[np.ndarray, " slot"]
    others: Int32[np.ndarray, " slot"]
    limits: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class PlantedDomain:
    """One domain before its pairs are drawn: who has how many, and what they like."""

    users: Int64[np.ndarray, " known"]
    """Row numbers of the users that it knows, ascending; a place below is one in this array."""
    indptr: Int64[np.ndarray, " known_plus_one"]
    """Where each user's pairs start, of all pairs in the order of the users."""
    tastes: Float32[np.ndarray, "known genre"]
    """theta: rows sum to 1."""
    items: Float32[np.ndarray, "item genre"]
    """phi, transposed: columns sum to 1."""
    _tables: _Tables
    _first: Interactions
    """Items that users have before any are drawn."""
    _key: int

    @classmethod
    def of(
        cls,
        name: str,
        size: Size,
        users: Int64[np.ndarray, " known"],
        activity: Float64[np.ndarray, " known"],
        *,
        common: float,
        seed: Seed,
        n_threads: int,
    ) -> "PlantedDomain":
        """Plant domain `name` for these users; `activity` is their share of it in all domains.

        A user's taste depends on the seed, the name and the user's row, not on other users.
        """
        own = seed.child("domain", name)
        volume = np.sqrt(_ACTIVE_ALIKE) * activity
        volume += np.sqrt(1 - _ACTIVE_ALIKE) * own.child("activity").numpy().standard_normal(
            len(users)
        )
        indptr = np.zeros(len(users) + 1, np.int64)
        counts = _counts(np.exp(_ACTIVITY * volume), size.pairs, most=size.most())
        np.cumsum(counts, out=indptr[1:])
        tastes = _tastes(
            users, seed.child("taste").integer(), own.child("taste").integer(),
            common=common, n_threads=n_threads,
        )  # fmt: skip
        items = _genres(size.items, own.child("items").numpy())
        nobody = np.empty(0, np.int64)
        first = Interactions.from_pairs(nobody, nobody, n_users=len(users), n_items=size.items)
        key = own.child("draws").integer()
        planted = cls(users, indptr, tastes, items, _tables(items), first, key)
        return planted._complete(own.child("first").integer(), n_threads=n_threads)

    def _complete(self, key: int, *, n_threads: int) -> "PlantedDomain":
        """The domain with each item that nobody would draw given to one user, before all draws.

        With probability in proportion to the user's pairs and to p(item | user), which is how the
        one who has it would be found if it were drawn once.  It takes the place of what the user
        would draw last, which may leave out another item: hence the loop.
        """
        planted = self
        while len(missing := np.flatnonzero(~planted._occurring(n_threads))):
            owners = np.empty(len(missing), np.int64)
            room = np.diff(self.indptr) - planted._first.counts()
            _draw_owners(
                missing, self.items, self.indptr, self.tastes, np.uint64(key), room, owners
            )
            given = Interactions.from_pairs(
                owners, missing, n_users=len(self.users), n_items=len(self.items)
            )
            planted = replace(planted, _first=planted._first.union(given))
        return planted

    def _occurring(self, n_threads: int) -> Bool[np.ndarray, " item"]:
        """Whether anybody draws each item."""
        found = np.zeros(len(self.items), np.bool_)
        blocks = list(self.blocks(_PAIRS_AT_ONCE))

        def mark(number: int) -> None:
            found[self.draw(blocks[number])[1]] = True

        each(mark, len(blocks), n_threads=n_threads)
        return found

    def blocks(self, n_pairs: int) -> Iterator[slice]:
        """Places of users, in order, whose pairs together are about so many."""
        start = 0
        while start < len(self.users):
            stop = int(np.searchsorted(self.indptr, self.indptr[start] + n_pairs))
            stop = min(max(stop, start + 1), len(self.users))
            yield slice(start, stop)
            start = stop

    def draw(self, block: slice) -> tuple[Int64[np.ndarray, " pair"], Int32[np.ndarray, " pair"]]:
        """User and item, as row numbers, of each pair of the block's users; users ascend."""
        indptr = self.indptr[block.start : block.stop + 1]
        items = np.empty(indptr[-1] - indptr[0], np.int32)
        first, tables = self._first, self._tables
        _draw_items(
            self.users[block], indptr - indptr[0], self.tastes[block],
            first.indptr[block.start : block.stop + 1], first.items,
            tables.starts, tables.items, tables.others, tables.limits,
            np.uint64(self._key), np.zeros(len(self.items), np.bool_), items,
        )  # fmt: skip
        return np.repeat(self.users[block], np.diff(indptr)), items


def activities(n_users: int, seed: Seed) -> Float64[np.ndarray, " user"]:
    """How active users are everywhere, as `PlantedDomain.of` wants it."""
    return seed.child("activity").numpy().standard_normal(n_users)


def _counts(
    volume: Float64[np.ndarray, " known"], pairs: int, *, most: int
) -> Int64[np.ndarray, " known"]:
    """Whole numbers that sum to `pairs`, by volume above a small equal part, up to `most`."""
    least = max(1, min(FEW, (pairs // len(volume) + 1) // 2))
    rest = pairs - least * len(volume)
    # the factor at which volumes, cut off at the top, sum to the rest
    low, high = 0.0, most / volume.min()
    for _ in range(80):
        factor = (low + high) / 2
        if np.minimum(factor * volume, most - least).sum() < rest:
            low = factor
        else:
            high = factor
    edges = np.rint(np.cumsum(np.minimum(high * volume, most - least)))
    edges[-1] = rest
    return least + np.diff(np.minimum(edges, rest), prepend=0).astype(np.int64)


def _tastes(
    users: Int64[np.ndarray, " known"],
    shared_key: int,
    own_key: int,
    *,
    common: float,
    n_threads: int,
) -> Float32[np.ndarray, "known genre"]:
    tastes = np.empty((len(users), GENRES), np.float32)

    def part(number: int) -> None:
        rows = slice(number * _USERS_AT_ONCE, (number + 1) * _USERS_AT_ONCE)
        _draw_tastes(users[rows], np.uint64(shared_key), np.uint64(own_key), common, tastes[rows])

    each(part, -(-len(users) // _USERS_AT_ONCE), n_threads=n_threads)
    return tastes


def _genres(n_items: int, rng: np.random.Generator) -> Float32[np.ndarray, "item genre"]:
    rank = rng.permutation(n_items)
    fame = 1 / (1 + rank + _FLAT * n_items)
    genre = rng.permutation(n_items) % GENRES
    second = (genre + rng.integers(1, GENRES, size=n_items)) % GENRES
    found = np.zeros((n_items, GENRES))
    rows = np.arange(n_items)
    found[rows, genre], found[rows, second] = fame, _SECOND * fame
    return (found / found.sum(axis=0)).astype(np.float32)


def _tables(items: Float32[np.ndarray, "item genre"]) -> _Tables:
    genres, members = np.nonzero(items.T)
    starts = np.searchsorted(genres, np.arange(GENRES + 1))
    chances = items.T[genres, members].astype(np.float64)
    others = members.astype(np.int32)
    limits = np.empty(len(members), np.uint32)
    for start, stop in pairwise(starts.tolist()):
        part = slice(start, stop)
        _alias(chances[part] / chances[part].mean(), members[part], others[part], limits[part])
    return _Tables(starts, members.astype(np.int32), others, limits)


@_part
@no_type_check
def _uniform(bits):
    """A number in [0, 1) of 24 of the 64 bits."""
    return np.float32(bits >> np.uint64(40)) * np.float32(2.0**-24)


@_part
@no_type_check
def _normals(state):
    """Two standard normal numbers (Box and Muller), and the new state."""
    state += GOLDEN
    # in (0, 1], whose logarithm is finite
    radius = np.sqrt(-2.0 * np.log((np.float64(mix(state) >> np.uint64(11)) + 1.0) * 2.0**-53))
    state += GOLDEN
    angle = 2.0 * np.pi * (np.float64(mix(state) >> np.uint64(11)) * 2.0**-53)
    return radius * np.cos(angle), radius * np.sin(angle), state


@_loop
@no_type_check
def _draw_tastes(users, shared_key, own_key, common, tastes):
    """Fill `tastes`, a row for each user: the softmax of a shared and an own normal vector."""
    of_shared, of_own = _SHARPNESS * np.sqrt(common), _SHARPNESS * np.sqrt(1.0 - common)
    weights = np.empty(tastes.shape[1])
    for place in range(len(users)):
        shared, own = stream(shared_key, users[place]), stream(own_key, users[place])
        total = 0.0
        for g in range(0, len(weights), 2):
            a, b, shared = _normals(shared)
            c, d, own = _normals(own)
            weights[g] = np.exp(of_shared * a + of_own * c)
            weights[g + 1] = np.exp(of_shared * b + of_own * d)
            total += weights[g] + weights[g + 1]
        for g in range(len(weights)):
            tastes[place, g] = weights[g] / total


@_loop
@no_type_check
def _alias(chances, members, others, limits):
    """Fill one genre's table (Vose's order); `chances` have mean 1 and are used up."""
    n = len(chances)
    small, large = np.empty(n, np.int64), np.empty(n, np.int64)
    n_small = n_large = 0
    for slot in range(n):
        limits[slot] = 0xFFFFFFFF
        if chances[slot] < 1.0:
            small[n_small] = slot
            n_small += 1
        else:
            large[n_large] = slot
            n_large += 1
    while n_small and n_large:
        n_small -= 1
        slot, giver = small[n_small], large[n_large - 1]
        limits[slot] = np.uint32(chances[slot] * 0xFFFFFFFF)
        others[slot] = members[giver]
        chances[giver] -= 1.0 - chances[slot]
        if chances[giver] < 1.0:
            n_large -= 1
            small[n_small] = giver
            n_small += 1


@_loop
@no_type_check
def _draw_owners(missing, items, indptr, tastes, key, room, owners):
    """For each missing item a user, who has `room` for it."""
    for place in range(len(missing)):
        item = missing[place]
        most = items[item].max()
        state = stream(key, item)
        while True:
            state += GOLDEN
            user = np.searchsorted(indptr, below(mix(state), indptr[-1]), side="right") - 1
            share = np.float32(0)
            for g in range(items.shape[1]):
                share += tastes[user, g] * items[item, g]
            state += GOLDEN
            if _uniform(mix(state)) * most < share and room[user]:
                break
        room[user] -= 1
        owners[place] = user


@_loop
@no_type_check
def _draw_items(
    users, indptr, tastes, first_starts, first, starts, members, others, limits, key, taken, drawn
):
    """Fill `drawn`; `taken` is a mark for each item, all clear before and after."""
    n_genres = tastes.shape[1]
    edges = np.empty(n_genres - 1, np.float32)
    for place in range(len(users)):
        total = np.float32(0)
        for g in range(n_genres - 1):
            total += tastes[place, g]
            edges[g] = total
        at = indptr[place]
        for p in range(first_starts[place], first_starts[place + 1]):
            drawn[at] = first[p]
            taken[first[p]] = True
            at += 1
        state = stream(key, users[place])
        while at < indptr[place + 1]:
            state += GOLDEN
            where = _uniform(mix(state))
            genre = 0
            for g in range(n_genres - 1):  # no branch: nobody could guess it
                genre += edges[g] <= where
            state += GOLDEN
            bits = mix(state)
            slot = starts[genre] + np.int64(below(bits, starts[genre + 1] - starts[genre]))
            item = members[slot] if np.uint32(bits) <= limits[slot] else others[slot]
            if not taken[item]:
                drawn[at] = item
                taken[item] = True
                at += 1
        for p in range(indptr[place], at):
            taken[drawn[p]] = False
