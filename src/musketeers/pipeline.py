"""CAT-ART from end to end.  Read this file first: it is the method's table of contents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from musketeers.art.train import Transferred, served, transfer
from musketeers.cat.train import Aligned, align
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.execution import Jobs
from musketeers.heads.choice import Chosen, choose
from musketeers.pretrain.alone import learn_alone
from musketeers.pretrain.given import Given
from musketeers.pretrain.mf import Pretrained
from musketeers.ranking import Factors
from musketeers.seeding import Seed

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Models:
    """What the stages made, by domain; what was not asked for is empty."""

    alone: Mapping[str, Pretrained] = field(default_factory=dict[str, Pretrained])
    aligned: Aligned | None = None
    transferred: Mapping[str, Transferred] = field(default_factory=dict[str, Transferred])
    shared: UserEmbeddings | None = None
    """What the domains told each other, where some of them are not here; else it follows."""

    def told(self, splits: Mapping[str, Split]) -> UserEmbeddings:
        """What the domains told each other."""
        return self.shared or exchanged(splits, self.alone)

    def known_elsewhere(
        self, target: str, hidden: Sequence[str] = ()
    ) -> Bool[np.ndarray, " user"] | None:
        """Whom domains know that are not here and not `hidden`; None if all are here."""
        if self.shared is None:
            return None
        names = self.shared.domains
        others = [n for n, name in enumerate(names) if name not in (target, *hidden)]
        return np.logical_or.reduce(self.shared.known[:, others], axis=1)


_NO_MODELS = Models()


def cat_art(
    splits: Mapping[str, Split],
    config: RunConfig,
    jobs: Jobs,
    *,
    n_threads: int,
    given: Mapping[str, Given] = _NOTHING,
    done: Models = _NO_MODELS,
) -> Models:
    """Every domain's model before and after it learned from the others.

    What is `done` already, here or by other parties, is taken as it is.
    """
    # 1. Pretrain: every domain learns alone.
    learning = {name: split for name, split in splits.items() if name not in done.alone}
    learned = {**done.alone, **smf(learning, config, jobs, n_threads=n_threads, given=given)}
    made = replace(done, alone={name: learned[name] for name in splits})

    # 2. Exchange: the users' embeddings leave the domains, and nothing else does.
    shared = made.told(splits)

    # 3. Align, one for all: CAT finds what of a user is the same everywhere.
    aligned = done.aligned or one_for_all(shared, config, jobs, n_threads=n_threads)

    # 4. Transfer, all for one: ART lets each domain take from the others what helps it.
    transferred = art(splits, made.alone, shared, aligned.users, config, jobs, n_threads=n_threads)
    return replace(made, aligned=aligned, transferred=transferred)


def smf(
    splits: Mapping[str, Split],
    config: RunConfig,
    jobs: Jobs,
    *,
    n_threads: int,
    given: Mapping[str, Given] = _NOTHING,
) -> dict[str, Pretrained]:
    """Every domain's model by itself; all there is to do for one domain.

    `given` has the vectors of the domains that do not train but bring theirs.
    """
    seed = Seed(config.seed)
    looked_at = validations(splits, seed, n_threads=n_threads)
    learning = {
        name: partial(
            learn_alone, name, split, looked_at[name], given.get(name), config,
            seed.child("pretrain", name),
        )
        for name, split in splits.items()
    }  # fmt: skip
    return jobs.each("pretrain", learning, max_epochs=config.pretrain.max_epochs, dim=config.dim)


def exchanged(splits: Mapping[str, Split], alone: Mapping[str, Pretrained]) -> UserEmbeddings:
    """What the domains tell each other."""
    known = {name: split.train.known_users() for name, split in splits.items()}
    return UserEmbeddings.collect({name: alone[name].factors.users for name in splits}, known)


def one_for_all(
    shared: UserEmbeddings, config: RunConfig, jobs: Jobs, *, n_threads: int
) -> Aligned:
    """What CAT makes of what the domains tell."""
    job = jobs("cat", None, config.cat.max_epochs)
    return align(shared, config.cat, Seed(config.seed).child("cat"), job, n_threads=n_threads)


def art(
    splits: Mapping[str, Split],
    alone: Mapping[str, Pretrained],
    shared: UserEmbeddings,
    aligned: Float32[np.ndarray, "user dim"],
    config: RunConfig,
    jobs: Jobs,
    *,
    n_threads: int,
) -> dict[str, Transferred]:
    """Every domain of `splits` after it learned from what is `shared`."""
    seed = Seed(config.seed)
    looked_at = validations(splits, seed, n_threads=n_threads)
    learning = {
        name: partial(
            transfer, name, split, looked_at[name], alone[name], shared, aligned,
            config, seed.child("art", name),
        )
        for name, split in splits.items()
    }  # fmt: skip
    return jobs.each("art", learning, max_epochs=config.art.max_epochs, dim=config.dim)


def choices(
    splits: Mapping[str, Split],
    made: Models,
    config: RunConfig,
    jobs: Jobs,
    *,
    n_threads: int,
    max_bytes: int,
) -> dict[str, Chosen]:
    """Beyond the paper: what each domain is served, its own best model or a better told one."""
    seed, shared = Seed(config.seed), made.told(splits)
    looked_at = validations(splits, seed, n_threads=n_threads)
    found: dict[str, Chosen] = {}
    for name, split in splits.items():
        job, told = jobs("choice", name, 0), made.transferred.get(name)
        found[name] = choose(
            name, looked_at[name], shared, alone=made.alone[name].factors,
            aligned=made.aligned.users if made.aligned else None,
            transferred=told.factors if told else None,
            hidden=new_here(name, split, made, shared, config) if told else None,
            config=config.choice, seed=seed.child("choice", name), job=job, max_bytes=max_bytes,
        )  # fmt: skip
    return found


def new_here(
    target: str, split: Split, made: Models, shared: UserEmbeddings, config: RunConfig
) -> Factors:
    """CAT-ART of the target as it serves users whom only other domains know, for every user."""
    alone = made.alone[target]
    mean = alone.factors.users[split.train.known_users()].mean(axis=0)
    anybody = replace(
        alone, factors=replace(alone.factors, users=np.tile(mean, (len(shared.known), 1)))
    )
    strangers = replace(made, alone={**made.alone, target: anybody})
    return served_with(shared.hidden(target), target, strangers, config)


def served_with(shared: UserEmbeddings, target: str, made: Models, config: RunConfig) -> Factors:
    """CAT-ART of the target as it is, told in both stages what is `shared` here, such as less.

    Told what it learned from, bit by bit what stage 3 made.
    """
    if made.aligned is None:
        raise ValueError("there is no stage 2 yet")
    aligned = made.aligned.of(shared)
    return served(target, made.transferred[target], made.alone[target], shared, aligned, config)


def validations(
    splits: Mapping[str, Split], seed: Seed, *, n_threads: int
) -> dict[str, Validation]:
    """What early stopping looks at in each domain, the same in every stage."""
    return {
        name: Validation.of(split, seed.child("validation", name), n_threads=n_threads)
        for name, split in splits.items()
    }
