"""Exact top-20 lists against faiss, implicit and torch, in users a second.

Run it as ``python benchmarks/rank.py [--quick]``; README.md beside it says what is measured and how
to read it.  The last line is one JSON object.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from numba import njit
from pretrain import DIM, FULL, N_THREADS, OURS, QUICK, Plan, install_peers, synthetic
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from musketeers import inner_products
from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import MusketeersError
from musketeers.evaluation.validation import Validation
from musketeers.instructions import TOGETHER, reached
from musketeers.parallel import each
from musketeers.pretrain.mf import pretrain
from musketeers.ranking import Factors, top_k
from musketeers.seeding import Seed
from musketeers.training import Unwatched

K = 20
TORCH_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    plans: tuple[Plan, ...]
    """Synthetic tables to train on."""
    n_users: int
    """Users who get a list."""
    epochs: int
    als_rounds: int
    runs: int


WIDE = replace(FULL, n_items=100_000)
WHOLE = Size((FULL, WIDE), n_users=20_000, epochs=10, als_rounds=5, runs=5)
BRIEF = Size(
    (replace(QUICK, n_items=20_000),), n_users=2_500, epochs=3, als_rounds=2, runs=3
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Vectors to rank by, and what their users have seen."""

    name: str
    factors: Factors
    users: np.ndarray
    seen: Interactions
    is_trained: bool


# 1. Vectors


def cases(size: Size) -> Iterator[Case]:
    """Trained by us, trained by implicit's ALS, and not trained at all, for every plan."""
    for plan in size.plans:
        part = synthetic(plan).splits(0)["all"]
        seen, users = part.seen(), np.arange(min(size.n_users, plan.n_users))
        label = f"{plan.n_items:,} items"
        for name, factors in (
            ("our BPR", trained(part, size.epochs)),
            ("implicit's ALS", by_als(part.train, size.als_rounds)),
            ("equal norms", of_equal_norm(plan)),
        ):
            yield Case(f"{label}, {name}", factors, users, seen, name != "equal norms")


def trained(part: Split, epochs: int) -> Factors:
    """Our stage 1, for as many epochs."""
    seed = Seed(0, ("rank",))
    config = PretrainConfig(tries=1, max_epochs=epochs, patience=epochs)
    watched = Validation.of(part, seed.child("validation"), n_threads=N_THREADS)
    return pretrain(part, watched, config, seed, Unwatched(), dim=DIM).factors


def by_als(train: Interactions, rounds: int) -> Factors:
    """The least squares of implicit, for as many rounds."""
    from implicit.cpu.als import AlternatingLeastSquares

    model: Any = AlternatingLeastSquares(
        factors=DIM, iterations=rounds, num_threads=N_THREADS, random_state=0
    )
    model.fit(matrix(train), show_progress=False)
    return Factors(model.user_factors, model.item_factors)


def matrix(pairs: Interactions) -> csr_matrix:
    """The same for scipy; implicit refuses arrays that are read-only."""
    ones = np.ones(len(pairs), np.float32)
    own = (pairs.items.copy(), pairs.indptr.copy())
    return csr_matrix((ones, *own), shape=(pairs.n_users, pairs.n_items))


def of_equal_norm(plan: Plan) -> Factors:
    """Random directions: nothing but the product itself tells who is far from the best."""
    rng = Seed(0, ("equal norms",)).numpy()
    vectors = (
        rng.standard_normal((n, DIM), dtype=np.float32) for n in (plan.n_users, plan.n_items)
    )
    return Factors(*(v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors))


# 2. Who ranks


def ours(case: Case) -> np.ndarray:
    """Lists without what was seen."""
    found = top_k(case.factors, case.users, k=K, seen=case.seen, n_threads=N_THREADS)
    return found.items


def by_faiss(case: Case) -> np.ndarray:
    """IndexFlatIP, which cannot skip what was seen."""
    import faiss

    faiss.omp_set_num_threads(N_THREADS)
    index = faiss.IndexFlatIP(case.factors.items.shape[1])
    index.add(case.factors.items)
    return index.search(case.factors.users[case.users], K)[1]


def by_implicit(case: Case) -> np.ndarray:
    """implicit's topk, which skips what was seen."""
    from implicit.cpu.topk import topk

    seen = matrix(case.seen)[case.users]
    vectors = case.factors.users[case.users]
    return topk(
        case.factors.items, vectors, K, filter_query_items=seen, num_threads=N_THREADS
    )[0]  # fmt: skip


def by_torch(case: Case) -> np.ndarray:
    """A product and a topk for a thousand users at once; skips nothing."""
    items = torch.from_numpy(case.factors.items).T
    vectors = torch.from_numpy(case.factors.users[case.users])
    parts = [torch.topk(part @ items, K).indices for part in vectors.split(TORCH_BATCH)]
    return torch.cat(parts).numpy()


PEERS: Mapping[str, Callable[[Case], np.ndarray]] = {
    "faiss": by_faiss,
    "implicit": by_implicit,
    "torch": by_torch,
}


@contextmanager
def libraries_on(n_threads: int) -> Iterator[None]:
    """So many threads for torch and for every BLAS that is loaded."""
    torch.set_num_threads(n_threads)
    with threadpool_limits(n_threads):
        yield


def seconds(rank: Callable[[Case], np.ndarray], case: Case) -> float:
    """Wall time of one call; our own threads share out the products, the peers' libraries do."""
    with libraries_on(1 if rank is ours else N_THREADS):
        start = time.perf_counter()
        rank(case)
        return time.perf_counter() - start


# 3. What is measured


def measured(size: Size) -> dict[str, Any]:
    """All measurements, as the JSON object says them."""
    limits = {"float32": float_rate(), "int8": byte_rate()}
    print("this machine multiplies and adds, billions a second: "
          + ", ".join(f"{rate:.0f} in {kind}" for kind, rate in limits.items()))  # fmt: skip
    print(f"\n{'thousand users/s':<34}" + "".join(f"{n:>12}" for n in (OURS, *PEERS))
          + f"{'ratio':>8}{'of float32':>12}{'of int8':>9}{'differ':>8}")  # fmt: skip
    rows = {case.name: row(case, size.runs, limits) for case in cases(size)}
    trained_rows = [found for found in rows.values() if found["trained"]]
    worst = min(trained_rows, key=lambda found: found["ratio"])
    return {
        "name": "rank",
        "ratio": worst["ratio"],
        "ours": worst["users_per_second"][OURS],
        "peers": {name: worst["users_per_second"][name] for name in PEERS},
        "runs": size.runs,
        "unit": "users/s",
        "threads": N_THREADS,
        "dim": DIM,
        "k": K,
        "limits": {kind: round(rate, 1) for kind, rate in limits.items()},
        "cases": rows,
        "versions": {
            name: version(name) for name in (OURS, "faiss-cpu", "implicit", "torch", "numpy")
        },
    }


def row(case: Case, runs: int, limits: Mapping[str, float]) -> dict[str, Any]:
    """One line of the table: everybody in turn, the median over runs."""
    ways = {OURS: ours, **PEERS}
    differ = disagreements(case)
    for rank in ways.values():
        seconds(rank, case)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, rank in ways.items():
            times[name].append(seconds(rank, case))
    rates = {name: len(case.users) / median(found) for name, found in times.items()}
    ratio = median(
        min(times[name][run] for name in PEERS) / times[OURS][run] for run in range(runs)
    )
    # what a full product would have to do in the same time
    rate = rates[OURS] * case.factors.items.size / 1e9
    print(f"{case.name:<34}" + "".join(f"{found / 1e3:12.1f}" for found in rates.values())
          + f"{ratio:8.2f}{rate / limits['float32']:12.2f}{rate / limits['int8']:9.2f}"
          + f"{differ:8d}", flush=True)  # fmt: skip
    return {
        "ratio": round(ratio, 3),
        "trained": case.is_trained,
        "users_per_second": {name: round(found) for name, found in rates.items()},
        "of_float32": round(rate / limits["float32"], 3),
        "of_int8": round(rate / limits["int8"], 3),
        "lists_that_differ": differ,
    }


def disagreements(case: Case) -> int:
    """Users whose list, nothing skipped, is not faiss's but for ties within rounding."""
    found = top_k(case.factors, case.users, k=K, seen=None, n_threads=N_THREADS)
    theirs = case.factors.exact(case.users, by_faiss(case))
    within = 2 * case.factors.error(case.users)[:, None]
    return int((np.abs(np.sort(-theirs, axis=1) + found.scores) > within).any(axis=1).sum())


def float_rate() -> float:
    """Multiplications in float32, in billions a second, as a matrix product does them."""
    left = np.ones((2048, 512), np.float32)
    right = np.ones((512, 2048), np.float32)
    out = np.empty((2048, 2048), np.float32)
    with libraries_on(N_THREADS):
        return left.size * 2048 / 1e9 / fastest(lambda: np.matmul(left, right, out=out))


def byte_rate() -> float:
    """The same of bytes, as our loop does them; nan where the processor has no such instruction."""
    if not inner_products.supported(DIM):
        return math.nan
    rng = Seed(0).numpy()
    items = rng.standard_normal((2048, DIM), dtype=np.float32)
    groups = inner_products.Catalogue.of(items).rounded
    users = rng.integers(-9, 9, (192, DIM)).astype(np.int8)
    seconds = fastest(
        lambda: each(lambda _: _multiply_all(groups, users, 20), N_THREADS, n_threads=N_THREADS)
    )
    return N_THREADS * 20 * users.size * len(items) / 1e9 / seconds


@njit(nogil=True)
def _multiply_all(groups, users, rounds):
    places = np.arange(len(users))
    cuts = np.full(TOGETHER, 2**31 - 1, np.int32)
    masks = np.empty(TOGETHER, np.uint64)
    for _ in range(rounds):
        for group in range(len(groups)):
            for first in range(0, len(users), TOGETHER):
                reached(groups, group, users, places, first, cuts, masks)


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the best of ten calls after a first."""
    work()
    times: list[float] = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure what the command line asks for; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    arguments = parser.parse_args()
    install_peers()
    print(json.dumps(measured(BRIEF if arguments.quick else WHOLE) | {"quick": arguments.quick}))


if __name__ == "__main__":
    try:
        main()
    except MusketeersError as error:
        sys.exit(f"error: {error}")
