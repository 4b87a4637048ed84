"""Stage 1 of one domain, by whichever method."""

from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.given import Given, factors
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.pretrain.settled import settled
from musketeers.seeding import Seed
from musketeers.training import Epoch, History, Job


def learn_alone(
    name: str,
    split: Split,
    validation: Validation,
    given: Given | None,
    config: RunConfig,
    seed: Seed,
    job: Job,
) -> Pretrained:
    """The domain by itself, by its method in the settings; `given` are vectors made elsewhere.

    Bit by bit the same whatever users other domains have: it learns from its own users alone, as
    it would where nobody else is known.  All others get the mean user's vector.
    """
    own = np.flatnonzero(split.train.known_users())
    given = given and replace(given, users=given.users[own])
    seen = replace(validation, split=_of(split, own), users=np.searchsorted(own, validation.users))
    made = _learned(name, seen.split, seen, given, config, seed, job)
    return made.placed(own, n_users=split.train.n_users)


def _of(split: Split, own: Int64[np.ndarray, " user"]) -> Split:
    """The split over these users alone, whose training pairs are all there are, not copied."""
    train = split.train
    return Split(
        Interactions.from_csr(
            np.append(train.indptr[own], len(train)), train.items, n_items=train.n_items
        ),
        split.valid.of_each(own),
        split.test.of_each(own),
    )


def _learned(
    name: str,
    split: Split,
    validation: Validation,
    given: Given | None,
    config: RunConfig,
    seed: Seed,
    job: Job,
) -> Pretrained:
    """What `learn_alone` makes, over the users of `split`, who all have training pairs."""
    method = config.pretrain.method_of(name)
    if method == "bpr":
        return pretrain(split, validation, config.pretrain, seed, job, dim=config.dim)
    if method == "ials":
        how = config.pretrain
        settings = IalsSettings(max_epochs=how.max_epochs, tries=how.tries)
        made = ials(split, validation, settings, seed, job, dim=config.dim)
        return settled(made.factors, split, how, seed, made.histories)
    if given is None:
        raise ValueError(f"no vectors are given for {name}")
    found = factors(given, split.train, dim=config.dim, n_threads=validation.n_threads)
    start = Epoch(0, None, validation.ndcg(found), 0.0, 0.0)
    job.on_epoch(start)
    return settled(found, split, config.pretrain, seed, (History((start,)),))
