"""Which interactions are held out: at random, each user's latest, or all after one moment."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64
from numba import njit

from musketeers.config import SplitConfig
from musketeers.data import csr
from musketeers.data.domains import ColdUsers, Domain, Domains, Split
from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.protocols import Rows, untold
from musketeers.seeding import Seed

_BLOCK = 1 << 22
"""Pairs whose draws are held at a time; no part of the result."""
PURPOSES = ("train", "valid", "test")
"""What a pair can be for; its code is the place here."""
_TRAIN, _VALID, _TEST = 0, 1, 2
_NEW = -1
"""Of a pair that was not there before: no purpose yet."""
_Keyed = tuple[slice, Int64[np.ndarray, " pair"] | Float64[np.ndarray, " pair"]]
"""Some users, and what their pairs are ordered by."""
_ROUNDING = 1e-9
"""Taken off before rounding up, because 0.1 * 30 is a little more than 3 in binary arithmetic."""
_PER_USER = "a user needs three pairs or more; raise data.min_user or hold out less"
_COLD = "too many users are made new to it; lower split.cold"
_REMEDIES: Mapping[str, str] = {
    "random": _PER_USER,
    "last": _PER_USER,
    "time": "its times lie on one side of the cut; use split.method 'random' or another domain",
}


def split(
    domains: Domains, config: SplitConfig, seed: Seed, *, told: Rows = untold
) -> dict[str, Split]:
    """Every domain's pairs, apart into train, valid and test.

    `random` and `last` hold out of a user's n pairs ceil(test n) and ceil(valid n), or none
    if that leaves nothing to train on.  `time` cuts all domains at the same two moments, so
    that nothing learned anywhere is later than anything tested; pairs of one moment stay
    together, and a user who appears after the cut has no train pair.

    With `cold` above 0, some of the users whom several domains know are new to one of them: in
    expectation that share of the users of each domain whom others know too, each in one domain at
    most.  What they have there is apart from the rest, in `Split.cold`.

    `told` hears how many pairs have a purpose by now.

    Raises `DataError` if `last` or `time` finds no times or too few different ones, or if a
    domain is left without a train pair, a valid pair (with ``valid > 0``), or a test pair
    (with ``test > 0``).
    """
    if config.method == "time":
        purposes = _by_moment(domains, config)
    else:
        purposes: dict[str, Int8[np.ndarray, " pair"]] = {}
        for name, domain in domains.domains.items():
            new, keys = np.full(len(domain.pairs), _NEW, np.int8), _keys(name, domain, config, seed)
            with told("split", name) as on_rows:
                purposes[name] = _by_rank(domain.pairs, new, config, keys, on_rows)
    cold = _cold(domains, config.cold, seed)
    return {
        name: _apart(name, domain.pairs, purposes[name], cold[name], config)
        for name, domain in domains.domains.items()
    }


def split_again(
    name: str,
    domain: Domain,
    before: Split | None,
    config: SplitConfig,
    seed: Seed,
    *,
    eligible: Bool[np.ndarray, " user"],
) -> Split:
    """The split of a domain with new data, where the other domains' splits stand.

    A pair of `before` (the split so far, in the rows of `domain`; None of a new domain) that is
    still there keeps its purpose.  Of each user's other pairs as many are held out as the shares of
    all that the user has now still lack: none of a user who has enough, and of a new user what
    `split` holds out.  Users without a history in `before` are made new to the domain with
    probability `cold`, if they are `eligible`: known in another domain, and new to none.

    Raises `DataError` as `split` does, and for the `time` method, whose moments lie in the times of
    all domains.
    """
    if config.method == "time":
        raise DataError(
            f"domain {name}: split.method 'time' cuts all domains at the same moments, and a run "
            "does not keep the others' times; fit anew with the data of all"
        )
    pairs = domain.pairs
    kept, cold = np.full(len(pairs), _NEW, np.int8), np.zeros(pairs.n_users, np.bool_)
    if before:
        kept, cold = _kept(pairs, before)
    draws = seed.child("cold", name).numpy().random(pairs.n_users)
    with_history = _counts(pairs, kept != _NEW) > 0
    cold |= eligible & ~with_history & (draws < config.cold)
    purpose = _by_rank(pairs, kept, config, _keys(name, domain, config, seed), lambda _: None)
    return _apart(name, pairs, purpose, cold, config)


def by_rank(
    pairs: Interactions,
    keys: Int64[np.ndarray, " pair"] | Float64[np.ndarray, " pair"],
    config: SplitConfig,
) -> Int8[np.ndarray, " pair"]:
    """What the pairs of some users are for: of each user those with the largest keys are held out.

    With the keys that `split` orders pairs by (times, or draws) this is what `split` finds.
    """
    everybody = [(slice(0, pairs.n_users), keys)]
    new = np.full(len(pairs), _NEW, np.int8)
    return _by_rank(pairs, new, config, everybody, lambda _: None)


def by_moment(
    times: Int64[np.ndarray, " pair"], cuts: Sequence[tuple[int, int]]
) -> Int8[np.ndarray, " pair"]:
    """What pairs of these times are for, with the `cuts` of all domains."""
    purposes = np.full(len(times), _TRAIN, np.int8)
    for purpose, moment in cuts:
        purposes[times >= moment] = purpose
    return purposes


def cuts(
    moments: Int64[np.ndarray, " moment"],
    counts: Int64[np.ndarray, " moment"],
    config: SplitConfig,
) -> list[tuple[int, int]]:
    """Which purpose begins at which moment, earlier ones first.

    `moments` are the different times of all domains, ascending, `counts` how many pairs have each.
    Raises `DataError` if they are too few.
    """
    needed = 1 + (config.valid > 0) + (config.test > 0)
    if len(moments) < needed:
        raise DataError(
            f"all {counts.sum()} interactions have {len(moments)} different times; a time split "
            f"needs {needed}; take finer times or split.method 'random'"
        )
    places = zip((_VALID, _TEST), _cuts(counts, config), strict=True)
    return [(purpose, int(moments[place])) for purpose, place in places if place < len(moments)]


def refuse_empty(
    name: str, n_of: Sequence[int], config: SplitConfig, *, n_pairs: int, cold: bool = False
) -> None:
    """Raise `DataError` if a purpose that has a share has no pair; `n_of` counts each one's."""
    for part, share, n in zip(PURPOSES, (1.0, config.valid, config.test), n_of, strict=True):
        if share > 0 and not n:
            raise DataError(
                f"domain {name}: the {config.method} split leaves no {part} pair among "
                f"{n_pairs}; {_COLD if cold else _REMEDIES[config.method]}"
            )


def _kept(
    pairs: Interactions, before: Split
) -> tuple[Int8[np.ndarray, " pair"], Bool[np.ndarray, " user"]]:
    """What each pair was for, and which users were new to the domain."""
    tables = [(before.train, _TRAIN), (before.valid, _VALID), (before.test, _TEST)]
    cold = np.zeros(pairs.n_users, np.bool_)
    if before.cold:
        tables += [(before.cold.history, _TRAIN), (before.cold.test, _TEST)]
        cold = before.cold.test.known_users()
    kept = np.full(len(pairs), _NEW, np.int8)
    for table, purpose in tables:
        kept[pairs.held_by(table)] = purpose
    return kept, cold


def _cold(domains: Domains, share: float, seed: Seed) -> dict[str, Bool[np.ndarray, " user"]]:
    """Who is to be new to each domain."""
    known = np.stack([domain.pairs.known_users() for domain in domains.domains.values()], axis=1)
    counts, make = known.sum(axis=1), seed.child("cold").numpy()
    # in one of n domains with the n-fold share: in each of them with the share
    chosen = (counts > 1) & (make.random(len(known)) < share * counts)
    place = np.argmax(known * (1 + make.random(known.shape)), axis=1)
    return {name: chosen & (place == n) for n, name in enumerate(domains.domains)}


def _counts(pairs: Interactions, marked: Bool[np.ndarray, " pair"]) -> Int64[np.ndarray, " user"]:
    """How many of each user's pairs are marked."""
    return np.diff(csr.marked(pairs.indptr, marked))


def _times(name: str, domain: Domain) -> Int64[np.ndarray, " pair"]:
    if domain.times is None:
        raise DataError(f"domain {name} has no times to split by; set data.timestamp")
    return domain.times


def _by_rank(
    pairs: Interactions,
    kept: Int8[np.ndarray, " pair"],
    config: SplitConfig,
    keyed: Iterable[_Keyed],
    on_rows: Callable[[int], object],
) -> Int8[np.ndarray, " pair"]:
    """The purpose of each pair: the one that it has, else by its rank among the user's new ones.

    The last ones by their keys, which come for some users at a time, are held out.
    """
    n = pairs.counts()
    n_test, n_valid = (
        np.ceil(share * n - _ROUNDING).astype(np.int64) for share in (config.test, config.valid)
    )
    some = n_test + n_valid < n
    n_test = np.maximum(n_test * some - _counts(pairs, kept == _TEST), 0)
    n_valid = np.maximum(n_valid * some - _counts(pairs, kept == _VALID), 0)
    purpose = kept.copy()
    for users, keys in keyed:
        indptr = pairs.indptr[users.start : users.stop + 1]
        part = purpose[indptr[0] : indptr[-1]]
        csr.on_even_rows(
            partial(_hold_out, indptr, keys, n_test[users], n_valid[users], part), indptr
        )
        on_rows(len(part))
    return purpose


def _keys(name: str, domain: Domain, config: SplitConfig, seed: Seed) -> Iterator[_Keyed]:
    """What a user's pairs are ordered by, for some users at a time."""
    indptr, times = domain.pairs.indptr, None
    if config.method == "last":
        times = _times(name, domain)
    draws = seed.child("split", name).numpy()
    start, n_users = 0, domain.pairs.n_users
    while start < n_users:
        within = int(np.searchsorted(indptr, indptr[start] + _BLOCK, side="right")) - 1
        stop = max(start + 1, within)
        pairs = slice(indptr[start], indptr[stop])
        yield (
            slice(start, stop),
            draws.random(pairs.stop - pairs.start) if times is None else times[pairs],
        )
        start = stop


def _by_moment(domains: Domains, config: SplitConfig) -> dict[str, Int8[np.ndarray, " pair"]]:
    times = {name: _times(name, domain) for name, domain in domains.domains.items()}
    found = cuts(*_moments(times), config)
    return {name: by_moment(time, found) for name, time in times.items()}


def _moments(
    times: Mapping[str, Int64[np.ndarray, " _"]],
) -> tuple[Int64[np.ndarray, " moment"], Int64[np.ndarray, " moment"]]:
    """The different times of all domains, ascending, and how many pairs have each."""
    own = [np.unique(time, return_counts=True) for time in times.values()]
    moments, places = np.unique(np.concatenate([time for time, _ in own]), return_inverse=True)
    counts = np.zeros(len(moments), np.int64)
    np.add.at(counts, places, np.concatenate([count for _, count in own]))
    return moments, counts


def _cuts(counts: Int64[np.ndarray, " moment"], config: SplitConfig) -> tuple[int, int]:
    """The places of the first valid and the first test moment, nearest to the shares wanted.

    Each purpose with a share keeps at least one moment; a place past the end means none.
    """
    total = counts.sum()
    later = np.append(np.cumsum(counts[::-1])[::-1], 0)  # interactions at or after a moment
    test_from = len(counts)
    if config.test > 0:
        first = 2 if config.valid > 0 else 1
        test_from = first + int(np.argmin(np.abs(later[first:-1] - config.test * total)))
    valid_from = test_from
    if config.valid > 0:
        wanted = later[test_from] + config.valid * total
        valid_from = 1 + int(np.argmin(np.abs(later[1:test_from] - wanted)))
    return valid_from, test_from


def _apart(
    name: str,
    pairs: Interactions,
    purpose: Int8[np.ndarray, " pair"],
    cold: Bool[np.ndarray, " user"],
    config: SplitConfig,
) -> Split:
    # whoever has nothing to be measured on is left where they are
    new = np.repeat(cold & (_counts(pairs, purpose == _TEST) > 0), pairs.counts())
    parts = [pairs.only(~new & (purpose == code)) for code in range(len(PURPOSES))]
    refuse_empty(name, list(map(len, parts)), config, n_pairs=len(pairs), cold=bool(new.any()))
    history, test = (pairs.only(new & held) for held in (purpose != _TEST, purpose == _TEST))
    apart = ColdUsers(history, test) if len(test) else None
    return Split(parts[_TRAIN], parts[_VALID], parts[_TEST], apart)


@njit(nogil=True, cache=True)
@no_type_check
def _hold_out(indptr, keys, n_test, n_valid, purpose, start, stop):
    """Give the new pairs of some users a purpose; `keys` and `purpose` begin with the first row."""
    for row in range(start, stop):
        pairs = slice(indptr[row] - indptr[0], indptr[row + 1] - indptr[0])
        new = np.flatnonzero(purpose[pairs] == _NEW)
        purpose[pairs][new] = _TRAIN
        held = n_test[row] + n_valid[row]
        if held:
            latest = new[np.argsort(keys[pairs][new], kind="mergesort")][::-1]
            purpose[pairs][latest[:held]] = _VALID
            purpose[pairs][latest[: n_test[row]]] = _TEST
