from math import ceil

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musketeers.config import SplitConfig
from musketeers.data import splits
from musketeers.data.domains import Domain, Domains
from musketeers.data.interactions import Interactions
from musketeers.data.splits import split, split_again
from musketeers.data.synthetic import planted
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import DataError
from musketeers.seeding import Seed

N_USERS, N_ITEMS = 6, 40
SEED = Seed(3)
NOBODY, EVERYBODY = np.zeros(N_USERS, bool), np.ones(N_USERS, bool)


def domain(rows):
    """From (user, item) -> time."""
    pairs = sorted(rows)
    users, items = np.array(pairs).T
    table = Interactions.from_pairs(users, items, n_users=N_USERS, n_items=N_ITEMS)
    vocabulary = Vocabulary.of(pl.Series(range(N_ITEMS)))
    return Domain(vocabulary, table, np.array([rows[pair] for pair in pairs]))


def together(**domains):
    users = Vocabulary.of(pl.Series(range(N_USERS)))
    return Domains(users, {name: domain(rows) for name, rows in domains.items()})


def listed(table):
    return list(zip(table.users().tolist(), table.items.tolist(), strict=True))


def row(n, user=0, times=None):
    return {(user, i): (times[i] if times else i) for i in range(n)}


KEYS = st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1))
ROWS = st.dictionaries(KEYS, st.integers(0, 9), max_size=80).map(
    # user 0 always has enough for a split, at times on every side of it
    lambda rows: row(12) | {pair: t for pair, t in rows.items() if pair[0]}
)
SHARES = st.sampled_from([(0.2, 0.16), (0.1, 0.0), (0.3, 0.3), (0.0, 0.2)])


@given(ROWS, SHARES, st.sampled_from(["random", "last", "time"]))
def test_a_split_is_a_partition(rows, shares, method):
    config = SplitConfig(method=method, test=shares[0], valid=shares[1])
    parts = split(together(a=rows), config, SEED)["a"]
    held = [listed(part) for part in (parts.train, parts.valid, parts.test)]
    assert sorted([*held[0], *held[1], *held[2]]) == sorted(rows)
    assert all(
        (part.n_users, part.n_items) == (N_USERS, N_ITEMS) for part in (parts.train, parts.test)
    )
    assert listed(parts.seen()) == sorted(held[0] + held[1])
    assert bool(held[2]) == (shares[0] > 0)
    assert bool(held[1]) == (shares[1] > 0)


@given(ROWS, SHARES, st.sampled_from(["random", "last"]))
def test_each_users_counts_follow_the_rule(rows, shares, method):
    config = SplitConfig(method=method, test=shares[0], valid=shares[1])
    parts = split(together(a=rows), config, SEED)["a"]
    for user, n in enumerate(together(a=rows).domains["a"].pairs.counts().tolist()):
        test, valid = (ceil(round(share * n, 6)) for share in shares)
        if test + valid >= n:
            test = valid = 0
        assert len(parts.test.of(user)) == test
        assert len(parts.valid.of(user)) == valid


@given(ROWS, SHARES, st.sampled_from(["random", "last", "time"]), st.integers(0, 2**32))
def test_how_many_are_held_out_does_not_depend_on_the_seed(rows, shares, method, seed):
    config = SplitConfig(method=method, test=shares[0], valid=shares[1])
    one, other = (split(together(a=rows), config, s)["a"] for s in (SEED, Seed(seed)))
    np.testing.assert_array_equal(one.train.counts(), other.train.counts())
    np.testing.assert_array_equal(one.test.counts(), other.test.counts())


@pytest.mark.parametrize(("n", "share", "held"), [(5, 0.2, 1), (30, 0.1, 3), (10, 0.3, 3)])
def test_a_share_that_is_whole_is_not_rounded_up(n, share, held):
    parts = split(together(a=row(n)), SplitConfig(test=share, valid=0.0), SEED)["a"]
    assert len(parts.test) == held


@given(ROWS)
def test_last_holds_out_the_latest(rows):
    parts = split(together(a=rows), SplitConfig(method="last"), SEED)["a"]
    for user in range(N_USERS):
        order = sorted((rows[u, i], i) for u, i in rows if u == user)
        n_test, n_valid = len(parts.test.of(user)), len(parts.valid.of(user))
        items = [i for _, i in order]
        n_train = len(items) - n_test - n_valid
        assert sorted(items[n_train + n_valid :]) == parts.test.of(user).tolist()
        assert sorted(items[n_train : n_train + n_valid]) == parts.valid.of(user).tolist()


@given(ROWS, ROWS)
def test_in_a_time_split_nothing_trained_on_is_later_than_anything_tested(a, b):
    domains = together(a=a, b=b)
    parts = split(domains, SplitConfig(method="time"), SEED)
    latest, first_valid, last_valid, earliest = -1, 99, -1, 99
    for name, rows in (("a", a), ("b", b)):
        latest = max([latest, *(rows[p] for p in listed(parts[name].train))])
        first_valid = min([first_valid, *(rows[p] for p in listed(parts[name].valid))])
        last_valid = max([last_valid, *(rows[p] for p in listed(parts[name].valid))])
        earliest = min([earliest, *(rows[p] for p in listed(parts[name].test))])
    assert latest < first_valid <= last_valid < earliest


def test_the_time_cut_pools_all_domains():
    early = {(0, i): i for i in range(9)} | {(0, 9): 13}
    late = {(1, i): 4 + i for i in range(10)}
    config = SplitConfig(method="time", test=0.2, valid=0.2)
    parts = split(together(a=early, b=late), config, SEED)
    # of 20 pairs, 4 lie at or after moment 11 and 4 between moments 8 and 10
    assert listed(parts["a"].test) == [(0, 9)]
    assert listed(parts["b"].test) == [(1, 7), (1, 8), (1, 9)]
    assert listed(parts["a"].valid) == [(0, 8)]
    assert listed(parts["b"].valid) == [(1, 4), (1, 5), (1, 6)]


def test_a_domain_keeps_its_split_whatever_stands_beside_it():
    rows, config = row(20), SplitConfig()
    alone = split(together(a=rows), config, SEED)["a"]
    beside = split(together(b=row(9), a=rows), config, SEED)["a"]
    other = split(together(a=rows), config, Seed(4))["a"]
    assert listed(alone.test) == listed(beside.test)
    assert listed(alone.test) != listed(other.test)


SHARED = st.dictionaries(
    st.tuples(st.integers(0, 2), st.integers(0, N_ITEMS - 1)), st.integers(0, 9), max_size=60
)


@given(
    st.lists(SHARED, min_size=2, max_size=3),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.sampled_from(["random", "last"]),
)
def test_cold_users_are_new_to_one_domain_and_known_in_another(tables, share, method):
    # users 3, 4 and 5 are known in one domain each, so that none is left without
    tables = [row(12, user=3 + n) | rows for n, rows in enumerate(tables)]
    domains = together(**{f"d{n}": rows for n, rows in enumerate(tables)})
    parts = split(domains, SplitConfig(method=method, cold=share), SEED)
    warm = split(domains, SplitConfig(method=method), SEED)
    new = np.zeros(N_USERS, dtype=int)
    for name, part in parts.items():
        cold = np.zeros(N_USERS, dtype=bool)
        if part.cold:
            assert len(part.cold.test)
            cold = part.cold.history.known_users()
            assert (cold == part.cold.test.known_users()).all()
            of_both = part.cold.history.union(part.cold.test)
            whole = domains.domains[name].pairs
            assert listed(of_both) == [pair for pair in listed(whole) if cold[pair[0]]]
            assert listed(part.cold.test) == [p for p in listed(warm[name].test) if cold[p[0]]]
            new += cold
        # nobody else's pairs change their purpose
        for one in ("train", "valid", "test"):
            missing = set(listed(getattr(warm[name], one))) - set(listed(getattr(part, one)))
            assert cold[[user for user, _ in missing]].all()
            assert not cold[getattr(part, one).users()].any()
    assert new.max() <= 1
    for user in np.flatnonzero(new):
        assert sum(len(part.train.of(int(user))) > 0 for part in parts.values()) >= 1


def test_the_share_of_cold_users_is_as_asked():
    parts = planted(("a", "b", "c"), Seed(0), n_users=4000, n_items=30, known=0.7).domains
    found = split(parts, SplitConfig(cold=0.1), SEED)
    known = np.stack([domain.pairs.known_users() for domain in parts.domains.values()])
    for n, part in enumerate(found.values()):
        shared = (known[n] & (known.sum(axis=0) > 1)).sum()
        share = part.cold.history.known_users().sum() / shared
        assert share == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / shared))


def test_too_many_cold_users_for_a_domain_are_said_to_be_so():
    domains = together(a=row(12), b=row(12))
    # both domains know the same user, who is surely new to one of them
    message = r"no train pair among 12; too many users are made new to it; lower split\.cold"
    with pytest.raises(DataError, match=message):
        split(domains, SplitConfig(cold=0.5), SEED)


def test_faults_are_one_line_with_a_remedy():
    no_times = Domains(
        Vocabulary.of(pl.Series(range(N_USERS))),
        {"a": Domain(domain(row(9)).items, domain(row(9)).pairs)},
    )
    for method in ("last", "time"):
        with pytest.raises(DataError, match="domain a has no times to split by; set data"):
            split(no_times, SplitConfig(method=method), SEED)
    for rows in (row(2), row(1)):
        with pytest.raises(DataError, match=r"leaves no valid pair among .*; a user needs three"):
            split(together(a=rows), SplitConfig(), SEED)
        with pytest.raises(DataError, match=r"leaves no test pair among 1; a user needs three"):
            split(together(a=row(1)), SplitConfig(valid=0.0), SEED)
    same = row(9, times=[5] * 9)
    with pytest.raises(
        DataError, match="all 9 interactions have 1 different times; a time split needs 3"
    ):
        split(together(a=same), SplitConfig(method="time"), SEED)
    old = row(20, times=[*range(18), 100, 100])
    new = {(1, i): 100 for i in range(3)}
    with pytest.raises(DataError, match="domain b: the time split leaves no train pair among 3"):
        split(together(a=old, b=new), SplitConfig(method="time"), SEED)


def test_a_user_who_appears_after_the_cut_has_an_empty_train_row():
    old = row(20, times=[*range(18), 100, 100])
    parts = split(together(a=old | {(1, 0): 100}), SplitConfig(method="time"), SEED)["a"]
    assert parts.train.of(1).tolist() == parts.valid.of(1).tolist() == []
    assert parts.test.of(1).tolist() == [0]


# --- against the definition, written out: all pairs sorted at once


def slowly_by_rank(pairs, keys, kept, shares):
    """The purpose of each pair: 0 train, 1 valid, 2 test; `kept` has -1 where there is none yet."""
    users, n = pairs.users(), pairs.counts()
    n_test, n_valid = (np.ceil(share * n - 1e-9).astype(int) for share in shares)
    some = n_test + n_valid < n
    n_test, n_valid = (
        np.maximum(count * some - np.bincount(users[kept == code], minlength=len(n)), 0)
        for count, code in ((n_test, 2), (n_valid, 1))
    )
    order = np.lexsort((pairs.items, keys, kept == -1, users))
    from_end = pairs.indptr[users + 1] - 1 - np.arange(len(pairs))
    purpose = np.empty(len(pairs), int)
    purpose[order] = np.select(
        [from_end < n_test[users], from_end < (n_test + n_valid)[users]], [2, 1], 0
    )
    return np.where(kept == -1, purpose, kept)


def keys_of(domain, method):
    draws = SEED.child("split", "a").numpy().random(len(domain.pairs))
    return domain.times if method == "last" else draws


def assert_apart(split, pairs, purpose):
    users = pairs.users()
    for code, part in enumerate((split.train, split.valid, split.test)):
        assert part.indptr.dtype == np.int64
        assert part.items.dtype == np.int32
        expected = zip(users[purpose == code], pairs.items[purpose == code], strict=True)
        assert listed(part) == list(expected)


@pytest.mark.parametrize("block", [1, 20, 1 << 22])
@given(rows=ROWS, shares=SHARES, method=st.sampled_from(["random", "last"]))
def test_a_split_is_bit_by_bit_what_sorting_all_pairs_gives(block, rows, shares, method):
    domains = together(a=rows)
    one = domains.domains["a"]
    config = SplitConfig(method=method, test=shares[0], valid=shares[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_BLOCK", block)
        found = split(domains, config, SEED)["a"]
    nothing = np.full(len(one.pairs), -1)
    assert_apart(found, one.pairs, slowly_by_rank(one.pairs, keys_of(one, method), nothing, shares))


@given(ROWS, ROWS, SHARES, st.sampled_from(["random", "last"]))
def test_a_new_split_is_bit_by_bit_what_sorting_all_pairs_gives(before, later, shares, method):
    config = SplitConfig(method=method, test=shares[0], valid=shares[1])
    first = split(together(a=before), config, SEED)["a"]
    one = domain({**later, **dict.fromkeys(list(before)[::2], 5)})
    kept = np.full(len(one.pairs), -1)
    for code, part in enumerate((first.train, first.valid, first.test)):
        kept[np.isin(one.pairs.keys(), part.keys())] = code
    purpose = slowly_by_rank(one.pairs, keys_of(one, method), kept, shares)
    again = split_again("a", one, first, config, SEED, eligible=NOBODY)
    assert_apart(again, one.pairs, purpose)


@given(ROWS, ROWS, SHARES)
def test_a_cut_is_where_the_pooled_times_put_it(a, b, shares):
    config = SplitConfig(method="time", test=shares[0], valid=shares[1])
    domains = together(a=a, b=b)
    found = split(domains, config, SEED)
    moments, counts = np.unique([*a.values(), *b.values()], return_counts=True)
    valid_from, test_from = splits._cuts(counts, config)
    for name, one in domains.domains.items():
        place = np.searchsorted(moments, one.times)
        purpose = np.select([place >= test_from, place >= valid_from], [2, 1], 0)
        assert_apart(found[name], one.pairs, purpose)


# --- new data of a domain


def moved(before, later):
    """The split of the rows `before`, then that of the rows `later`."""
    first = split(together(a=before), SplitConfig(), SEED)["a"]
    return first, split_again("a", domain(later), first, SplitConfig(), SEED, eligible=NOBODY)


@given(ROWS, SHARES, st.sampled_from(["random", "last"]))
def test_a_domain_without_a_past_is_split_as_ever(rows, shares, method):
    config = SplitConfig(method=method, test=shares[0], valid=shares[1])
    first = split(together(a=rows), config, SEED)["a"]
    again = split_again("a", domain(rows), None, config, SEED, eligible=EVERYBODY)
    for part in ("train", "valid", "test"):
        assert listed(getattr(again, part)) == listed(getattr(first, part))


@given(ROWS, ROWS)
def test_what_is_still_there_keeps_its_purpose_and_the_rest_fills_up(before, later):
    first, again = moved(before, {**later, **dict.fromkeys(list(before)[::2], 5)})
    now = again.train.union(again.valid).union(again.test)
    for part in ("train", "valid", "test"):
        kept = set(listed(getattr(first, part))) & set(listed(now))
        assert kept <= set(listed(getattr(again, part)))
    was = first.train.union(first.valid).union(first.test)
    for user in range(N_USERS):
        n, held = (
            len(now.of(user)),
            [ceil(round(share * len(now.of(user)), 6)) for share in (0.2, 0.16)],
        )
        new = set(now.of(user)) - set(was.of(user))
        for part, wanted in zip(("test", "valid"), held, strict=True):
            here = set(getattr(again, part).of(user))
            stayed = len(here - new)
            # never more new ones than the shares lack
            assert len(here & new) <= max(wanted * (sum(held) < n) - stayed, 0)
        missing = sum(held) * (sum(held) < n)
        held_out = len(again.test.of(user)) + len(again.valid.of(user))
        assert held_out >= missing or not new & set(again.train.of(user))


def test_of_new_pairs_the_latest_are_held_out_after_those_that_were_before():
    before = row(10)
    config = SplitConfig(method="last", test=0.2, valid=0.1)
    first = split(together(a=before), config, SEED)["a"]
    assert listed(first.test) == [(0, 8), (0, 9)]
    # later pairs of earlier items: of 20, four are to be tested and two to validate
    later = {**before, **{(0, item): 100 - item for item in range(20, 30)}}
    again = split_again("a", domain(later), first, config, SEED, eligible=NOBODY)
    assert listed(again.test) == [(0, 8), (0, 9), (0, 20), (0, 21)]
    assert listed(again.valid) == [*listed(first.valid), (0, 22)]


def test_who_was_new_to_a_domain_stays_so_and_some_who_come_are():
    both = {pair: 0 for user in range(N_USERS) for pair in row(9, user)}
    config = SplitConfig(cold=0.5)
    first = split(together(a=both, b=both), config, SEED)["a"]
    cold = first.cold.test.known_users()
    assert 0 < cold.sum() < N_USERS
    less = {pair: 0 for pair in both if pair[0] < N_USERS - 2 or cold[pair[0]]}
    more = {**both, **{pair: 0 for user in range(N_USERS) for pair in row(14, user)}}
    start = split_again("a", domain(less), first, config, SEED, eligible=EVERYBODY)
    assert (start.cold.test.known_users() == cold).all()  # nobody came
    again = split_again("a", domain(more), start, config, SEED, eligible=NOBODY)
    assert (again.cold.test.known_users() == cold).all()
    assert set(listed(start.cold.test)) <= set(listed(again.cold.test))
    assert not (again.train.known_users() & cold).any()
    assert len(again.cold.test) == 3 * cold.sum()
    fewer = SplitConfig(cold=0.3)
    newcomers = [
        split_again("a", domain(more), None, fewer, Seed(n), eligible=EVERYBODY).cold
        for n in range(40)
    ]
    share = np.mean([c.test.known_users().mean() if c else 0 for c in newcomers])
    assert 0.2 < share < 0.4


def test_a_cut_in_time_cannot_be_found_again():
    config = SplitConfig(method="time")
    with pytest.raises(DataError, match="a run does not keep the others' times; fit anew with"):
        split_again("a", domain(row(9)), None, config, SEED, eligible=NOBODY)
