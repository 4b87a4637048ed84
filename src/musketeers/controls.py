"""What a gain is held against: the same stages, with one thing taken away or put in.

A gain over a domain alone may come from other things than other domains' knowledge.  Where
nothing is to be learned from them, by the items control and the shuffled alignment, no gain may
remain; where there is noise to be learned from, no harm may come of it.

A control keeps its progress under the names of the stages it repeats, so in a run folder it
needs `jobs` of its own.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from musketeers.art.train import Transferred
from musketeers.cat.train import align
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.data.synthetic import planted
from musketeers.errors import DataError
from musketeers.execution import Jobs
from musketeers.pipeline import art, exchanged
from musketeers.pretrain.mf import Pretrained
from musketeers.seeding import Seed


def items_control(
    splits: Mapping[str, Split],
    alone: Mapping[str, Pretrained],
    config: RunConfig,
    jobs: Jobs,
    *,
    n_threads: int,
) -> dict[str, Transferred]:
    """Stage 3 of every domain, told nothing: users stay, items are trained on.

    What CAT-ART gains beyond this control is not due to the longer training of its items.
    """
    hidden = exchanged(splits, alone).hidden()
    nothing = np.zeros_like(hidden.values[:, 0])
    return art(splits, alone, hidden, nothing, config, jobs, n_threads=n_threads)


def shuffled_alignment(
    splits: Mapping[str, Split],
    alone: Mapping[str, Pretrained],
    config: RunConfig,
    jobs: Jobs,
    *,
    n_threads: int,
) -> dict[str, Transferred]:
    """Stages 2 and 3 of every domain, told of strangers: nobody is the same user in two domains.

    Each domain's users are permuted, those it does not know included, before CAT sees them.  A
    target keeps its own users; the others' vectors, and the shared embeddings made with them,
    tell nothing of those.  What remains of a gain is due to the items, or to the larger model.
    """
    seed, shared = Seed(config.seed), exchanged(splits, alone)
    n_users = len(shared.known)
    orders = np.stack(
        [seed.child("shuffled", name).numpy().permutation(n_users) for name in shared.domains],
        axis=1,
    )
    strangers = replace(
        shared,
        values=np.take_along_axis(shared.values, orders[:, :, None], axis=0),
        known=np.take_along_axis(shared.known, orders, axis=0),
    )
    job = jobs("cat", None, config.cat.max_epochs)
    aligned = align(strangers, config.cat, seed.child("cat"), job, n_threads=n_threads).users
    found: dict[str, Transferred] = {}
    for name, split in splits.items():
        back = np.argsort(orders[:, shared.index(name)])
        told = replace(strangers, values=strangers.values[back], known=strangers.known[back])
        found |= art({name: split}, alone, told, aligned[back], config, jobs, n_threads=n_threads)
    return found


def with_noise_domain(
    splits: Mapping[str, Split],
    seed: Seed,
    *,
    name: str = "noise",
    n_items: int = 1000,
    pairs_per_user: int = 12,
) -> dict[str, Split]:
    """The domains, and after them one in which all users like items drawn uniformly at random.

    No user likes an item twice; the new domain is split at random by the default shares.
    Whatever the others lose with it is harm, as it has nothing to tell.

    Raises `DataError` if the name is taken, or if there are fewer items than a user likes.
    """
    if name in splits:
        raise DataError(f"there is a domain {name!r} already; give the noise another name")
    if pairs_per_user > n_items:
        raise DataError(
            f"nobody can like {pairs_per_user} of {n_items} items; raise n_items or lower "
            "pairs_per_user"
        )
    n_users = next(iter(splits.values())).train.n_users
    noise = planted(
        (name,), seed, n_users=n_users, n_items=n_items, dim=0, pairs_per_user=pairs_per_user
    )
    return {**splits, **noise.splits}
