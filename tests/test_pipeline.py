"""The method's claim on planted data: transfer helps where taste is shared, and nowhere harms."""

import os
from pathlib import Path

import numpy as np
import pytest

from musketeers.baselines.popularity import popularity
from musketeers.cat.train import align
from musketeers.config import ArtConfig, CatConfig, DataConfig, PretrainConfig, RunConfig
from musketeers.controls import items_control
from musketeers.data import readers
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.data.splits import split
from musketeers.data.synthetic import planted
from musketeers.evaluation.evaluate import evaluate
from musketeers.exchange import UserEmbeddings
from musketeers.pipeline import cat_art, smf
from musketeers.seeding import Seed
from musketeers.task import unwatched
from musketeers.training import Unwatched

NAMES = ("a", "b", "c")
REAL = Path(os.environ.get("MUSKETEERS_DATA", Path(__file__).parents[2] / "shared" / "data"))


def settings(seed=0, **sections):
    return RunConfig(
        **{
            "seed": seed,
            "dim": 8,
            "data": DataConfig(domains=dict.fromkeys(NAMES, "-")),
            "pretrain": PretrainConfig(max_epochs=20, patience=4, tries=1, regularization=0.05),
            "cat": CatConfig(max_epochs=20),
            "art": ArtConfig(max_epochs=30),
            **sections,
        }
    )


def trained(splits, config, *, n_threads=1):
    return cat_art(splits, config, unwatched, n_threads=n_threads)


def ndcg(scorer, test, seen):
    return evaluate(scorer, test, seen, n_threads=1).means()["ndcg@10"]


def mean_ndcg(models, splits):
    """Over the domains; `models` are stage 1's or stage 3's."""
    return np.mean([ndcg(models[n].factors, s.test, s.seen()) for n, s in splits.items()])


def gains(splits, seed):
    """NDCG@10 of CAT-ART less that of every domain alone, and less that of the control.

    The control trains the items on just as long, but sees no other domain.
    """
    config = settings(seed)
    models = trained(splits, config)
    control = items_control(splits, models.alone, config, unwatched, n_threads=1)
    reached = mean_ndcg(models.transferred, splits)
    return reached - mean_ndcg(models.alone, splits), reached - mean_ndcg(control, splits)


def bits(models):
    parts = [
        made.factors for table in (models.alone, models.transferred) for made in table.values()
    ]
    return [array.tobytes() for f in parts for array in (f.users, f.items)] + [
        models.aligned.users.tobytes()
    ]


def test_shared_taste_makes_every_domain_better():
    """By other domains' knowledge, and not by the longer training of its items."""
    found = [gains(planted(NAMES, Seed(s), common=0.9).splits, s) for s in range(3)]
    assert np.min(found) > 0.01
    assert np.mean(found, axis=0).min() > 0.02


def test_private_taste_neither_helps_nor_harms():
    found = [gains(planted(NAMES, Seed(s), common=0.0).splits, s) for s in range(3)]
    assert np.abs(found).max() < 0.015
    assert np.abs(np.mean(found, axis=0)).max() < 0.0075


@pytest.mark.parametrize("n_threads", [1, 2])
def test_two_runs_are_the_same_to_the_bit(n_threads):
    splits = planted(NAMES, Seed(0), n_users=150, known=0.8).splits
    short = {
        "pretrain": PretrainConfig(max_epochs=4, tries=2),
        "cat": CatConfig(max_epochs=3),
        "art": ArtConfig(max_epochs=3),
    }
    first = bits(trained(splits, settings(**short), n_threads=n_threads))
    assert bits(trained(splits, settings(**short), n_threads=n_threads)) == first
    assert bits(trained(splits, settings(1, **short), n_threads=n_threads)) != first


def test_a_stage_is_the_same_run_by_hand():
    """`cat_art` is its stages, one after the other, and hands on nothing else."""
    splits = planted(NAMES, Seed(0), n_users=100, known=0.8).splits
    short = PretrainConfig(max_epochs=3, tries=1)
    config = settings(pretrain=short, cat=CatConfig(max_epochs=2), art=ArtConfig(max_epochs=2))
    models = trained(splits, config)
    known = {name: one.train.known_users() for name, one in splits.items()}
    shared = UserEmbeddings.collect({n: models.alone[n].factors.users for n in NAMES}, known)
    aligned = align(shared, config.cat, Seed(0).child("cat"), Unwatched(), n_threads=1)
    assert aligned.users.tobytes() == models.aligned.users.tobytes()


def test_a_domain_learns_alone_whoever_else_is_there():
    config = settings(pretrain=PretrainConfig(max_epochs=4, tries=2))
    few, many = (planted(names, Seed(0), n_users=120).splits for names in (("a", "b"), NAMES))
    alone = smf(few, config, unwatched, n_threads=1)
    together = smf(dict(reversed(many.items())), config, unwatched, n_threads=1)
    for name in ("a", "b"):
        for part in ("users", "items"):
            one, other = (getattr(m[name].factors, part) for m in (alone, together))
            assert one.tobytes() == other.tobytes()


def only(table, keep):
    return Interactions.from_sorted(
        table.users()[keep], table.items[keep], n_users=table.n_users, n_items=table.n_items
    )


def without_history(splits, target, rng):
    """A fifth of the users forgotten in `target`, if another domain knows them.

    Gives the splits, and all that the forgotten users liked there.
    """
    whole = splits[target]
    elsewhere = [s.train.known_users() for name, s in splits.items() if name != target]
    cold = whole.train.known_users() & np.any(elsewhere, axis=0)
    cold &= rng.random(len(cold)) < 0.2
    parts = whole.train, whole.valid, whole.test
    kept = Split(*(only(part, ~cold[part.users()]) for part in parts))
    everything = whole.seen().union(whole.test)
    return {**splits, target: kept}, only(everything, cold[everything.users()])


def test_users_of_some_domains_only_are_served_well_where_they_are_new():
    for seed in range(3):
        splits = planted(NAMES, Seed(seed), common=0.9, known=0.6).splits
        splits, wanted = without_history(splits, "a", np.random.default_rng(seed))
        models = trained(splits, settings(seed, dim=16))
        assert mean_ndcg(models.transferred, splits) > mean_ndcg(models.alone, splits) + 0.01
        seen = splits["a"].seen()
        personal = ndcg(models.transferred["a"].factors, wanted, seen)
        popular = ndcg(popularity(splits["a"].train), wanted, seen)
        assert personal > popular + 0.08


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d")])
def test_any_number_of_domains_from_two(names):
    splits = planted(names, Seed(0), n_users=60, known=0.8).splits
    data = DataConfig(domains=dict.fromkeys(names, "-"))
    short = PretrainConfig(max_epochs=2, tries=1)
    config = settings(
        data=data, pretrain=short, cat=CatConfig(max_epochs=2), art=ArtConfig(max_epochs=2)
    )
    models = trained(splits, config)
    for name in names:
        made = models.transferred[name]
        assert made.attention.keys() == ({*names} - {name} if made.kept else set())
        assert np.isfinite(models.transferred[name].factors.users).all()


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="no real data; set MUSKETEERS_DATA to its folder")
def test_a_few_epochs_on_real_data_beat_popularity():
    files = {name: f"anime/{name}.parquet" for name in ("movie", "special")}
    reading = readers.read(DataConfig(domains=files), base=REAL)
    config = settings(dim=32, pretrain=PretrainConfig(max_epochs=8, tries=1, regularization=0.07))
    splits = split(reading.domains, config.split, Seed(0))
    models = smf(splits, config, unwatched, n_threads=1)
    for name, one in splits.items():
        seen = one.seen()
        alone = ndcg(models[name].factors, one.test, seen)
        assert alone > ndcg(popularity(one.train), one.test, seen) + 0.02
