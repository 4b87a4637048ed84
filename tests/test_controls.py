"""What a gain is held against: controls in which other domains have nothing to tell."""

import numpy as np
import pytest
from scipy.stats import chisquare

from musketeers import controls
from musketeers.cat.train import Aligned
from musketeers.config import ArtConfig, CatConfig, DataConfig, PretrainConfig, RunConfig
from musketeers.controls import items_control, shuffled_alignment, with_noise_domain
from musketeers.data.synthetic import planted
from musketeers.errors import DataError
from musketeers.evaluation.evaluate import evaluate
from musketeers.pipeline import art, cat_art, exchanged, smf, validations
from musketeers.seeding import Seed
from musketeers.task import unwatched
from musketeers.training import History

NAMES = ("a", "b", "c")


def settings(names=NAMES, seed=0):
    return RunConfig(
        seed=seed,
        dim=8,
        data=DataConfig(domains=dict.fromkeys(names, "-")),
        pretrain=PretrainConfig(max_epochs=20, patience=4, tries=1, regularization=0.05),
        cat=CatConfig(max_epochs=20),
        art=ArtConfig(max_epochs=20),
    )


@pytest.fixture(scope="module")
def splits():
    return planted(NAMES, Seed(0), common=0.9, known=0.8).splits


@pytest.fixture(scope="module")
def models(splits):
    return cat_art(splits, settings(), unwatched, n_threads=1)


@pytest.fixture(scope="module")
def control(splits, models):
    return items_control(splits, models.alone, settings(), unwatched, n_threads=1)


@pytest.fixture(scope="module")
def shuffled(splits, models):
    return shuffled_alignment(splits, models.alone, settings(), unwatched, n_threads=1)


def ndcg(models, splits):
    """Mean over the domains."""
    return np.mean(
        [
            evaluate(models[name].factors, one.test, one.seen(), n_threads=1).means()["ndcg@10"]
            for name, one in splits.items()
        ]
    )


def bits(found):
    return [array.tobytes() for m in found.values() for array in (m.factors.users, m.factors.items)]


def test_the_items_control_trains_items_and_never_users(splits, models, control):
    for name in NAMES:
        alone = models.alone[name].factors
        assert control[name].factors.users.tobytes() == alone.users.tobytes()
        losses = [epoch.train_loss for epoch in control[name].history.epochs]
        assert len(set(losses)) == len(losses) > 2


def test_the_items_control_does_not_depend_on_what_the_domains_share(splits, models, control):
    """It is stage 3 of the same seed, with nobody known elsewhere."""
    hidden = exchanged(splits, models.alone).hidden()
    aligned = models.aligned.users
    again = art(splits, models.alone, hidden, aligned, settings(), unwatched, n_threads=1)
    assert bits(again) == bits(control)


def test_among_strangers_the_gain_is_gone(splits, models, control, shuffled):
    floor = ndcg(control, splits)
    assert ndcg(models.transferred, splits) > floor + 0.015
    assert ndcg(shuffled, splits) < floor + 0.004


@pytest.mark.parametrize("seed", [1, 2])
def test_among_strangers_nothing_but_items_can_gain(seed):
    """The rule of one standard error lets luck through in one domain of six."""
    splits = planted(NAMES, Seed(seed), common=0.9, known=0.8).splits
    config = settings(seed=seed)
    config = config.model_copy(update={"art": ArtConfig(items="fixed", max_epochs=20)})
    alone = smf(splits, config, unwatched, n_threads=1)
    found = shuffled_alignment(splits, alone, config, unwatched, n_threads=1)
    assert ndcg(found, splits) == pytest.approx(ndcg(alone, splits), abs=0.002)
    assert sum(made.kept for made in found.values()) <= 1


def test_among_strangers_a_target_starts_from_its_own_model(splits, models, shuffled):
    looked_at = validations(splits, Seed(0), n_threads=1)
    for name in NAMES:
        start = shuffled[name].history.epochs[0].valid
        assert start == looked_at[name].ndcg(models.alone[name].factors)


def test_strangers_are_whole_domains_permuted_but_for_the_target(splits, models, monkeypatch):
    told = {}

    def noted(part, alone, shared, aligned, *_, **__):
        (name,) = part
        told[name] = shared, aligned
        return {}

    monkeypatch.setattr(controls, "art", noted)
    # what CAT would make of a user is here the user's vector in the first domain
    monkeypatch.setattr(
        controls,
        "align",
        lambda shared, *_, **__: Aligned(shared.values[:, 0], 1.0, {}, History(())),
    )
    shuffled_alignment(splits, models.alone, settings(), unwatched, n_threads=1)
    true = exchanged(splits, models.alone)
    for target, (shared, aligned) in told.items():
        np.testing.assert_array_equal(aligned, shared.values[:, 0])
        for column, name in enumerate(NAMES):
            same = (shared.values[:, column] == true.values[:, column]).all(1)
            known = shared.known[:, column]
            assert same.all() if name == target else same[known].mean() < 0.05
            assert known.sum() == true.known[:, column].sum()
            assert not shared.values[~known, column].any()
            ordered = (np.sort(of.values[:, column], axis=0) for of in (shared, true))
            np.testing.assert_array_equal(*ordered)


def test_strangers_depend_on_the_seed_alone(splits):
    short = settings().model_copy(
        update={
            "pretrain": PretrainConfig(max_epochs=3, tries=1),
            "cat": CatConfig(max_epochs=2),
            "art": ArtConfig(max_epochs=2),
        }
    )
    alone = smf(splits, short, unwatched, n_threads=1)

    def losses(config):
        found = shuffled_alignment(splits, alone, config, unwatched, n_threads=1)
        return [epoch.train_loss for made in found.values() for epoch in made.history.epochs]

    assert losses(short) == losses(short)
    assert losses(short) != losses(short.model_copy(update={"seed": 1}))


def test_noise_is_one_more_domain_in_which_everybody_likes_anything(splits):
    found = with_noise_domain(splits, Seed(1), n_items=50, pairs_per_user=10)
    assert list(found) == [*NAMES, "noise"]
    assert all(found[name] is splits[name] for name in NAMES)
    noise = found["noise"]
    counts = [part.counts() for part in (noise.train, noise.valid, noise.test)]
    assert [np.unique(of).tolist() for of in counts] == [[6], [2], [2]]
    everything = noise.seen().union(noise.test)
    assert everything.n_users == splits["a"].train.n_users
    assert (everything.counts() == 10).all()
    assert chisquare(everything.item_counts()).pvalue > 0.01
    again = with_noise_domain(splits, Seed(1), n_items=50, pairs_per_user=10)["noise"]
    assert again.train.items.tobytes() == noise.train.items.tobytes()
    other = with_noise_domain(splits, Seed(2), n_items=50, pairs_per_user=10)["noise"]
    assert other.train.items.tobytes() != noise.train.items.tobytes()


def test_two_items_of_noise_have_nothing_in_common(splits):
    """How often two items are liked together is what chance makes it: no taste is behind it."""
    noise = with_noise_domain(splits, Seed(0), n_items=20, pairs_per_user=10)["noise"]
    everything = noise.seen().union(noise.test)
    liked = np.zeros((everything.n_users, 20))
    liked[everything.users(), everything.items] = 1
    together = (liked.T @ liked)[np.triu_indices(20, 1)] / len(liked)
    expected = 10 / 20 * 9 / 19
    spread = np.sqrt(expected * (1 - expected) / len(liked))
    assert np.abs(together - expected).max() < 4.5 * spread


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "b"}, "there is a domain 'b' already; give the noise another name"),
        ({"n_items": 5, "pairs_per_user": 6}, "nobody can like 6 of 5 items; raise n_items"),
    ],
)
def test_noise_that_cannot_be_is_refused(splits, settings, message):
    with pytest.raises(DataError, match=message):
        with_noise_domain(splits, Seed(0), **settings)


def test_a_domain_of_noise_takes_little_from_the_gain(splits, models):
    noisy = with_noise_domain(splits, Seed(0), n_items=80)
    config = settings(tuple(noisy))
    found = cat_art(noisy, config, unwatched, n_threads=1)
    for name in NAMES:
        assert (
            found.alone[name].factors.users.tobytes() == models.alone[name].factors.users.tobytes()
        )
    with_noise = ndcg({name: found.transferred[name] for name in NAMES}, splits)
    assert with_noise > ndcg(models.alone, splits) + 0.01
    assert with_noise > ndcg(models.transferred, splits) - 0.01
