"""Who gains over the domain alone, and from which other domain: NDCG@10 in parts.

What a source is worth is measured by hiding it from the trained model (`jobs.Found.hidden`).
Training without it would tell more, at the price of a comparison for each source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import get_args

import numpy as np
from jaxtyping import Int

from musketeers.comparison.results import REFERENCE, Results, best_of, paired, seeds_of
from musketeers.comparison.study import Study
from musketeers.data.interactions import Interactions
from musketeers.evaluation.compare import Difference, compare_pairs, pool
from musketeers.evaluation.evaluate import PerUser
from musketeers.models.model import Sees
from musketeers.report.words import HEADLINE_METRIC


@dataclass(frozen=True, slots=True)
class Group:
    """Some test users of a domain."""

    low: int
    """What they were grouped by: the smallest, and the largest."""
    high: int
    difference: Difference
    """In NDCG@10, over these users alone."""


Groups = Mapping[str, Mapping[str, Sequence[Group]]]
"""Domain -> model -> its groups, ascending."""
Pairs = Mapping[tuple[str, str], Difference]
"""(target, source) -> what hiding the source takes away."""


@dataclass(frozen=True, slots=True, eq=False)
class Gains:
    """Users are pooled over seeds as in `Results.against`.

    p-values are corrected for a model's groups in a domain, and for a model's pairs.
    """

    by_activity: Groups
    """Against the domain alone, by the user's training interactions there."""
    by_known: Groups
    """The same by the number of domains whose training data know the user."""
    by_source: Mapping[str, Pairs]
    """Model -> the trained model against itself with a source hidden when users are ranked."""
    attention: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Model -> target -> source -> mean weight, over the seeds in which transfer was kept."""


def gains(study: Study, results: Results, trains: Mapping[str, Interactions]) -> Gains:
    """The gains of the models that `shown` names, and of every model that sources were hidden from.

    `trains` is any seed's: how many of a user's interactions are held out does not depend on it.
    """
    known = np.sum([train.known_users() for train in trains.values()], axis=0)
    return Gains(
        _by(study, results, lambda domain: trains[domain].counts(), quantile_groups),
        _by(study, results, lambda _: known, lambda values: values),
        {name: found for name in results.models if (found := _by_source(study, name))},
        {name: found for name in results.models if (found := _attention(study, name))},
    )


def shown(results: Results) -> tuple[str, ...]:
    """CAT-ART, and of each kind the best on validation beside SMF, over all domains."""
    others = {name: found for name, found in results.valid.items() if name != REFERENCE}
    best = [best_of(others, sees, results.domains) for sees in get_args(Sees)]
    return tuple(name for name in results.models if name == "cat_art" or name in best)


Users = Int[np.ndarray, " user"]


def quantile_groups(values: Users, n: int = 4) -> Users:
    """Each value's group, numbered from 0 by size; equal values stay together.

    Groups are as equal as that allows, and fewer than `n` where one value is very common.
    """
    shares = np.arange(1, n) / n
    edges = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    return np.unique(np.searchsorted(edges, values), return_inverse=True)[1]


def _by(
    study: Study,
    results: Results,
    values_of: Callable[[str], Users],
    grouped: Callable[[Users], Users],
) -> Groups:
    """Every domain's users in groups by the values that its rows have."""
    by_model = seeds_of(study)
    found: dict[str, dict[str, list[Group]]] = {domain: {} for domain in results.domains}
    for domain, by_name in found.items():
        for name in shown(results):
            pair = paired(by_model[name].get(domain, {}), by_model[REFERENCE].get(domain, {}))
            if pair:
                values = values_of(domain)[pair[0].users]
                by_name[name] = _groups(*pair, values, grouped(values))
    return found


def _groups(one: PerUser, other: PerUser, values: Users, groups: Users) -> list[Group]:
    chosen = {int(group): groups == group for group in np.unique(groups)}
    pairs = {n: (_only(one, rows), _only(other, rows)) for n, rows in chosen.items()}
    found = compare_pairs(pairs)
    return [
        Group(int(values[rows].min()), int(values[rows].max()), found[n])
        for n, rows in chosen.items()
    ]


def _only(measured: PerUser, chosen: np.ndarray) -> PerUser:
    values = {HEADLINE_METRIC: measured.values[HEADLINE_METRIC][chosen]}
    return PerUser(measured.users[chosen], values)


def _by_source(study: Study, name: str) -> Pairs:
    runs: dict[tuple[str, str], list[tuple[PerUser, PerUser]]] = {}
    for job, found in study.found.items():
        if job.model == name:
            for target, sources in found.hidden.items():
                users, values = found.metrics[target].users, found.metrics[target].values
                whole = PerUser(users, {HEADLINE_METRIC: values[HEADLINE_METRIC]})
                for source, without in sources.items():
                    pair = whole, PerUser(users, {HEADLINE_METRIC: without})
                    runs.setdefault((target, source), []).append(pair)
    return compare_pairs(
        {
            pair: (pool([whole for whole, _ in of]), pool([without for _, without in of]))
            for pair, of in runs.items()
        }
    )


def _attention(study: Study, name: str) -> dict[str, dict[str, float]]:
    weights: dict[str, dict[str, list[float]]] = {}
    for job, found in study.found.items():
        if job.model == name:
            for target, sources in found.attention.items():
                by_source = weights.setdefault(target, {})
                for source, weight in sources.items():
                    by_source.setdefault(source, []).append(weight)
    return {
        t: {s: mean(w) for s, w in sources.items()} for t, sources in weights.items() if sources
    }
