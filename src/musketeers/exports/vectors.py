"""One space of vectors for all users and items of a domain, whatever strategy serves a user."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8

from musketeers.baselines.linear import Linear
from musketeers.data.interactions import Interactions
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError
from musketeers.heads.gate import Gated, Model
from musketeers.ranking import Factors
from musketeers.recommender import STRATEGIES, DomainModel, Recommender
from musketeers.report.words import model_name
from musketeers.results import RunResult
from musketeers.scorers import Trained

STAGES = ("smf", "cat_art")
"""Models of vectors that a run keeps beside what it recommends with: of stage 1 and stage 3."""

_PERSONALISED, _CROSS_DOMAIN, _POPULAR = range(len(STRATEGIES))
_STEP_BYTES = 8 << 20
"""Of vectors that are in memory at once beside the model's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The dimensions in which one model's vectors stand."""

    factors: Factors
    serves: Bool[np.ndarray, " user"]
    """Whose vectors have numbers here; all others have 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Vectors of a domain whose inner product is the score that `Recommender.recommend` gives.

    The models that serve somebody stand side by side, popularity last.  An item has numbers in all
    blocks, a user in that of the model that serves them.  Numbers are the models' own, and adding
    zeros rounds nothing, so what `Scorer.error` says of the model bounds what an inner product in
    float32 is off here, too.  Vectors are made when asked for, a few users at a time.
    """

    domain: str
    model: str
    """What serves users who have a history, as the run calls it."""
    version: str
    """Of the model that the vectors are of."""
    users: Vocabulary
    items: Vocabulary
    seen: Interactions
    strategies: Int8[np.ndarray, " user"]
    """Each user's place in `recommender.STRATEGIES`."""
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, recommender: Recommender, domain: str, version: str) -> "Space":
        """That of one domain.

        Raises `UnknownNameError` for a domain that there is not, and `ConfigError` if somebody in
        it is served by a linear model: its score is an inner product as wide as the catalogue.
        """
        model = recommender.model(domain)
        name = str(recommender.about.get("model", {}).get(domain, "its model"))
        strategies = recommender.strategies(domain, np.arange(len(recommender.users)))
        blocks: list[Block] = []
        for part, serves in _parts(model, strategies):
            if isinstance(part, Linear):
                raise ConfigError(
                    f"{domain} is served by {model_name(name)}, a linear model, which has no small "
                    "vectors; add --model smf or --model cat_art to export another of the run's "
                    "models, with other lists, or write the lists themselves: musketeers recommend "
                    f"RUN --domain {domain!r} --all-users --out FILE"
                )
            blocks.append(Block(part, serves))
        return cls(
            domain, name, version, recommender.users, model.items, model.seen, strategies,
            tuple(blocks),
        )  # fmt: skip

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return sum(block.factors.items.shape[1] for block in self.blocks)

    def unknown(self) -> Float32[np.ndarray, " dim"]:
        """The vector of somebody whom the model does not know, for whom popularity decides."""
        popular = self.blocks[-1].factors.users[0]
        return np.concatenate([np.zeros(self.dim - len(popular), np.float32), popular])

    def user_vectors(self, step: slice) -> Float32[np.ndarray, "user dim"]:
        """Those of users of consecutive rows."""
        vectors = np.zeros((len(range(*step.indices(len(self.users)))), self.dim), np.float32)
        start = 0
        for block in self.blocks:
            stop = start + block.factors.users.shape[1]
            serves = block.serves[step]
            vectors[serves, start:stop] = block.factors.users[step][serves]
            start = stop
        return vectors

    def item_vectors(self, step: slice) -> Float32[np.ndarray, "item dim"]:
        """Those of items of consecutive rows."""
        return np.hstack([block.factors.items[step] for block in self.blocks])

    def steps(self, n_rows: int, most: int = 1 << 16) -> Iterator[slice]:
        """So many rows in pieces of at most `most`, one at least, that take little memory."""
        size = max(1, min(most, _STEP_BYTES // (4 * self.dim)))
        return (slice(start, min(start + size, n_rows)) for start in range(0, max(n_rows, 1), size))

    def about(self) -> dict[str, Any]:
        """What the vectors are, as plain JSON."""
        return {
            "domain": self.domain,
            "model": self.model,
            "model_version": self.version,
            "dims": self.dim,
            "metric": "inner product",
            "users": len(self.users),
            "items": len(self.items),
            "seen": len(self.seen),
        }


def served_by(found: RunResult, model: str, domains: list[str]) -> Recommender:
    """The run's recommender, with the domains served by what `model`'s stage made.

    Raises `ConfigError` for a model that is none of `STAGES`, and where the run did not make it.
    """
    if model not in STAGES:
        raise ConfigError(f"model is {model!r}; give {' or '.join(STAGES)}, or leave it out")
    parts = dict(found.recommender.domains)
    for domain in domains:
        here, stages = found.recommender.model(domain), found.stages
        if model == "smf" and domain in stages.alone:
            made, transfers = stages.alone[domain].factors, False
        elif model == "cat_art" and domain in stages.transferred:
            made, transfers = stages.transferred[domain].factors, stages.transferred[domain].kept
        else:
            raise ConfigError(
                f"the run made no {model_name(model)} of {domain}; leave --model out, or fit one: "
                f"musketeers fit CONFIG.toml --only {model} --out RUN"
            )
        parts[domain] = replace(here, scorer=made, transfers=transfers, cold=None)
    names: Mapping[str, str] = found.recommender.about["model"]
    about = {**found.recommender.about, "model": {**names, **dict.fromkeys(domains, model)}}
    return Recommender.of(found.recommender.users, parts, about)


def _parts(
    model: DomainModel, strategies: Int8[np.ndarray, " user"]
) -> Iterator[tuple[Model, Bool[np.ndarray, " user"]]]:
    """The models that serve somebody, and whom; popularity last, since it serves strangers."""
    new = (strategies == _CROSS_DOMAIN) & (model.cold is not None)
    popular = strategies == _POPULAR
    sides = [*_sides(model.scorer, ~popular & ~new)]
    if model.cold is not None:
        sides.append((model.cold, new))
    yield from ((part, serves) for part, serves in sides if serves.any())
    yield model.popularity, popular


def _sides(
    scorer: Trained, serves: Bool[np.ndarray, " user"]
) -> Iterator[tuple[Model, Bool[np.ndarray, " user"]]]:
    if isinstance(scorer, Gated):
        yield scorer.told, serves & scorer.takes
        yield scorer.own, serves & ~scorer.takes
    else:
        yield scorer, serves
