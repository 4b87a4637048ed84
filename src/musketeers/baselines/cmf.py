"""Collective matrix factorisation (CMF): one vector per user for all domains, by BPR.

Singh and Gordon, "Relational Learning via Collective Matrix Factorization", KDD 2008, with the BPR
loss of the CAT-ART paper's baseline in place of theirs.  It sees the interactions of all domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from musketeers.baselines.joint import Joint, mean_ndcg, n_threads, trains
from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.lanes import lanes_for
from musketeers.pretrain.mf import Factorization
from musketeers.pretrain.search import search
from musketeers.pretrain.tables import Catalogue, Tables
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import Job

NEGATIVES = ("in-domain", "global")


@dataclass(frozen=True, slots=True)
class CmfSettings:
    """How CMF learns."""

    bpr: PretrainConfig = field(default_factory=PretrainConfig)
    """As a domain alone learns; its search looks at the mean of the domains."""
    negatives: str = "in-domain"
    """Items an observed one is compared with: of its own domain, or (global) of all domains."""

    def __post_init__(self) -> None:
        if self.negatives not in NEGATIVES:
            raise ConfigError(
                f"negatives is {self.negatives!r}; choose one of {', '.join(NEGATIVES)}"
            )


def cmf(
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    settings: CmfSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> Joint:
    """A user's taste for an item of any domain is u.v; minimises the sum of all BPR losses.

    Every interaction counts the same, so a large domain says more about a user than a small one.
    With ``negatives="global"`` this is plain matrix factorisation of [R^1 | ... | R^n], all
    interactions in one table with negatives from all items: the *pooled SMF* that sees all raw
    data, and what the CAT-ART authors' loader feeds their CMF with (they draw one candidate).

    A user known in some domain has the same vector in all of them; one known nowhere has the
    mean of those.  Raises `DataError` where domains do not match.
    """
    tables = trains(splits, validations)
    catalogues = _catalogues(tables, settings.negatives, seed)

    def at(setting: PretrainConfig) -> Factorization:
        start = Tables(
            catalogues, seed, setting, dim=dim, n_lanes=lanes_for(n_threads(validations))
        )
        return Factorization(start, value, setting)

    def value(learned: Tables) -> float:
        return mean_ndcg(validations, _by_domain(learned, tables))

    found = search(at, settings.bpr, job)
    learned = found.model.tables
    learned.give_unknown_users_the_mean()
    return Joint(_by_domain(learned, tables), found.setting.regularization, found.history)


def _catalogues(tables: Mapping[str, Interactions], negatives: str, seed: Seed) -> list[Catalogue]:
    if negatives == "global":
        return [Catalogue(_pooled(tables), seed)]
    return [Catalogue(train, seed.child("domain", name)) for name, train in tables.items()]


def _pooled(tables: Mapping[str, Interactions]) -> Interactions:
    """All domains as one, the items of each after those of the domains before it."""
    starts = np.cumsum([0, *(table.n_items for table in tables.values())]).tolist()
    shifted = [
        table.items + np.int64(start) for table, start in zip(tables.values(), starts, strict=False)
    ]
    return Interactions.from_pairs(
        np.concatenate([table.users() for table in tables.values()]),
        np.concatenate(shifted),
        n_users=next(iter(tables.values())).n_users,
        n_items=starts[-1],
    )


def _by_domain(learned: Tables, tables: Mapping[str, Interactions]) -> dict[str, Factors]:
    # in the order of `_pooled`, whichever catalogues the items learned in
    items = np.concatenate([lanes.items for lanes in learned.lanes])
    ends = np.cumsum([table.n_items for table in tables.values()])
    parts = np.split(items, ends[:-1].tolist())
    return {name: Factors(learned.users, part) for name, part in zip(tables, parts, strict=True)}
