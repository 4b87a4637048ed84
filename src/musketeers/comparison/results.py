"""What a comparison's jobs found together: means over seeds, tests, and where transfer harms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

import numpy as np
from jaxtyping import Float64

from musketeers.comparison.study import Study
from musketeers.errors import RunError
from musketeers.evaluation.compare import Cell, Difference, compare, corrected_together, pool
from musketeers.evaluation.evaluate import PerUser
from musketeers.models.model import Sees
from musketeers.models.registry import MODELS
from musketeers.seeding import Seed

REFERENCE = "smf"
"""The domain alone; a significant loss against it is negative transfer."""

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Summary:
    """One model in one cell."""

    mean: float
    """Over seeds."""
    deviation: float
    """Over seeds; NaN with one."""
    by_seed: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Everything that tables and pictures show."""

    models: tuple[str, ...]
    """In the order asked for; without those that failed everywhere."""
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: Mapping[str, Mapping[Cell, Summary]]
    """Model -> (domain, metric) -> its summary."""
    against: Mapping[str, Mapping[str, Mapping[Cell, Difference]]]
    """Reference (``smf``, ``best``) -> model -> (domain, metric) -> the difference.

    Tested over users, each user's mean over the seeds, corrected (Holm) for all models and cells
    of a reference, sampled metrics by themselves; the interval is a bootstrap's over users, of the
    cell alone.
    """
    valid: Mapping[str, Mapping[str, float]]
    """Model -> domain -> mean validation NDCG@10."""
    best_alone: Mapping[str, str]
    """Domain -> the model on own data with the best mean validation NDCG@10, no control; without
    domains where all of these failed."""
    seconds: Mapping[str, float]
    """Model -> mean seconds of all tries of a seed."""
    failed: Mapping[str, str]
    """Job -> why."""


def results(study: Study) -> Results:
    """The study's jobs, summed up.

    A model counts in a domain with the seeds that did not fail; it is compared with a reference
    over the seeds that both have.  Raises `RunError` if the domain alone has no result.
    """
    by_model = seeds_of(study)
    if REFERENCE not in by_model:
        why = next(iter(study.failed.values()), "no job was run")
        raise RunError(f"{REFERENCE} failed, and all else is measured against it: {why}")
    domains = tuple(study.config.data.domains)
    metrics = tuple(next(iter(next(iter(by_model[REFERENCE].values())).values())).values)
    valid = _valid(study, tuple(by_model))
    best = {d: name for d in domains if (name := best_of(valid, "own data", [d]))}
    references = {
        REFERENCE: dict.fromkeys(domains, REFERENCE),
        "best": best,
    }
    return Results(
        models=tuple(by_model),
        domains=domains,
        metrics=metrics,
        cells={name: _summaries(found) for name, found in by_model.items()},
        against={name: _against(by_model, chosen) for name, chosen in references.items()},
        valid=valid,
        best_alone=best,
        seconds={name: _seconds(study, name) for name in by_model},
        failed={job.name: why for job, why in study.failed.items()},
    )


BySeed = Mapping[int, PerUser]


def seeds_of(study: Study) -> dict[str, dict[str, dict[int, PerUser]]]:
    """Model -> domain -> seed -> metrics."""
    found: dict[str, dict[str, dict[int, PerUser]]] = {}
    for name in study.models:
        for job, one in study.found.items():
            if job.model == name:
                for domain, measured in one.metrics.items():
                    found.setdefault(name, {}).setdefault(domain, {})[job.seed] = measured
    return found


def paired(one: BySeed, other: BySeed) -> tuple[PerUser, PerUser] | None:
    """Both pooled over the seeds that both have, if any."""
    seeds = sorted(set(one) & set(other))
    return (pool([one[s] for s in seeds]), pool([other[s] for s in seeds])) if seeds else None


def best_of(
    valid: Mapping[str, Mapping[str, float]], sees: Sees, domains: Sequence[str]
) -> str | None:
    """Of the models that see as much and are no control, the best by mean validation NDCG@10.

    The mean is over `domains`, and a model that lacks one does not count; None if none is left.
    """
    means = {
        name: mean(found[domain] for domain in domains)
        for name, found in valid.items()
        if MODELS[name].sees == sees and not MODELS[name].control
        if set(domains) <= set(found)
    }
    return max(means, key=means.__getitem__, default=None)


def _valid(study: Study, names: Sequence[str]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for job, one in study.found.items():
        for domain, value in one.valid.items():
            values[job.model].setdefault(domain, []).append(value)
    return {name: {d: mean(one) for d, one in found.items()} for name, found in values.items()}


def _summaries(found: Mapping[str, BySeed]) -> dict[Cell, Summary]:
    cells: dict[Cell, Summary] = {}
    for domain, by_seed in found.items():
        means = [by_seed[seed].means() for seed in sorted(by_seed)]
        for name in next(iter(by_seed.values())).values:
            values = tuple(float(one[name]) for one in means)
            deviation = stdev(values) if len(values) > 1 else math.nan
            cells[domain, name] = Summary(mean(values), deviation, values)
    return cells


def _against(
    by_model: Mapping[str, Mapping[str, BySeed]], references: Mapping[str, str]
) -> dict[str, dict[Cell, Difference]]:
    """Every model against the domain's reference, corrected together."""
    tested: dict[tuple[str, Cell], Difference] = {}
    for name, found in by_model.items():
        for domain, by_seed in found.items():
            other = references.get(domain, name)
            pair = paired(by_seed, by_model[other].get(domain, {}))
            if other == name or not pair:
                continue
            one, reference = pair
            cells = compare({domain: one}, {domain: reference})
            reach = _bootstrap(domain, one, reference)
            for cell, difference in cells.items():
                low, high = reach[cell[1]]
                tested[name, cell] = replace(difference, low=low, high=high)
    p_values = np.array([one.p for one in tested.values()], dtype=np.float64)
    corrected = corrected_together([cell for _, cell in tested], p_values)
    together: dict[str, dict[Cell, Difference]] = {name: {} for name in by_model}
    for ((name, cell), one), p in zip(tested.items(), corrected.tolist(), strict=True):
        together[name][cell] = replace(one, p_corrected=p, significant=p < 0.05)
    return together


def _bootstrap(domain: str, one: PerUser, other: PerUser) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each metric's mean difference over resampled users (percentiles)."""
    n = len(one.users)
    rng = Seed(0, ("bootstrap", domain)).numpy()
    differences: Float64[np.ndarray, "metric user"] = np.stack(
        [one.values[name] - other.values[name] for name in one.values]
    )
    means = np.stack(
        [differences[:, rng.integers(n, size=n)].mean(axis=1) for _ in range(RESAMPLES)]
    )
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return {name: (float(low[m]), float(high[m])) for m, name in enumerate(one.values)}


def _seconds(study: Study, name: str) -> float:
    tries = [
        tried["seconds"]
        for job, one in study.found.items()
        if job.model == name
        for tried in one.about["tries"]
    ]
    return sum(tries) / study.n_seeds
