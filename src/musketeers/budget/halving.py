"""Successive halving: many ways to learn alone for a few epochs, the better half for twice as many.

After Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean

from musketeers.budget.clock import Clock
from musketeers.budget.estimate import Costs
from musketeers.budget.recipes import Recipe
from musketeers.config import changed
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.execution import Jobs
from musketeers.heads.candidates import Candidates
from musketeers.heads.ladder import ladder
from musketeers.pipeline import exchanged, smf
from musketeers.pretrain.mf import Pretrained
from musketeers.task import Task

_LOOKS = 2
"""Looks at validation that a training has in the first round; then twice as many in each."""

_WHOLE = 20
"""Looks of a training that runs to its end: on `journey6` 17 on average for BPR, 15 for iALS."""

_OTHER_METHOD = 4
"""How many times as long a look is expected to take by another method than the first."""

_SOURCE_WEIGHTS = (0.5, 1.0, 2.0)

_LISTS = 8
"""Rankings that the value of a recipe takes in a domain: alone, with each weight, and blends."""

Trial = Callable[[str, int], AbstractContextManager[Jobs]]
"""(recipe's name, epochs at most) -> where its trainings keep their progress, while it is tried; 0
epochs while a round's values are found."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of trials."""

    looks: int
    """At validation, that each training had at most."""
    valid: Mapping[str, float]
    """Recipe's name -> mean over the domains of the best validation NDCG@10, the best first."""


def halve(
    recipes: Sequence[Recipe],
    task: Task,
    clock: Clock,
    costs: Costs,
    rounds: list[Round],
    *,
    trial: Trial,
    on_round: Callable[[Round], None],
) -> Recipe:
    """The recipe that a fit should take, as far as the clock let them be tried.

    In each round every recipe left learns alone in all domains, strengths and rates searched, but
    no training has more than so many looks at validation; the better half goes on with twice as
    many.  The value of a recipe in a domain is the best of its own vectors, the linear head told
    with them at one regularisation, and blends of the two: what the choice will choose from,
    without CAT-ART.  All recipes share one inverse of a domain's items.  `costs` are of a fit by
    the first recipe; no trial begins unless it and a fit by its recipe can still end in time, and
    the best recipe is taken of which that is so.

    `rounds` are those that were finished before, and get the new ones; `on_round` hears of these.
    """
    alive = list(recipes)
    for done in rounds:
        alive = _better_half(alive, done)
    seconds: dict[Recipe, float] = {}
    first = recipes[0]
    while len(alive) > 1:
        looks = _LOOKS * 2 ** len(rounds)
        learned: dict[Recipe, dict[str, Pretrained]] = {}
        for recipe in alive:
            per_look = _per_look(recipe, seconds, first, costs)
            needed = (
                looks * per_look + _LISTS * costs.ranking + _fit(recipe, per_look, first, costs)
            )
            if not clock.allows(f"{recipe.name}, {looks} looks", needed):
                break
            start = time.monotonic()
            learned[recipe] = _learn(recipe, task, looks, trial)
            seconds[recipe] = (time.monotonic() - start) / looks
        if len(learned) < 2:
            break
        with trial("round", 0):
            values = _values(learned, task)
        best_first = sorted(learned, key=lambda recipe: -values[recipe])
        rounds.append(Round(looks, {recipe.name: values[recipe] for recipe in best_first}))
        on_round(rounds[-1])
        alive = _better_half(best_first, rounds[-1])
    for recipe in alive if rounds else ():
        needed = _fit(recipe, _per_look(recipe, seconds, first, costs), first, costs)
        if clock.allows(f"a fit by {recipe.name}", needed):
            return recipe
    return first


def _better_half(recipes: Sequence[Recipe], done: Round) -> list[Recipe]:
    by_name = {recipe.name: recipe for recipe in recipes}
    best_first = [by_name[name] for name in done.valid]
    return best_first[: (len(best_first) + 1) // 2]


def _per_look(
    recipe: Recipe, seconds: Mapping[Recipe, float], first: Recipe, costs: Costs
) -> float:
    """Seconds of one look more for all trainings of a recipe: as it took before, or a guess."""
    if recipe in seconds:
        return seconds[recipe]
    alike = [one for one in seconds if one.method == recipe.method]
    if alike:
        return seconds[alike[-1]] * (recipe.dim / alike[-1].dim) ** 2
    of_first = seconds.get(first, costs.pretrain / _WHOLE)
    return of_first if recipe == first else _OTHER_METHOD * of_first


def _fit(recipe: Recipe, per_look: float, first: Recipe, costs: Costs) -> float:
    at = costs.at_width(recipe.dim / first.dim)
    return _WHOLE * per_look + at.cat + at.art + at.choice


def _learn(recipe: Recipe, task: Task, looks: int, trial: Trial) -> dict[str, Pretrained]:
    # iALS looks after each epoch, BPR after several
    every = 1 if recipe.method == "ials" else task.config.pretrain.validate_every
    brief = changed(recipe.of(task.config), {"pretrain.max_epochs": looks * every})
    with trial(recipe.name, looks * every) as jobs:
        return smf(task.splits, brief, jobs, n_threads=task.n_threads, given=task.given)


def _values(learned: Mapping[Recipe, Mapping[str, Pretrained]], task: Task) -> dict[Recipe, float]:
    shared = {recipe: exchanged(task.splits, alone) for recipe, alone in learned.items()}
    by_domain = [
        _values_in(name, validation, learned, shared, task.max_bytes)
        for name, validation in task.validations.items()
    ]
    return {recipe: fmean(values[recipe] for values in by_domain) for recipe in learned}


def _values_in(
    domain: str,
    validation: Validation,
    learned: Mapping[Recipe, Mapping[str, Pretrained]],
    shared: Mapping[Recipe, UserEmbeddings],
    max_bytes: int,
) -> dict[Recipe, float]:
    n_domains = len(next(iter(shared.values())).domains)
    widest = max(recipe.dim for recipe in learned)
    models = ladder(domain, validation, n_domains=n_domains, dim=widest, max_bytes=max_bytes)
    solved = models.at(models.start) if models else None
    values: dict[Recipe, float] = {}
    for recipe, alone in learned.items():
        found = Candidates(validation)
        found.enter("smf", "smf", alone[domain].factors)
        if models and solved:
            by_weight = solved(shared[recipe])
            for weight in _SOURCE_WEIGHTS if n_domains > 1 else (0.0,):
                found.enter(models.told, f"{models.told}({weight:g})", by_weight(weight))
            found.enter_blends(models.told, "smf")
        values[recipe] = found.best.valid
    return values
