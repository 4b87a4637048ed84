"""What serves a domain's users when other things are told of them than it was learned from.

Less, where a source is hidden (`sources`), or more, such as what users have just done elsewhere.
Nothing is trained: heads and CAT-ART are given the inputs that they would be given in training.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Float32, Int64

from musketeers.baselines.linear import Linear
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.exchange import UserEmbeddings
from musketeers.heads import cold, ials, linear
from musketeers.heads.blend import Inputs, beside, of_inputs
from musketeers.heads.candidates import Candidate
from musketeers.heads.choice import GLOBAL
from musketeers.heads.fold_in import Folding, of_rows, unseen
from musketeers.heads.gate import Gated, Model
from musketeers.heads.ials import IalsHeadSettings
from musketeers.heads.linear import LinearSettings
from musketeers.latest import Latest
from musketeers.models.registry import MODELS
from musketeers.pipeline import served_with
from musketeers.ranking import Factors
from musketeers.recommender import STRATEGIES, DomainModel, Part
from musketeers.results import RunResult
from musketeers.scorers import Trained

PERSONALISED, CROSS_DOMAIN, POPULAR = STRATEGIES

_TELLABLE = {"linear", "ials_head", "cat_art"}
"""Models that can be told otherwise of their users; their blends too."""
_ALONE = "cat_art, linear or ials_head"
_SOURCE_WEIGHTS = {
    "linear": LinearSettings().source_weight,
    "ials_head": IalsHeadSettings().source_weight,
}
OLD = "the run was fitted by a version that kept too little to tell; fit it anew"


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """A domain's model of a few users, told anew of them; safe to use from threads.

    It holds the run's tables and no others.  A call costs a few small products for each user, and
    nothing that grows with users or items.  Vectors are products of all asked users together, which
    round: a user's may differ in the last bit by who else is asked for.
    """

    run: RunResult
    domain: str
    kinds: Mapping[str, Candidate]
    """Strategy -> what serves its users, where that is told of other domains."""
    latest: Latest | None
    """What the domains tell; None where nothing in this one is told of others."""
    folding: Folding
    anybody: Float32[np.ndarray, " dim"] | None
    """The mean of the domain's known users by stage 1, if CAT-ART takes part."""

    @classmethod
    def of(cls, run: RunResult, domain: str, latest: Latest | None = None) -> "Told":
        """Of a run in a folder or in memory, the same; `latest` is made once for all domains.

        Raises `UnknownNameError` for an unknown domain, and `ConfigError` where what serves it is
        told of others in a way that cannot be repeated (`check`).
        """
        model, kinds = run.recommender.model(domain), told_kinds(run, domain)
        check(run, domain)
        latest = (latest or Latest.of(run)) if kinds else None
        folding = Folding.of(model.scorer, seen=model.seen, known=model.known)
        anybody = None
        if any("cat_art" in found.kind for found in kinds.values()):
            anybody = run.stages.alone[domain].factors.users[model.known].mean(axis=0)
        return cls(run, domain, kinds, latest, folding, anybody)

    def since(
        self, rows: Int64[np.ndarray, " asked"], recent: Mapping[str, Interactions]
    ) -> tuple[Part, ...]:
        """What serves the users at `rows` now that they have also done what is `recent`.

        Row -1 is a stranger, whom no domain knows.  `recent` has of any domains what the asked did
        there, a row for each; pairs that the domain knows already tell nothing.

        What was done elsewhere is told by the vectors of those domains (`Latest.since`), so who is
        unknown here becomes ``cross_domain``; where nothing served here is told of others, it
        changes nothing.  What was done here is folded in on top (`Folding`); whoever did it is
        ``personalised``.  Every asked user is in one of the parts.

        Raises `UnknownNameError` for a domain that is not in the run.
        """
        here = recent.get(self.domain)
        new = unseen(self._model.seen, rows, here) if here else None
        elsewhere = {name: pairs for name, pairs in recent.items() if name != self.domain}
        for name in elsewhere:
            self.run.recommender.model(name)
        return self.parts(rows, self.latest and self.latest.since(rows, elsewhere), new)

    def parts(
        self,
        rows: Int64[np.ndarray, " asked"],
        shared: UserEmbeddings | None,
        new: Interactions | None = None,
    ) -> tuple[Part, ...]:
        """What serves the users at `rows` when what is `shared` of each is this.

        `shared` has a row for each of the asked; it takes no part, and may be None, where `latest`
        is None.  `new` are pairs done here, which the domain does not know, to fold in.
        """
        fitted = rows >= 0
        here = self._model.known[rows] & fitted
        if new:
            here |= new.known_users()
        cross = self._known_elsewhere(rows, shared) & ~here
        found: list[Part] = []
        for strategy, chosen in (
            (PERSONALISED, here), (CROSS_DOMAIN, cross), (POPULAR, ~here & ~cross),
        ):  # fmt: skip
            if not chosen.any():
                continue
            places = np.flatnonzero(chosen)
            of = rows[places]
            if strategy == POPULAR:
                popular = self._model.popularity
                scorer = of_rows(popular, of.clip(0))
                found.append(Part(strategy, places, scorer))
                continue
            scorer = self.scorer(strategy, of, shared.of(places) if shared else None)
            if strategy == PERSONALISED and new:
                scorer = self.folding.told(of, new.of_each(places), scorer)
            found.append(Part(strategy, places, scorer))
        return tuple(found)

    def scorer(
        self, strategy: str, rows: Int64[np.ndarray, " asked"], shared: UserEmbeddings | None
    ) -> Trained:
        """The model of that strategy's users, personalised or cross-domain, for the asked ones.

        Told what it learned from, for all users in their order, it is the served one bit by bit.
        Behind a gate known users stay on their side; who is not known here is on the told side
        where another domain knows them.
        """
        if strategy == CROSS_DOMAIN and not self._model.cold:
            strategy = PERSONALISED  # one model for all
        model = (self._model.cold if strategy == CROSS_DOMAIN else None) or self._model.scorer
        served = self.kinds.get(strategy)
        if served is None or shared is None:
            return of_rows(model, rows)
        if not isinstance(model, Gated):
            return self._told(strategy, model, served, rows, shared)
        told = self._told(strategy, model.told, served, rows, shared)
        takes = np.where(rows >= 0, model.takes[rows], self._others_know(shared))
        return Gated(told, cast(Model, of_rows(model.own, rows)), takes)

    @property
    def _model(self) -> DomainModel:
        return self.run.recommender.domains[self.domain]

    def _known_elsewhere(
        self, rows: Int64[np.ndarray, " asked"], shared: UserEmbeddings | None
    ) -> Bool[np.ndarray, " asked"]:
        """Who is known to other domains, if that is any use here."""
        if shared is None or not (self._model.transfers or self._model.cold):
            return np.zeros(len(rows), np.bool_)
        return self._others_know(shared)

    def _others_know(self, shared: UserEmbeddings) -> Bool[np.ndarray, " asked"]:
        others = np.delete(shared.known, shared.index(self.domain), axis=1)
        return np.logical_or.reduce(others, axis=1)

    def _told(
        self,
        strategy: str,
        model: Model,
        served: Candidate,
        rows: Int64[np.ndarray, " asked"],
        shared: UserEmbeddings,
    ) -> Model:
        """The model as it is, given for each of the asked what it would have been in training."""
        kinds = served.kind.split("+")
        if kinds == ["cat_art"]:
            return of_inputs(model, self._vectors(strategy, rows, shared))
        inputs = self._head(strategy, model, served, rows, shared)
        if "cat_art" in kinds:
            inputs = beside(inputs, self._vectors(strategy, rows, shared), served.weight or 0.0)
        return of_inputs(model, inputs)

    def _head(
        self,
        strategy: str,
        model: Model,
        served: Candidate,
        rows: Int64[np.ndarray, " asked"],
        shared: UserEmbeddings,
    ) -> Inputs:
        """What a head is told: what the user did or is here, and all that others know."""
        if strategy == CROSS_DOMAIN:
            return cold.inputs(shared.without(self.domain))
        aligned = self.run.stages.aligned
        if self.run.config.choice.global_embedding and aligned:
            shared = shared.beside(GLOBAL, aligned.of(shared))
        if isinstance(model, Factors):
            return ials.inputs(shared, shared.index(self.domain), served.source_weight)
        own = cast(Linear, of_rows(model, rows)).inputs[:, : model.n_items]
        return linear.inputs(own, shared.without(self.domain), served.source_weight)

    def _vectors(
        self, strategy: str, rows: Int64[np.ndarray, " asked"], shared: UserEmbeddings
    ) -> Float32[np.ndarray, "asked dim"]:
        """Those of CAT-ART; a stranger of whom others tell starts from the mean user, as all do who
        are new here."""
        stages = self.run.stages
        alone = stages.alone[self.domain]
        users = alone.factors.users[rows.clip(0)]
        new = rows < 0 if strategy == PERSONALISED else np.ones(len(rows), np.bool_)
        users[new] = self.anybody
        here = replace(alone, factors=Factors(users, alone.factors.items))
        if strategy == CROSS_DOMAIN:
            shared = shared.hidden(self.domain)
        made = replace(stages, alone={**stages.alone, self.domain: here})
        vectors = served_with(shared, self.domain, made, self.run.config).users
        # as if folded in: of whom nothing is told, nothing is said either
        vectors[(rows < 0) & ~shared.known.any(axis=1)] = 0
        return vectors


def told_kinds(run: RunResult, domain: str) -> dict[str, Candidate]:
    """Strategy -> what serves its users, if that is told of other domains."""
    verdict = run.learning.verdicts.get(domain)
    if verdict:
        here, cold = (verdict.chosen if verdict.transfers else None), verdict.cold
    else:
        kind = run.recommender.about["model"][domain]
        settings = run.recommender.about.get("settings", {}).get(domain, {})
        weight = settings.get("source_weight", _SOURCE_WEIGHTS.get(kind, 0.0))
        told = MODELS[kind].sees != "own data"
        one = Candidate(kind, kind, math.nan, source_weight=weight)
        here = cold = one if told else None
    return {
        strategy: found
        for strategy, found in ((PERSONALISED, here), (CROSS_DOMAIN, cold))
        # a transfer that was not kept is the domain alone
        if found and (found.kind != "cat_art" or run.learning.kept.get(domain, True))
    }


def check(run: RunResult, domain: str) -> None:
    """Raise `ConfigError` where what serves `domain` is told of others, but cannot be told anew.

    That is all that ``--only`` fitted, but for ``cat_art``, ``linear`` and ``ials_head``.
    """
    if why := fault(run, domain):
        raise ConfigError(why)


def fault(run: RunResult, domain: str) -> str | None:
    """What `check` says, if anything."""
    for strategy, found in told_kinds(run, domain).items():
        if why := _fault(run, domain, strategy, found):
            return f"{domain} is served by {found.kind}, {why}"
    return None


def _fault(run: RunResult, domain: str, strategy: str, served: Candidate) -> str | None:
    parts, stages = set(served.kind.split("+")), run.stages
    if parts - _TELLABLE:
        return f"from which no domain can be hidden; fit without --only, or {_ALONE}"
    chosen_alone = run.recommender.about["model"][domain] == "chosen"
    if chosen_alone or ("cat_art" in parts and domain not in stages.transferred):
        return "whose stages are not kept; fit without --only, or with --only cat_art alone"
    if "cat_art" in parts and stages.aligned and math.isnan(stages.aligned.length):
        return OLD
    if strategy == PERSONALISED and served.kind != "cat_art" and not served.source_weight:
        return OLD
    return None
