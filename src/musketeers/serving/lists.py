"""Lists for a few users at once, from one version of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array

from musketeers.baselines.linear import Linear, shape
from musketeers.data.interactions import Interactions
from musketeers.heads.gate import Gated
from musketeers.ranking import top_k
from musketeers.recommender import STRATEGIES, Part, ranked, strategies_of
from musketeers.serving.ids import Id
from musketeers.serving.version import Version


@dataclass(frozen=True, slots=True)
class Asked:
    """One list that somebody wants."""

    user: Id
    k: int = 10
    exclude_seen: bool = True
    exclude: Sequence[Id] = ()
    """Items that are not wanted; one that the domain does not have says nothing."""
    allow: Sequence[Id] | None = None
    """The only items that are wanted; None: all."""
    recent: Mapping[str, Sequence[Id]] = field(default_factory=dict[str, Sequence[Id]])
    """What the user has just done, by domain."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The answer to one `Asked`."""

    user: Id
    items: list[tuple[Id, float]]
    """Best first, with their scores; equal scores stand in the order of their ids."""
    strategy: str
    degraded: bool
    """Whether something that the user did was not used, though it could have been."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Items like one of them."""

    item: Id
    items: list[tuple[Id, float]]
    """Best first, with their scores."""
    by: str
    """What the scores are: see `similar`."""


def lists(version: Version, domain: str, asked: Sequence[Asked]) -> list[Listed]:
    """What each of the asked gets in `domain`, computed on this thread.

    Raises `UnknownNameError` for a domain that the version does not have.
    """
    model, ids = version.recommender.model(domain), version.items[domain]
    rows = version.users.rows([one.user for one in asked])
    recent = _recent(version, asked)
    parts, degraded = _parts(version, domain, rows, recent)
    skip = _skipped(version, domain, asked, rows, recent.get(domain))
    k = min(max(one.k for one in asked), len(model.items))
    ranking = ranked(parts, len(asked), k=k, skip=skip, n_threads=1)
    strategies = strategies_of(parts, len(asked))
    counts = [int((row >= 0).sum()) for row in ranking.items]
    counts = [min(n, one.k) for n, one in zip(counts, asked, strict=True)]
    found: list[Listed] = []
    for n, count in enumerate(counts):
        items, scores = ids.ids(ranking.items[n, :count]), ranking.scores[n, :count].tolist()
        pairs = list(zip(items, scores, strict=True))
        user = version.users.as_written(asked[n].user)
        found.append(Listed(user, pairs, STRATEGIES[strategies[n]], bool(degraded[n])))
    return found


def similar(version: Version, domain: str, item: Id, k: int) -> Alike | None:
    """The `k` items most like `item`, best first, and by what; None for an unknown item.

    By ``cosine`` of the items' vectors; where the domain's model is linear, by ``weight``: what it
    adds to the others' scores that somebody has met this item.

    Raises `UnknownNameError` for a domain that the version does not have.
    """
    model, ids = version.recommender.model(domain), version.items[domain]
    (row,) = ids.rows([item]).tolist()
    if row < 0:
        return None
    one, itself = np.zeros(1, np.int64), np.array([row])
    skip = Interactions.from_pairs(one, itself, n_users=1, n_items=len(ids))
    if vectors := version.cosines.get(domain):
        scorer, by = replace(vectors, users=vectors.users[itself]), "cosine"
    else:
        scorer = model.scorer.told if isinstance(model.scorer, Gated) else model.scorer
        scorer = cast(Linear, scorer)
        alone = csr_array(([np.float32(1)], ([0], [row])), shape=(1, shape(scorer.inputs)[1]))
        scorer, by = replace(scorer, inputs=alone), "weight"
    found = top_k(scorer, one, k=min(k, len(ids)), seen=skip, n_threads=1)
    n = int((found.items[0] >= 0).sum())
    pairs = zip(ids.ids(found.items[0, :n]), found.scores[0, :n].tolist(), strict=True)
    return Alike(ids.ids(itself)[0], list(pairs), by)


def _recent(version: Version, asked: Sequence[Asked]) -> dict[str, Interactions]:
    """What the asked have just done, by domain; items that a domain does not have say nothing."""
    found: dict[str, Interactions] = {}
    for name in dict.fromkeys(name for one in asked for name in one.recent):
        if name in version.items:
            given = [one.recent.get(name, ()) for one in asked]
            found[name] = _pairs(version, name, given)
    return found


def _pairs(version: Version, domain: str, of_each: Sequence[Sequence[Id]]) -> Interactions:
    items = version.items[domain].rows([item for items in of_each for item in items])
    users = np.repeat(np.arange(len(of_each)), [len(items) for items in of_each])
    known = items >= 0
    return Interactions.from_pairs(
        users[known], items[known], n_users=len(of_each), n_items=len(version.items[domain])
    )


def _parts(
    version: Version,
    domain: str,
    rows: Int64[np.ndarray, " asked"],
    recent: Mapping[str, Interactions],
) -> tuple[list[Part], np.ndarray]:
    """What serves each of the asked, and for whom something could not be used.

    What was done here is folded into the domain's model.  What was done elsewhere takes the run's
    stages, and several times as long.
    """
    model, folding = version.recommender.model(domain), version.foldings[domain]
    stages = version.stages_now()
    told = stages.told.get(domain) if stages else None
    asks = bool(told.kinds) if told else model.transfers or model.cold is not None
    away = np.zeros(len(rows), np.bool_)
    for name, pairs in recent.items():
        away |= pairs.known_users() & (asks and name != domain)
    here = recent.get(domain)
    if told is None or not away.any():
        return list(version.recommender.parts_since(domain, rows, here, folding)), away
    near, far = np.flatnonzero(~away), np.flatnonzero(away)
    some = here.of_each(near) if here else None
    parts = _placed(version.recommender.parts_since(domain, rows[near], some, folding), near)
    some = {name: pairs.of_each(far) for name, pairs in recent.items()}
    return parts + _placed(told.since(rows[far], some), far), np.zeros(len(rows), np.bool_)


def _placed(parts: Sequence[Part], places: Int64[np.ndarray, " some"]) -> list[Part]:
    return [replace(part, places=places[part.places]) for part in parts]


def _skipped(
    version: Version,
    domain: str,
    asked: Sequence[Asked],
    rows: Int64[np.ndarray, " asked"],
    recent: Interactions | None,
) -> Interactions:
    """What each is not to get: seen and just done unless wanted again, denied, not allowed."""
    hides = np.array([one.exclude_seen for one in asked])
    skip = version.recommender.model(domain).seen.of_each(np.where(hides, rows, -1))
    if recent:
        skip = skip.union(recent.of_each(np.where(hides, np.arange(len(rows)), -1)))
    if any(one.exclude for one in asked):
        skip = skip.union(_pairs(version, domain, [one.exclude for one in asked]))
    if any(one.allow is not None for one in asked):
        skip = skip.union(_not_allowed(version, domain, asked))
    return skip


def _not_allowed(version: Version, domain: str, asked: Sequence[Asked]) -> Interactions:
    ids = version.items[domain]
    everything, parts = np.arange(len(ids)), list[np.ndarray]()
    for one in asked:
        allowed = None if one.allow is None else ids.rows(one.allow)
        parts.append(
            everything[:0] if allowed is None else np.delete(everything, allowed[allowed >= 0])
        )
    users = np.repeat(np.arange(len(asked)), [len(part) for part in parts])
    return Interactions.from_sorted(
        users, np.concatenate(parts), n_users=len(asked), n_items=len(ids)
    )
