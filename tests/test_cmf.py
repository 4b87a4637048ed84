"""CMF: one user table that learns from all domains."""

import joint
import numpy as np
import pytest
from contract import PersonalScorerContract
from joint import ENOUGH, alone, fitted, ndcg, of_users, small

from musketeers.baselines.cmf import CmfSettings, cmf
from musketeers.baselines.popularity import popularity
from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError
from musketeers.seeding import Seed
from musketeers.training import Unwatched

QUICK = PretrainConfig(max_epochs=6, patience=3, tries=2)


class TestContractOfTheFirstDomain(PersonalScorerContract):
    def fit(self, train):
        return self.fit_all(train, "in-domain").factors["camps"]

    def fit_all(self, train, negatives):
        settings = CmfSettings(PretrainConfig(max_epochs=50), negatives)
        return fitted(cmf, joint.camps_twice(train), settings)


class TestContractOfTheSecondDomain(TestContractOfTheFirstDomain):
    def fit(self, train):
        mirror = self.fit_all(train, "in-domain").factors["mirror"]
        return type(mirror)(mirror.users, mirror.items[::-1].copy())


class TestContractWithGlobalNegatives(TestContractOfTheFirstDomain):
    def fit(self, train):
        return self.fit_all(train, "global").factors["camps"]


@pytest.mark.parametrize("negatives", ["in-domain", "global"])
@pytest.mark.parametrize("seed", [0, 1])
def test_shared_taste_makes_every_domain_better_than_alone(seed, negatives):
    splits = planted(
        ("tv", "film", "book"), Seed(seed), common=1.0, pairs_per_user=8, n_users=300
    ).splits
    together = fitted(cmf, splits, CmfSettings(ENOUGH, negatives), seed=seed).factors
    for name, split in splits.items():
        assert ndcg(together[name], split) > ndcg(alone(split, seed=seed), split) + 0.02


def test_one_domain_is_matrix_factorisation():
    """The pooled table of one domain is that domain, so nothing may differ from SMF."""
    split = small()["tv"]
    single = joint.smf(split, QUICK, seed=3)
    both = fitted(cmf, {"tv": split}, CmfSettings(QUICK, "global"), seed=3)
    assert both.factors["tv"].users.tobytes() == single.factors.users.tobytes()
    assert both.factors["tv"].items.tobytes() == single.factors.items.tobytes()
    assert both.regularization == single.regularization
    assert [h.best.valid for h in both.histories] == [h.best.valid for h in single.history]


@pytest.mark.parametrize("negatives", ["in-domain", "global"])
def test_domains_of_different_size_get_their_own_items_back(negatives):
    splits = {
        name: planted((name,), Seed(0), n_users=200, n_items=n_items).splits[name]
        for name, n_items in (("tv", 60), ("film", 25), ("book", 40))
    }
    factors = fitted(cmf, splits, CmfSettings(ENOUGH, negatives)).factors
    for name, split in splits.items():
        assert factors[name].n_items == split.train.n_items
        assert ndcg(factors[name], split) > ndcg(popularity(split.train), split) + 0.05


def test_a_user_has_the_same_vector_everywhere_and_one_known_nowhere_the_mean():
    others = np.delete(np.arange(120), 5)
    splits = {
        name: Split(*(of_users(table, others) for table in (split.train, split.valid, split.test)))
        for name, split in small().items()
    }
    factors = fitted(cmf, splits, CmfSettings(QUICK)).factors
    users = factors["tv"].users
    np.testing.assert_array_equal(users, factors["film"].users)
    mean = np.delete(users, 5, axis=0).mean(axis=0)
    np.testing.assert_allclose(users[5], mean, rtol=1e-5, atol=1e-7)
    assert np.linalg.norm(mean) > 0


def test_a_domain_serves_those_it_has_never_seen_but_others_have():
    splits = planted(("tv", "film"), Seed(0), common=1.0, n_users=300).splits
    strangers, others = np.arange(60), np.arange(60, 300)
    film = Split(
        of_users(splits["film"].train, others),
        of_users(splits["film"].valid, others),
        of_users(splits["film"].test, strangers),
    )
    together = fitted(cmf, {**splits, "film": film}, CmfSettings(ENOUGH)).factors["film"]
    assert ndcg(together, film) > ndcg(alone(film), film) + 0.1


def test_the_mean_of_the_domains_chooses_strength_and_epoch():
    splits = small()
    result = fitted(cmf, splits, CmfSettings(PretrainConfig(max_epochs=10, patience=3, tries=4)))
    looked_at = joint.validations(splits)
    values = [looked_at[name].ndcg(result.factors[name]) for name in splits]
    assert result.history.best.valid == np.mean(values)
    assert result.history.best.valid == max(one.best.valid for one in result.histories)
    assert result.regularization in [PretrainConfig().regularization / 2**n for n in range(4)]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("negatives", ["in-domain", "global"])
def test_the_same_seed_data_and_threads_give_the_same_bits(n_threads, negatives):
    splits, settings = small(), CmfSettings(QUICK, negatives)
    first = joint.bits(fitted(cmf, splits, settings, n_threads=n_threads))
    assert first == joint.bits(fitted(cmf, splits, settings, n_threads=n_threads))
    assert first != joint.bits(fitted(cmf, splits, settings, n_threads=n_threads, seed=1))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_interrupted_fit_goes_on_to_the_same_bits(n_threads):
    splits, settings = small(), CmfSettings(QUICK)
    expected = joint.bits(fitted(cmf, splits, settings, n_threads=n_threads))
    job = joint.Remembering("0.07-0.1", after=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(cmf, splits, settings, n_threads=n_threads, job=job)
    assert joint.bits(fitted(cmf, splits, settings, n_threads=n_threads, job=job)) == expected


def test_negatives_must_have_a_known_name():
    with pytest.raises(ConfigError, match=r"negatives is 'all'; choose one of in-domain, global"):
        CmfSettings(negatives="all")  # type: ignore[arg-type]


def test_domains_that_do_not_match_are_refused():
    splits = small()
    looked_at = joint.validations(splits)
    some = {"tv": looked_at["tv"]}
    with pytest.raises(DataError, match=r"splits are of \['tv', 'film'\], validations of \['tv'\]"):
        cmf(splits, some, CmfSettings(), Seed(0), Unwatched(), dim=4)
    with pytest.raises(DataError, match=r"at least one domain"):
        cmf({}, {}, CmfSettings(), Seed(0), Unwatched(), dim=4)
    fewer = {**splits, "film": small(n_users=50)["film"]}
    with pytest.raises(DataError, match=r"different numbers of users \(\{'tv': 120, 'film': 50\}"):
        cmf(fewer, looked_at, CmfSettings(), Seed(0), Unwatched(), dim=4)
