"""A full evaluation, lists and metrics of every user, against full sorting by torch and ranx.

Run it as ``python benchmarks/evaluate.py [--quick]``; README.md beside it says what is measured and
how to read it.  The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from pretrain import FULL, N_THREADS, OURS, QUICK, Plan, install_peers, synthetic
from rank import libraries_on, trained

from musketeers.data.domains import Split
from musketeers.errors import MusketeersError
from musketeers.evaluation.evaluate import evaluate
from musketeers.ranking import Factors

METRICS = tuple(f"{name}@{k}" for k in (10, 20) for name in ("precision", "recall", "ndcg"))
BATCH = 1024
WHOLE = (replace(FULL, n_users=40_000, n_pairs=2_100_000), 5, 3)
BRIEF = (replace(QUICK, n_users=6_000, n_pairs=300_000), 3, 3)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A model and a split to evaluate it on."""

    factors: Factors
    part: Split


def ours(case: Case) -> dict[str, float]:
    """The means that `evaluate` gives."""
    found = evaluate(case.factors, case.part.test, case.part.seen(), n_threads=N_THREADS)
    means = found.means()
    return {name: float(means[name]) for name in METRICS}


def lists_by_torch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Users with a test item and their best 20: a product, seen items at -inf, topk."""
    test, seen = case.part.test, case.part.seen()
    users = np.flatnonzero(test.known_users())
    items = torch.from_numpy(case.factors.items).T
    parts: list[torch.Tensor] = []
    for first in range(0, len(users), BATCH):
        batch = users[first : first + BATCH]
        scores = torch.from_numpy(case.factors.users[batch]) @ items
        rows = np.repeat(np.arange(len(batch)), seen.counts()[batch])
        columns = np.concatenate([seen.of(int(user)) for user in batch])
        scores[torch.from_numpy(rows), torch.from_numpy(columns.astype(np.int64))] = -torch.inf
        parts.append(torch.topk(scores, 20).indices)
    return users, torch.cat(parts).numpy()


def by_full_sort(case: Case) -> dict[str, float]:
    """As RecBole evaluates: full scores by torch, a matrix of hits, metrics by numpy."""
    users, lists = lists_by_torch(case)
    test = case.part.test
    n_relevant = test.counts()[users]
    pairs = test.users().astype(np.int64) * test.n_items + test.items
    hits = np.isin(users[:, None] * test.n_items + lists, pairs)
    discounts = 1 / np.log2(np.arange(2, 22))
    found: dict[str, float] = {}
    for k in (10, 20):
        n_hits = hits[:, :k].sum(axis=1)
        ideal = np.cumsum(discounts)[np.minimum(n_relevant, k) - 1]
        found[f"precision@{k}"] = float((n_hits / k).mean())
        found[f"recall@{k}"] = float((n_hits / n_relevant).mean())
        found[f"ndcg@{k}"] = float((hits[:, :k] @ discounts[:k] / ideal).mean())
    return found


def by_ranx(case: Case) -> dict[str, float]:
    """The same lists, with the metrics of ranx."""
    from ranx import Qrels, Run
    from ranx import evaluate as measure

    users, lists = lists_by_torch(case)
    test = case.part.test
    relevant = {str(u): {str(i): 1 for i in test.of(int(u))} for u in users}
    places = np.arange(20, 0, -1).tolist()
    named = (map(str, row) for row in lists.tolist())
    run = {str(u): dict(zip(row, places, strict=True)) for u, row in zip(users, named, strict=True)}
    return dict(measure(Qrels(relevant), Run(run), list(METRICS)))


WAYS: Mapping[str, Callable[[Case], dict[str, float]]] = {
    OURS: ours,
    "full sort": by_full_sort,
    "ranx": by_ranx,
}


def measured(plan: Plan, epochs: int, runs: int) -> dict[str, Any]:
    """All measurements, as the JSON object says them."""
    part = synthetic(plan).splits(0)["all"]
    case = Case(trained(part, epochs), part)
    means = {name: way(case) for name, way in WAYS.items()}
    furthest = max(
        abs(found[metric] - means[OURS][metric]) for found in means.values() for metric in METRICS
    )
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(runs):
        for name, way in WAYS.items():
            with libraries_on(1 if name == OURS else N_THREADS):
                start = time.perf_counter()
                way(case)
                times[name].append(time.perf_counter() - start)
    n_users = int(part.test.known_users().sum())
    rates = {name: round(n_users / median(found)) for name, found in times.items()}
    print(f"{n_users:,} users, {plan.n_items:,} items; means differ by {furthest:.1g} at most")
    for name, rate in rates.items():
        print(f"  {name:<12}{rate:>10,} users/s   NDCG@10 {means[name]['ndcg@10']:.4f}")
    peers = [name for name in WAYS if name != OURS]
    return {
        "name": "evaluate",
        "ratio": round(
            median(min(times[p][run] for p in peers) / times[OURS][run] for run in range(runs)), 3
        ),
        "ours": rates.pop(OURS),
        "peers": rates,
        "runs": runs,
        "unit": "users/s",
        "threads": N_THREADS,
        "means": means,
        "largest_difference": furthest,
        "versions": {name: version(name) for name in (OURS, "ranx", "torch", "numpy")},
    }


def main() -> None:
    """Measure what the command line asks for; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    arguments = parser.parse_args()
    install_peers()
    found = measured(*(BRIEF if arguments.quick else WHOLE))
    print(json.dumps(found | {"quick": arguments.quick}))


if __name__ == "__main__":
    try:
        main()
    except MusketeersError as error:
        sys.exit(f"error: {error}")
