import numpy as np
import pytest

from musketeers.config import DataConfig
from musketeers.data.readers import from_frames, read
from musketeers.data.synthetic import frames, planted
from musketeers.errors import DataError
from musketeers.seeding import Seed

NAMES = ("books", "films", "songs")
KEEP_ALL = DataConfig(
    domains={name: f"{name}.csv" for name in NAMES}, timestamp="timestamp", min_user=1, min_item=1
)


def listed(domains, name):
    domain = domains.domains[name]
    users = domains.users.ids(domain.pairs.users()).to_list()
    items = domain.items.ids(domain.pairs.items).to_list()
    return list(zip(users, items, domain.times.tolist(), strict=True))


def test_sizes_are_as_asked():
    data = planted(NAMES, Seed(1), n_users=30, n_items=20, pairs_per_user=10)
    for name in NAMES:
        parts = data.splits[name]
        assert data.domains.domains[name].pairs.counts().tolist() == [10] * 30
        assert parts.train.counts().tolist() == [6] * 30
        assert parts.valid.counts().tolist() == parts.test.counts().tolist() == [2] * 30
        assert parts.train.n_items == 20


def test_same_seed_same_data_and_a_domain_more_changes_no_other():
    first, again = (planted(NAMES, Seed(1), n_users=30, n_items=20) for _ in range(2))
    more = planted((*NAMES, "games"), Seed(1), n_users=30, n_items=20)
    other = planted(NAMES, Seed(2), n_users=30, n_items=20)
    for name in NAMES:
        assert listed(first.domains, name) == listed(again.domains, name)
        assert listed(first.domains, name) == listed(more.domains, name)
        assert listed(first.domains, name) != listed(other.domains, name)


@pytest.mark.parametrize(("common", "low", "high"), [(0.0, -0.05, 0.05), (1.0, 0.15, 1.0)])
def test_tastes_agree_between_domains_as_far_as_they_are_shared(common, low, high):
    names = ("a", "b")
    data = planted(names, Seed(3), n_users=600, n_items=60, common=common, pairs_per_user=20)
    likeness = []
    for name in names:
        table = np.zeros((600, 60))
        pairs = data.domains.domains[name].pairs
        table[pairs.users(), pairs.items] = 1
        table -= table.mean(axis=0)
        likeness.append((table @ table.T)[np.triu_indices(600, k=1)])
    assert low < np.corrcoef(*likeness)[0, 1] < high


def test_every_user_is_known_somewhere_and_few_everywhere():
    data = planted(NAMES, Seed(4), n_users=500, known=0.3)
    known = np.stack([d.pairs.known_users() for d in data.domains.domains.values()])
    assert known.any(axis=0).all()
    # the 34 % whom chance leaves nowhere get one domain: (.9 + .343) / 3
    assert known.mean() == pytest.approx((3 * 0.3 + 0.7**3) / 3, abs=0.03)


def test_popularity_and_activity_have_long_tails():
    flat = planted(("a",), Seed(5)).domains.domains["a"].pairs
    long = planted(("a",), Seed(5), popularity=1.0, activity=0.8).domains.domains["a"].pairs
    assert long.item_counts().max() > 1.5 * flat.item_counts().max()
    assert long.counts().std() > 3
    assert flat.counts().std() == 0
    assert long.counts().mean() == pytest.approx(12, rel=0.15)


def test_frames_and_files_read_back_to_the_same(tmp_path):
    data = planted(NAMES, Seed(6), n_users=40, n_items=20, known=0.6)
    tables = frames(data.domains)
    for name, table in tables.items():
        table.write_csv(tmp_path / f"{name}.csv")
    for reading in (from_frames(tables, KEEP_ALL), read(KEEP_ALL, base=tmp_path)):
        for name in NAMES:
            assert listed(reading.domains, name) == listed(data.domains, name)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(DataError, match=r"common is 1\.5; it is a share, between 0 and 1"):
        planted(NAMES, Seed(1), common=1.5)
