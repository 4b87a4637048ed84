"""What a comparison's jobs found together: means over seeds, tests, and where transfer harms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

import numpy as np
from jaxtyping import Float64

from musketeers.comparison.models import MODELS
from musketeers.comparison.study import Study
from musketeers.errors import RunError
from musketeers.evaluation.compare import Cell, Difference, compare, corrected_together, pool
from musketeers.evaluation.evaluate import PerUser
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
    best_alone: Mapping[str, str]
    """Domain -> the model on own data with the best mean validation NDCG@10; without domains where
    all of these failed."""
    seconds: Mapping[str, float]
    """Model -> mean seconds of all tries of a seed."""
    failed: Mapping[str, str]
    """Job -> why."""


def results(study: Study) -> Results:
    """The study's jobs, summed up.

    A model counts in a domain with the seeds that did not fail; it is compared with a reference
    over the seeds that both have.  Raises `RunError` if the domain alone has no result.
    """
    by_model = _by_model(study)
    if REFERENCE not in by_model:
        why = next(iter(study.failed.values()), "no job was run")
        raise RunError(f"{REFERENCE} failed, and all else is measured against it: {why}")
    domains = tuple(study.config.data.domains)
    metrics = tuple(next(iter(next(iter(by_model[REFERENCE].values())).values())).values)
    best = _best_alone(study, domains)
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
        best_alone=best,
        seconds={name: _seconds(study, name) for name in by_model},
        failed={job.name: why for job, why in study.failed.items()},
    )


BySeed = Mapping[int, PerUser]


def _by_model(study: Study) -> dict[str, dict[str, dict[int, PerUser]]]:
    """Model -> domain -> seed -> metrics."""
    found: dict[str, dict[str, dict[int, PerUser]]] = {}
    for name in study.models:
        for job, one in study.found.items():
            if job.model == name:
                for domain, measured in one.metrics.items():
                    found.setdefault(name, {}).setdefault(domain, {})[job.seed] = measured
    return found


def _best_alone(study: Study, domains: Sequence[str]) -> dict[str, str]:
    valid: dict[tuple[str, str], list[float]] = {}
    for job, one in study.found.items():
        if MODELS[job.model].sees == "own data":
            for domain, value in one.valid.items():
                valid.setdefault((domain, job.model), []).append(value)
    best: dict[str, str] = {}
    for domain in domains:
        # none is left where all of them failed
        if names := [name for of, name in valid if of == domain]:
            best[domain] = max(names, key=lambda name: mean(valid[domain, name]))
    return best


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
            against = references.get(domain, name)
            other = by_model[against].get(domain, {})
            seeds = sorted(set(by_seed) & set(other))
            if against == name or not seeds:
                continue
            one, reference = (pool([of[seed] for seed in seeds]) for of in (by_seed, other))
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
