"""Which interactions are held out: at random, each user's latest, or all after one moment."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int8, Int64

from musketeers.config import SplitConfig
from musketeers.data.domains import ColdUsers, Domain, Domains, Split
from musketeers.data.interactions import Interactions
from musketeers.errors import DataError
from musketeers.seeding import Seed

_TRAIN, _VALID, _TEST = 0, 1, 2
_NEW = -1
"""Of a pair that was not there before: no purpose yet."""
_ROUNDING = 1e-9
"""Taken off before rounding up, because 0.1 * 30 is a little more than 3 in binary arithmetic."""
_PER_USER = "a user needs three pairs or more; raise data.min_user or hold out less"
_COLD = "too many users are made new to it; lower split.cold"
_REMEDIES: Mapping[str, str] = {
    "random": _PER_USER,
    "last": _PER_USER,
    "time": "its times lie on one side of the cut; use split.method 'random' or another domain",
}


def split(domains: Domains, config: SplitConfig, seed: Seed) -> dict[str, Split]:
    """Every domain's pairs, apart into train, valid and test.

    `random` and `last` hold out of a user's n pairs ceil(test n) and ceil(valid n), or none
    if that leaves nothing to train on.  `time` cuts all domains at the same two moments, so
    that nothing learned anywhere is later than anything tested; pairs of one moment stay
    together, and a user who appears after the cut has no train pair.

    With `cold` above 0, some of the users whom several domains know are new to one of them: in
    expectation that share of the users of each domain whom others know too, each in one domain at
    most.  What they have there is apart from the rest, in `Split.cold`.

    Raises `DataError` if `last` or `time` finds no times or too few different ones, or if a
    domain is left without a train pair, a valid pair (with ``valid > 0``), or a test pair
    (with ``test > 0``).
    """
    if config.method == "time":
        purposes = _by_moment(domains, config)
    else:
        purposes = {
            name: _by_rank(name, domain, np.full(len(domain.pairs), _NEW, np.int8), config, seed)
            for name, domain in domains.domains.items()
        }
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
    with_history = np.bincount(pairs.users()[kept != _NEW], minlength=pairs.n_users) > 0
    cold |= eligible & ~with_history & (draws < config.cold)
    return _apart(name, pairs, _by_rank(name, domain, kept, config, seed), cold, config)


def _kept(
    pairs: Interactions, before: Split
) -> tuple[Int8[np.ndarray, " pair"], Bool[np.ndarray, " user"]]:
    """What each pair was for, and which users were new to the domain."""
    tables = [(before.train, _TRAIN), (before.valid, _VALID), (before.test, _TEST)]
    cold = np.zeros(pairs.n_users, np.bool_)
    if before.cold:
        tables += [(before.cold.history, _TRAIN), (before.cold.test, _TEST)]
        cold = before.cold.test.known_users()
    kept, keys = np.full(len(pairs), _NEW, np.int8), pairs.keys()
    for table, purpose in tables:
        kept[np.isin(keys, table.keys(), assume_unique=True)] = purpose
    return kept, cold


def _cold(domains: Domains, share: float, seed: Seed) -> dict[str, Bool[np.ndarray, " user"]]:
    """Who is to be new to each domain."""
    known = np.stack([domain.pairs.known_users() for domain in domains.domains.values()], axis=1)
    counts, make = known.sum(axis=1), seed.child("cold").numpy()
    # in one of n domains with the n-fold share: in each of them with the share
    chosen = (counts > 1) & (make.random(len(known)) < share * counts)
    place = np.argmax(known * (1 + make.random(known.shape)), axis=1)
    return {name: chosen & (place == n) for n, name in enumerate(domains.domains)}


def _order(
    name: str, domain: Domain, new: Bool[np.ndarray, " pair"], config: SplitConfig, seed: Seed
) -> Int64[np.ndarray, " pair"]:
    """All pairs, by user; of one user the new ones last, and of these the test's."""
    users = domain.pairs.users()
    if config.method == "last":
        return np.lexsort((domain.pairs.items, _times(name, domain), new, users))
    draws = seed.child("split", name).numpy().random(len(users))
    return np.lexsort((draws, new, users))


def _times(name: str, domain: Domain) -> Int64[np.ndarray, " pair"]:
    if domain.times is None:
        raise DataError(f"domain {name} has no times to split by; set data.timestamp")
    return domain.times


def _by_rank(
    name: str, domain: Domain, kept: Int8[np.ndarray, " pair"], config: SplitConfig, seed: Seed
) -> Int8[np.ndarray, " pair"]:
    """The purpose of each pair: the one that it has, else by its place in `_order`."""
    pairs, users = domain.pairs, domain.pairs.users()
    n = pairs.counts()
    n_test, n_valid = (
        np.ceil(share * n - _ROUNDING).astype(np.int64) for share in (config.test, config.valid)
    )
    some = n_test + n_valid < n
    has_test, has_valid = (
        np.bincount(users[kept == purpose], minlength=len(n)) for purpose in (_TEST, _VALID)
    )
    n_test = np.maximum(n_test * some - has_test, 0)
    held = n_test + np.maximum(n_valid * some - has_valid, 0)
    from_end = pairs.indptr[users + 1] - 1 - np.arange(len(pairs))
    purpose = np.empty(len(pairs), dtype=np.int8)
    purpose[_order(name, domain, kept == _NEW, config, seed)] = np.select(
        [from_end < n_test[users], from_end < held[users]], [_TEST, _VALID], _TRAIN
    )
    return np.where(kept == _NEW, purpose, kept)


def _by_moment(domains: Domains, config: SplitConfig) -> dict[str, Int8[np.ndarray, " pair"]]:
    times = {name: _times(name, domain) for name, domain in domains.domains.items()}
    moments, counts = np.unique(np.concatenate(list(times.values())), return_counts=True)
    needed = 1 + (config.valid > 0) + (config.test > 0)
    if len(moments) < needed:
        raise DataError(
            f"all {counts.sum()} interactions have {len(moments)} different times; a time split "
            f"needs {needed}; take finer times or split.method 'random'"
        )
    valid_from, test_from = _cuts(counts, config)
    purposes: dict[str, Int8[np.ndarray, " pair"]] = {}
    for name, time in times.items():
        place = np.searchsorted(moments, time)
        held = [place >= test_from, place >= valid_from]
        purposes[name] = np.select(held, [_TEST, _VALID], _TRAIN).astype(np.int8)
    return purposes


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
    wanted = {"train": 1.0, "valid": config.valid, "test": config.test}
    users = pairs.users()
    # whoever has nothing to be measured on is left where they are
    measured = np.bincount(users[purpose == _TEST], minlength=pairs.n_users) > 0
    new = (cold & measured)[users]
    parts = {part: pairs.only(~new & (purpose == code)) for code, part in enumerate(wanted)}
    for part, share in wanted.items():
        if share > 0 and not len(parts[part]):
            raise DataError(
                f"domain {name}: the {config.method} split leaves no {part} pair among "
                f"{len(pairs)}; {_COLD if new.any() else _REMEDIES[config.method]}"
            )
    history, test = (pairs.only(new & held) for held in (purpose != _TEST, purpose == _TEST))
    apart = ColdUsers(history, test) if len(test) else None
    return Split(parts["train"], parts["valid"], parts["test"], apart)
