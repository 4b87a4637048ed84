"""What the tests of several joint models need."""

import numpy as np

from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import planted
from musketeers.evaluation.evaluate import evaluate
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.mf import pretrain
from musketeers.seeding import Seed
from musketeers.training import Unwatched

ENOUGH = PretrainConfig(max_epochs=40, validate_every=1, patience=5, tries=3)


def small(seed=0, **options):
    """Two domains; a few users are known in only one."""
    options = {"n_users": 120, "n_items": 40, "known": 0.7, "common": 0.9, **options}
    return planted(("tv", "film"), Seed(seed), **options).splits


def camps_twice(train):
    """The contract's data as the second of two domains; the first has the items reversed."""
    n = train.n_users
    everyone = np.arange(n)

    def table(users, items):
        return Interactions.from_pairs(users, items, n_users=n, n_items=n)

    nothing = table(everyone[:0], everyone[:0])
    mirrored = table(train.users(), n - 1 - train.items)
    return {
        "mirror": Split(mirrored, table(everyone, n - 1 - everyone), nothing),
        "camps": Split(train, table(everyone, everyone), nothing),
    }


def validations(splits, *, n_threads=1):
    return {name: Validation.of(s, Seed(0), n_threads=n_threads) for name, s in splits.items()}


def fitted(model, splits, settings, *, seed=0, n_threads=1, dim=8, job=None):
    looked_at = validations(splits, n_threads=n_threads)
    return model(splits, looked_at, settings, Seed(seed), job or Unwatched(), dim=dim)


def alone(split, *, seed=0, config=ENOUGH):
    """SMF: what the domain learns without the others."""
    return smf(split, config, seed=seed).factors


def smf(split, config, *, seed):
    looked_at = Validation.of(split, Seed(0), n_threads=1)
    return pretrain(split, looked_at, config, Seed(seed), Unwatched(), dim=8)


def of_users(table, wanted):
    """The pairs of some users alone."""
    keep = np.isin(table.users(), wanted)
    return Interactions.from_pairs(
        table.users()[keep], table.items[keep], n_users=table.n_users, n_items=table.n_items
    )


def ndcg(factors, split):
    return evaluate(factors, split.test, split.seen(), n_threads=1).means()["ndcg@10"]


def bits(result):
    """All that a model learned, as bytes."""
    parts = [part for f in result.factors.values() for part in (f.users, f.items)]
    return b"".join(part.tobytes() for part in parts)


class Memory:
    """A `Checkpoint` that keeps progress in memory and stops after some saves, as a kill would."""

    def __init__(self, saves=None):
        self.saved, self.left = None, saves

    def load(self):
        return self.saved

    def save(self, tensors, about):
        self.saved = {name: value.copy() for name, value in tensors.items()}, dict(about)
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.left = None
                raise KeyboardInterrupt


class Remembering:
    """A `Job` with one `Memory` for each part; the part `stops` is interrupted once."""

    def __init__(self, stops, after):
        self.places = {stops: Memory(after)}

    def checkpoint(self, part):
        return self.places.setdefault(part, Memory())

    def on_epoch(self, epoch):
        pass
