"""Which model a domain gets: its own best, or one told of the others if that is surely better."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from musketeers.baselines.linear import Linear
from musketeers.config import ChoiceConfig
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.group import of_all
from musketeers.heads.candidates import LEVEL, Candidate, Candidates
from musketeers.heads.cold import choose_cold
from musketeers.heads.gate import Gated, Groups, groups
from musketeers.heads.ladder import SOURCE_WEIGHTS, Ladder, ladder
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import Epoch, Job

GLOBAL = "global embedding"
"""CAT's, as a source beside the other domains."""

_STEP = 3.0
"""Between neighbouring regularisations."""


@dataclass(frozen=True, slots=True)
class GroupVerdict:
    """What validation said of one group of users (`heads.gate.groups`)."""

    name: str
    users: int
    """Of validation."""
    gain: float
    """Of the domain's best told model over its best own one, relative; NaN if that has nothing."""
    p: float
    """See `Verdict.p`, for these users."""
    takes: bool
    """Whether they are told of others."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation said of a domain's models."""

    own: Candidate
    """The best that is told nothing."""
    told: Candidate | None
    """The best that is told of other domains; None without any."""
    p: float
    """How likely the best told model looks so good by chance (`p_of_best`)."""
    cold: Candidate | None = None
    """What scores users without a history here whom other domains know, the best on validation with
    histories hidden; None where nothing is surely better than what is popular."""
    popular: float | None = None
    """Validation NDCG@10 of popularity for the same users; None where there are no such users."""
    groups: tuple[GroupVerdict, ...] = ()
    """Where each group of users has a gate of its own."""

    @property
    def chosen(self) -> Candidate:
        """The told one where it is surely better, else the domain's own."""
        return self.told if self.told and self.transfers else self.own

    @property
    def transfers(self) -> bool:
        """Whether the domain, or any group of its users, is told of others."""
        return any(one.takes for one in self.groups) if self.groups else self.p < LEVEL

    @property
    def gain(self) -> float:
        """Of the best told model over the best own one, relative; NaN without either."""
        return self.told.valid / self.own.valid - 1 if self.told and self.own.valid else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The models of one domain, and what else there was to choose from."""

    scorer: Linear | Factors | Gated
    cold: Factors | None
    """Scores users without a history here whom other domains know, whatever `scorer` is."""
    verdict: Verdict
    tried: Mapping[str, float]
    """Name -> validation NDCG@10 of every candidate."""


def choose(
    target: str,
    validation: Validation,
    shared: UserEmbeddings,
    *,
    alone: Factors,
    aligned: Float32[np.ndarray, "user dim"] | None,
    transferred: Factors | None,
    hidden: Factors | None,
    config: ChoiceConfig,
    seed: Seed,
    job: Job,
    max_bytes: int,
) -> Chosen:
    """The best model of a domain by validation; its own, unless a told one is surely better.

    Its own are SMF (`alone`), EASE, and the two blended; told are CAT-ART (`transferred`), the
    linear head, and these two blended, each of which has one of its own as a special case.  The
    linear models are tried at a regularisation of 100 and at neighbours threefold apart, until the
    best of either kind has worse ones on both sides.  The best told model is taken where its gain
    over the best own one is more than the best of as many candidates gains by chance, at a risk of
    `LEVEL`.  Users without a history here are a choice of their own (`choose_cold`; `hidden` is
    CAT-ART as it serves them).  A domain without others, for which both are None, gets the best of
    its own.

    With ``config.global_embedding`` the heads are told the `aligned` embedding too; with another
    ``config.gate`` than the domain each group of users is given the best told model or the best own
    one by a test of its own, at a risk of `LEVEL` divided by the number of groups.

    Where linear models take too much memory or work, the iALS head, told and untold, takes their
    place; where that too takes more, SMF and CAT-ART are all there is (`heads.ladder`).  The search
    ends before it takes more.
    """
    own = Candidates(validation)
    own.enter("smf", "smf", alone)
    told = Candidates(validation) if transferred else None
    if told and transferred:
        told.enter("cat_art", "cat_art", transferred)
    sources = shared
    if config.global_embedding and aligned is not None:
        sources = shared.beside(GLOBAL, aligned)
    _, n_sources, dim = sources.values.shape
    if models := ladder(target, validation, n_domains=n_sources, dim=dim, max_bytes=max_bytes):
        _search(models, sources, own, told, job)
        own.enter_blends(models.own, "smf")
        if told:
            told.enter_blends(models.told, "cat_art")
    p = told.p_over(own.values[own.best.name], seed) if told else 1.0
    grouped = groups(config.gate, validation, shared)
    by_group = _by_group(grouped, own, told, validation, seed) if told else ()
    cold = (
        choose_cold(
            target, validation, shared, hidden, seed=seed.child("cold"), max_bytes=max_bytes
        )
        if hidden
        else None
    )
    verdict = Verdict(
        own.best, told.best if told else None, p,
        cold.best if cold else None, cold.popular if cold else None, by_group,
    )  # fmt: skip
    tried = {**own.values, **(told.values if told else {})}
    scorer = (told if told and verdict.transfers else own).model
    if told and len({one.takes for one in by_group}) > 1:
        # whom the domain does not know can only be served by what others tell
        takes = np.array([one.takes for one in by_group])[grouped.of]
        scorer = Gated(told.model, own.model, takes | ~validation.split.train.known_users())
    return Chosen(
        scorer,
        cold.scorer if cold else None,
        verdict,
        {name: float(values.mean()) for name, values in tried.items()},
    )


def _by_group(
    grouped: Groups, own: Candidates, told: Candidates, validation: Validation, seed: Seed
) -> tuple[GroupVerdict, ...]:
    """One verdict a group; none where all users are one group."""
    if len(grouped.names) < 2:
        return ()
    found: list[GroupVerdict] = []
    before, after = own.values[own.best.name], told.values[told.best.name]
    for place, name in enumerate(grouped.names):
        among = of_all(grouped.of[validation.users]) == place
        mean = float(before[among].mean())
        gain = float(after[among].mean()) / mean - 1 if mean else math.nan
        p = told.p_over(before, seed.child("group", name), among=among)
        takes = p < LEVEL / len(grouped.names)
        found.append(GroupVerdict(name, int(among.sum()), gain, p, takes))
    return tuple(found)


def _search(
    ladder: Ladder, shared: UserEmbeddings, own: Candidates, told: Candidates | None, job: Job
) -> None:
    """Enter models, own and told, at one regularisation after the other.

    Whoever watches hears of each as of an epoch.
    """
    peaks: dict[float, list[float]] = {}
    waiting = [ladder.start]
    while waiting and len(peaks) < ladder.n:
        strength, start = waiting.pop(), time.perf_counter()
        by_weight = ladder.at(strength)(shared)
        solved = time.perf_counter()
        name = f"{ladder.own}({strength:.3g})"
        peaks[strength] = [own.enter(ladder.own, name, by_weight(0.0))]
        if told:
            heads = [
                told.enter(
                    ladder.told,
                    f"{ladder.told}({strength:.3g}, {weight:g})",
                    by_weight(weight),
                    source_weight=weight,
                )
                for weight in SOURCE_WEIGHTS
            ]
            peaks[strength].append(max(heads))
        best = max(side.best.valid for side in (own, told) if side)
        job.on_epoch(Epoch(len(peaks), None, best, solved - start, time.perf_counter() - solved))
        if not waiting:
            weakest, strongest = min(peaks), max(peaks)
            sides = range(len(peaks[strength]))
            bests = {max(peaks, key=lambda one: peaks[one][side]) for side in sides}
            # the first has one neighbour here, the stronger: the weaker comes if that is no better
            beyond = {weakest: weakest / _STEP, strongest: strongest * _STEP}
            waiting = [beyond[edge] for edge in beyond if edge in bests]
            waiting = [one for one in waiting if ladder.least <= one <= ladder.most]
