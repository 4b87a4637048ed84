"""What a finished run found, as its report shows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musketeers.budget.halving import Round
from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.data.drift import Reference
from musketeers.data.overlap import OverlapReport
from musketeers.evaluation.compare import (
    Cell,
    Difference,
    Sums,
    compare,
    compare_pairs,
    compared,
    summed,
)
from musketeers.evaluation.evaluate import PerUser
from musketeers.heads.choice import Verdict
from musketeers.models.model import Made
from musketeers.models.tuning import Try, Tuned
from musketeers.pipeline import Models
from musketeers.recommender import Recommender
from musketeers.training import History

Metrics = Mapping[str, Mapping[str, PerUser]]
"""Model name -> domain -> the metrics of every test user."""

WITH_HISTORY = "with_history"
"""Among the metrics of cold users: the domain's model, told the history that they are without."""


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """How the models came to be."""

    regularization: Mapping[str, float]
    """Stage 1, by domain: the strength that validation chose."""
    histories: Mapping[str, Mapping[str, tuple[History, ...]]]
    """Stage (``pretrain``, ``cat``, ``art``), or the model that was fitted by itself -> domain
    (``all`` for cat, and where domains learn together) -> its fits in order."""
    kept: Mapping[str, bool]
    """Stage 3, by domain: whether its transfer was kept; if not, it is the domain alone."""
    attention: Mapping[str, Mapping[str, float]]
    """Target -> source -> mean weight; empty where nothing was kept, or no source asked."""

    tries: Mapping[str, tuple[Try, ...]] = field(default_factory=dict[str, tuple[Try, ...]])
    """Of a model that was fitted by itself: by domain, or ``all`` where they train together."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict[str, Verdict])
    """Domain -> what validation said of its models; empty where nothing was to choose."""
    rounds: tuple[Round, ...] = ()
    """Of the search for the settings of stage 1; empty where the settings left nothing to find."""

    @classmethod
    def of(cls, stages: Models, model: str, tuned: Mapping[str, Tuned], serves: Made) -> "Learning":
        """What the stages' results say of it, what `tuned` says of the `model` fitted by itself,
        and what is served of how it was chosen."""
        histories: dict[str, dict[str, tuple[History, ...]]] = {}
        if stages.alone:
            histories["pretrain"] = {name: made.history for name, made in stages.alone.items()}
        if stages.aligned:
            histories["cat"] = {"all": (stages.aligned.history,)}
            art = stages.transferred
            histories["art"] = {name: (made.history,) for name, made in art.items()}
        attention = {name: made.attention for name, made in stages.transferred.items()}
        for one in tuned.values():
            made: Made = one.made
            attention |= {name: fit.attention for name, fit in made.items() if fit.attention}
            each = {name: fit.history for name, fit in made.items() if fit.history}
            if each and model != "smf":  # that is stage 1
                histories.setdefault(model, {}).update(_once(each))
        return cls(
            {name: made.regularization for name, made in stages.alone.items()},
            histories,
            {name: made.kept for name, made in stages.transferred.items()},
            attention,
            {where: one.tries for where, one in tuned.items()},
            {name: one.verdict for name, one in serves.items() if one.verdict},
        )


def _once(histories: dict[str, tuple[History, ...]]) -> dict[str, tuple[History, ...]]:
    """What domains that learn together all say, said once."""
    first = next(iter(histories.values()), ())
    shared = len(histories) > 1 and all(one == first for one in histories.values())
    return {"all": first} if shared else histories


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """A finished run, in a folder or in memory alone."""

    path: Path | None
    config: RunConfig
    manifest: Mapping[str, Any]
    """What the folder's `manifest.json` says; empty without a folder."""
    overlap: OverlapReport
    splits: Mapping[str, Split]
    metrics: Metrics
    learning: Learning
    recommender: Recommender
    cold: Metrics = field(default_factory=dict[str, Mapping[str, PerUser]])
    """Of cold users (`split.cold`), in the domain that they are new to: popularity, CAT-ART, what
    they are served, and as a ceiling `WITH_HISTORY`, where the domain's model is linear."""
    hidden: Metrics = field(default_factory=dict[str, Mapping[str, PerUser]])
    """Source -> domain -> of every test user, or of many of them drawn at random, ``ndcg@10`` with
    that source hidden from what serves the domain, and ``kept@10``, the share of their ten items
    that stay.  A domain that is told nothing, or whose model cannot be told less (`sources.check`),
    has none."""
    stages: Models = field(default_factory=Models)
    """What the stages made, as far as it was kept; sources are hidden from it."""

    update: Metrics = field(default_factory=dict[str, Mapping[str, PerUser]])
    """Of an update (`updates`): ``before`` and ``after`` it, in every domain that there was before,
    what it is served by.  Of the test items and users of both; empty of a run from settings."""
    references: Mapping[str, Reference] = field(default_factory=dict[str, Reference])
    """What domains with new data were at the last full fit; the others still are what they were."""

    def serves_cold(self) -> dict[str, str]:
        """Domain -> the model for users whom only others know; ``pop`` if what is popular."""
        found: dict[str, str] = {}
        for name, part in self.recommender.domains.items():
            verdict = self.learning.verdicts.get(name)
            if verdict and verdict.cold:
                found[name] = verdict.cold.kind
            else:
                found[name] = self.recommender.about["model"][name] if part.transfers else "pop"
        return found

    def cold_differences(self) -> dict[Cell, Difference]:
        """What cold users are served against popularity; empty without such users."""
        serves = self.serves_cold()
        served = {domain: self.cold[serves[domain]][domain] for domain in self.cold.get("pop", {})}
        return compare(served, self.cold["pop"]) if served else {}

    def by_source(self) -> dict[tuple[str, str], Difference]:
        """(domain, source) -> NDCG@10 of what is served against itself with the source hidden.

        Above 0 where the source helped; corrected for all pairs.  Empty where `hidden` is.
        """
        metric, pairs = "ndcg@10", dict[tuple[str, str], tuple[PerUser, PerUser]]()
        for source, domains in self.hidden.items():
            for domain, less in domains.items():
                whole = self.metrics[self.recommender.about["model"][domain]][domain]
                place = np.searchsorted(whole.users, less.users)
                ours = PerUser(less.users, {metric: whole.values[metric][place]})
                pairs[domain, source] = ours, PerUser(less.users, {metric: less.values[metric]})
        return compare_pairs(pairs) if pairs else {}

    def changes(self) -> dict[Cell, Difference]:
        """What the domains are served after an update against before; empty without one."""
        return compare(self.update["after"], self.update["before"]) if self.update else {}

    def differences(self) -> dict[Cell, Difference]:
        """What recommends against each domain alone (SMF); empty if the run has one model alone."""
        return compared(self.sums())

    def sums(self) -> dict[Cell, Sums]:
        """What `differences` asks of this run's users; empty likewise."""
        return sums_of(self.metrics, self.recommender.about["model"])


def sums_of(metrics: Metrics, serves: Mapping[str, str]) -> dict[Cell, Sums]:
    """What `RunResult.differences` asks of the users; `serves` is the model of each domain."""
    if len(metrics) < 2:
        return {}
    served = {domain: metrics[model][domain] for domain, model in serves.items()}
    return summed(served, metrics["smf"])
