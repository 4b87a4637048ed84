"""Models to serve: vectors of realistic spread, for our server and for the naive one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from musketeers.data.domains import Domain
from musketeers.data.interactions import Interactions
from musketeers.data.vocabulary import Vocabulary
from musketeers.ranking import Factors
from musketeers.recommender import DomainModel, Recommender
from musketeers.seeding import Seed

DOMAIN, DIM = "main", 64
STRANGER = 10_000_019
"""No user of any model here: all ids are even."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a model with one domain."""

    items: int
    users: int
    seen: float = 20.0
    """Items of a user, on average."""


def made(size: Size, seed: int = 0) -> Recommender:
    """Random vectors whose norms vary as trained ones do; what users have seen is skewed, too.

    Norms of items are lognormal and grow with popularity, so lists repeat popular items, and no
    bound rules out more of the catalogue than in trained models (rank.py measures those).
    """
    rng = Seed(seed, ("serve",)).numpy()
    items = rng.standard_normal((size.items, DIM), dtype=np.float32)
    popularity = np.exp(rng.standard_normal(size.items))
    items *= (popularity**0.4 / np.sqrt(DIM))[:, None].astype(np.float32)
    users = rng.standard_normal((size.users, DIM), dtype=np.float32)
    users *= np.exp(0.3 * rng.standard_normal((size.users, 1))).astype(np.float32)
    counts = np.minimum(rng.geometric(1 / size.seen, size.users), size.items // 2)
    bounds = np.cumsum(popularity / popularity.sum())
    drawn = np.searchsorted(bounds, rng.random(int(counts.sum())) * bounds[-1])
    pairs = Interactions.from_pairs(
        np.repeat(np.arange(size.users), counts), drawn,
        n_users=size.users, n_items=size.items,
    )  # fmt: skip
    domain = Domain(_ids(size.items, step=3), pairs)
    model = DomainModel.of(domain, Factors(users, items), train=pairs, transfers=False)
    return Recommender.of(_ids(size.users, step=2), {DOMAIN: model}, {"model": {DOMAIN: "smf"}})


def write_naive(recommender: Recommender, folder: Path) -> None:
    """The same as plain arrays, for naive_service.py, in the new `folder`."""
    folder.mkdir()
    model = recommender.domains[DOMAIN]
    assert isinstance(model.scorer, Factors)
    arrays = {
        "users": model.scorer.users,
        "items": model.scorer.items,
        "popular": model.popularity.items[:, 0],
        "indptr": model.seen.indptr,
        "seen": model.seen.items,
        "user_ids": recommender.users.values.to_numpy(),
        "item_ids": model.items.values.to_numpy(),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _ids(count: int, *, step: int) -> Vocabulary:
    return Vocabulary.of(pl.Series(np.arange(count) * step + 1000))
