"""MPF: a taste that users have everywhere, and one for each domain."""

import joint
import numpy as np
import pytest
from contract import PersonalScorerContract
from joint import ENOUGH, alone, fitted, ndcg, of_users, small

from musketeers.baselines.cmf import CmfSettings, cmf
from musketeers.baselines.mpf import MpfSettings, mpf
from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.data.synthetic import planted
from musketeers.errors import ConfigError, DataError
from musketeers.seeding import Seed
from musketeers.training import Unwatched

QUICK = PretrainConfig(max_epochs=6, patience=3, tries=2)


class TestContractOfTheFirstDomain(PersonalScorerContract):
    def fit(self, train):
        return self.fit_all(train)["camps"]

    def fit_all(self, train):
        settings = MpfSettings(PretrainConfig(max_epochs=50))
        return fitted(mpf, joint.camps_twice(train), settings).factors


class TestContractOfTheSecondDomain(TestContractOfTheFirstDomain):
    def fit(self, train):
        mirror = self.fit_all(train)["mirror"]
        return type(mirror)(mirror.users, mirror.items[::-1].copy())


@pytest.mark.parametrize("seed", [0, 1])
def test_shared_taste_makes_every_domain_better_than_alone(seed):
    splits = planted(
        ("tv", "film", "book"), Seed(seed), common=1.0, pairs_per_user=8, n_users=300
    ).splits
    together = fitted(mpf, splits, MpfSettings(ENOUGH), seed=seed).factors
    for name, split in splits.items():
        assert ndcg(together[name], split) > ndcg(alone(split, seed=seed), split) + 0.02


@pytest.mark.parametrize("seed", [0, 1])
def test_private_taste_costs_less_than_with_one_vector_for_all_domains(seed):
    splits = planted(("tv", "film"), Seed(seed), common=0.0, n_users=300).splits
    apart, shared = (
        fitted(model, splits, settings, seed=seed, dim=4).factors
        for model, settings in ((mpf, MpfSettings(ENOUGH, 0.3)), (cmf, CmfSettings(ENOUGH)))
    )
    for name, split in splits.items():
        assert ndcg(apart[name], split) > ndcg(shared[name], split) + 0.02


def test_a_user_known_in_one_domain_has_the_common_vector_everywhere():
    splits = small()
    factors = fitted(mpf, splits, MpfSettings(QUICK)).factors
    known = np.sum([split.train.known_users() for split in splits.values()], axis=0)
    tv, film = factors["tv"].users, factors["film"].users
    assert (known == 1).sum() > 10
    np.testing.assert_array_equal(tv[known == 1], film[known == 1])
    assert (np.abs(tv - film)[known == 2].max(axis=1) > 1e-4).all()


def test_a_user_unknown_in_a_domain_has_the_common_vector_and_one_known_nowhere_the_mean():
    everyone = np.arange(120)
    tv, film, book = planted(
        ("tv", "film", "book"), Seed(0), n_users=120, n_items=40
    ).splits.items()
    missing = {"tv": [5], "film": [5, 6, 7], "book": [5, 6, 8]}
    splits = {
        name: Split(
            *(
                of_users(table, np.delete(everyone, missing[name]))
                for table in (split.train, split.valid, split.test)
            )
        )
        for name, split in (tv, film, book)
    }
    users = {name: f.users for name, f in fitted(mpf, splits, MpfSettings(QUICK)).factors.items()}
    # 6 is known in tv alone; 7 in tv and book, and 8 in tv and film, so elsewhere ubar is bare
    np.testing.assert_array_equal(users["film"][6], users["tv"][6])
    assert np.abs(users["film"][7] - users["book"][7]).max() > 1e-4
    assert np.abs(users["film"][7] - users["tv"][7]).max() > 1e-4
    for name in splits:
        np.testing.assert_array_equal(users[name][5], users["tv"][5])
    assert np.linalg.norm(users["tv"][5]) > 0


@pytest.mark.parametrize(
    "settings", [MpfSettings(QUICK, own_strength=1e6), MpfSettings(QUICK, 0.5, {"tv": 1e6})]
)
def test_a_domain_with_a_strong_prior_keeps_to_the_common_taste(settings):
    """An overwhelming pull to zero steps on any Delta at once; a weak one lets it grow."""
    splits = planted(("tv", "film"), Seed(0), n_users=120, n_items=40).splits
    strong, free = (fitted(mpf, splits, s).factors for s in (settings, MpfSettings(QUICK, 0.5)))
    gap = {name: np.abs(f["tv"].users - f["film"].users).mean() for name, f in
           (("strong", strong), ("free", free))}  # fmt: skip
    assert gap["strong"] < gap["free"]


def test_the_mean_of_the_domains_chooses_strength_and_epoch():
    splits = small()
    result = fitted(mpf, splits, MpfSettings(PretrainConfig(max_epochs=10, patience=3, tries=4)))
    looked_at = joint.validations(splits)
    values = [looked_at[name].ndcg(result.factors[name]) for name in splits]
    assert result.history.best.valid == np.mean(values)
    assert result.history.best.valid == max(one.best.valid for one in result.histories)
    assert result.regularization in [PretrainConfig().regularization / 2**n for n in range(4)]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_same_seed_data_and_threads_give_the_same_bits(n_threads):
    splits, settings = small(), MpfSettings(QUICK)
    first = joint.bits(fitted(mpf, splits, settings, n_threads=n_threads))
    assert first == joint.bits(fitted(mpf, splits, settings, n_threads=n_threads))
    assert first != joint.bits(fitted(mpf, splits, settings, n_threads=n_threads, seed=1))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_interrupted_fit_goes_on_to_the_same_bits(n_threads):
    splits, settings = small(), MpfSettings(QUICK)
    expected = joint.bits(fitted(mpf, splits, settings, n_threads=n_threads))
    job = joint.Remembering("0.07-0.1", after=3)
    with pytest.raises(KeyboardInterrupt):
        fitted(mpf, splits, settings, n_threads=n_threads, job=job)
    assert joint.bits(fitted(mpf, splits, settings, n_threads=n_threads, job=job)) == expected


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strengths_are_numbers_from_0(strength):
    with pytest.raises(ConfigError, match=rf"own_strength: a strength of {strength}; use"):
        MpfSettings(own_strength=strength)
    with pytest.raises(ConfigError, match=rf"tv: a strength of {strength}; use"):
        MpfSettings(own_strengths={"tv": strength})


def test_bad_domains_are_refused():
    splits = small()
    looked_at = joint.validations(splits)
    settings = MpfSettings(own_strengths={"zoo": 1.0, "book": 1.0})
    with pytest.raises(ConfigError, match=r"own_strengths names book, zoo; domains are tv, film"):
        mpf(splits, looked_at, settings, Seed(0), Unwatched(), dim=4)
    with pytest.raises(DataError, match=r"give one of each"):
        mpf(splits, {"tv": looked_at["tv"]}, MpfSettings(), Seed(0), Unwatched(), dim=4)
