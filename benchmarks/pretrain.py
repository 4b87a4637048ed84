"""Stage 1 against the BPR of implicit and of Cornac, by speed and by ranking; stage 3 against 1.

Run it as ``python benchmarks/pretrain.py [--quick] [--items N] [--data FOLDER] [--seeds N]
[--speed-only]``; README.md beside it says what is measured and how to read it.  The last line is
one JSON object.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from data_sets import SETS, settings
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from musketeers.config import (
    ArtConfig,
    CatConfig,
    DataConfig,
    PretrainConfig,
    RunConfig,
    SplitConfig,
)
from musketeers.data import readers
from musketeers.data.domains import Domain, Domains, Split
from musketeers.data.interactions import Interactions
from musketeers.data.splits import split
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import DataError, MusketeersError
from musketeers.evaluation.compare import compare, pool
from musketeers.evaluation.evaluate import PerUser, evaluate
from musketeers.evaluation.validation import Validation
from musketeers.pipeline import cat_art, validations
from musketeers.pretrain.mf import pretrain
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.task import unwatched
from musketeers.training import History, Unwatched

DIM = 64
N_THREADS = 2
OURS = "musketeers"
ALONE = "on one thread"
"""Ours again, to show what the second thread brings."""
PEERS_FILE = Path(__file__).with_name("peers.txt")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer is tuned by; epochs are chosen on the way."""

    learning_rate: float
    regularization: float

    def __str__(self) -> str:
        return f"lr {self.learning_rate:g} reg {self.regularization:g}"


SPEED_SETTING = Setting(0.03, 0.01)
GRID = tuple(Setting(*point) for point in product((0.01, 0.03, 0.1), (0.002, 0.01, 0.05)))
SMALL_GRID = tuple(Setting(*point) for point in product((0.01, 0.03, 0.1), (0.002, 0.01)))
QUICK_GRID = (Setting(0.03, 0.01), Setting(0.1, 0.002))
LADDER = (10, 20, 40, 80, 160)
PATIENCE = 2
"""Rungs of the ladder without a better validation NDCG@10 before a setting is given up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    n_users: int
    n_items: int
    n_pairs: int
    runs: int
    samples: int
    """Interactions that one speed run works through, about."""
    ours: PretrainConfig
    synthetic_grid: tuple[Setting, ...]
    synthetic_ladder: tuple[int, ...]
    stage_epochs: int


FULL = Plan(
    n_users=200_000, n_items=50_000, n_pairs=10_600_000, runs=5, samples=25_000_000,
    ours=PretrainConfig(), synthetic_grid=SMALL_GRID,
    synthetic_ladder=(5, 10, 20, 40), stage_epochs=10,
)  # fmt: skip
# quickly, everybody gets two settings and ten epochs
QUICK = Plan(
    n_users=20_000, n_items=5_000, n_pairs=850_000, runs=3, samples=2_000_000,
    ours=PretrainConfig(tries=2, max_epochs=10, patience=3),
    synthetic_grid=QUICK_GRID, synthetic_ladder=(5, 10), stage_epochs=2,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Domains that share users, and how they are split."""

    name: str
    domains: Domains
    config: RunConfig

    def splits(self, seed: int) -> dict[str, Split]:
        """Train, valid and test of every domain."""
        return split(self.domains, self.config.split, Seed(seed))


# 1. Data


def synthetic(plan: Plan) -> DataSet:
    """One domain of long-tailed popularity and activity, with three planted tastes a user."""
    rng = Seed(0, ("synthetic",)).numpy()
    n_tastes = 100
    fame = rng.permutation((10.0 + np.arange(plan.n_items)) ** -1.0)
    weights = fame * np.exp(1.5 * rng.standard_normal((n_tastes, plan.n_items)))
    reached = np.cumsum(weights, axis=1)
    # all tastes in one ascending row, so that one search serves all draws
    steps = (reached / reached[:, -1:] + np.arange(n_tastes)[:, np.newaxis]).ravel()
    volume = np.exp(0.8 * rng.standard_normal(plan.n_users))
    # the repeats among the draws, about a seventh, are dropped
    counts = np.rint(1.15 * plan.n_pairs * volume / volume.sum()).astype(np.int64).clip(5)
    users = np.repeat(np.arange(plan.n_users), counts)
    liked = rng.integers(n_tastes, size=(plan.n_users, 3))
    tastes = liked[users, rng.choice(3, size=len(users), p=(0.6, 0.3, 0.1))]
    places = np.searchsorted(steps, tastes + rng.random(len(users)), side="right")
    items = (places - tastes * plan.n_items).clip(0, plan.n_items - 1)
    pairs = Interactions.from_pairs(users, items, n_users=plan.n_users, n_items=plan.n_items)
    vocabularies = (Vocabulary.of(pl.Series(np.arange(n))) for n in (pairs.n_users, pairs.n_items))
    user_ids, item_ids = vocabularies
    data = DataConfig(domains={"all": "generated"})
    config = RunConfig(dim=DIM, data=data, split=SplitConfig(test=0.1, valid=0.1))
    return DataSet("synthetic", Domains(user_ids, {"all": Domain(item_ids, pairs)}), config)


def presets(folder: Path | None) -> Iterator[DataSet]:
    """The real data sets that are there; says which are not."""
    for name in SETS:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = settings(name, folder, Path(scratch))
            except DataError as error:
                print(f"{name}: left out; {error}")
                continue
            if found is None:
                print(f"{name}: left out; --data names no folder with it")
                continue
            config, base = found
            domains = readers.read(config.data, base=base).domains
            yield DataSet(name, domains, config.model_copy(update={"dim": DIM}))


# 2. Peers


class Peer(Protocol):
    """A model of another library, on the training pairs that it was made with."""

    def train(self, epochs: int) -> None:
        """Go on for as many epochs; 0 does all that comes before the first."""
        ...

    def factors(self) -> Factors:
        """Copies of its vectors as they are now, biases as one more dimension."""
        ...


class Implicit:
    """implicit's BPR, which draws negatives by popularity; a `Peer`."""

    def __init__(self, train: Interactions, setting: Setting, seed: Seed) -> None:
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        self._model: Any = BayesianPersonalizedRanking(
            factors=DIM, learning_rate=setting.learning_rate,
            regularization=setting.regularization, num_threads=N_THREADS,
            random_state=seed.numpy(),
        )  # fmt: skip
        shape = (train.n_users, train.n_items)
        ones = np.ones(len(train), np.float32)
        # implicit refuses arrays that are read-only
        own = (train.items.copy(), train.indptr.copy())
        self._pairs = csr_matrix((ones, *own), shape=shape)

    def train(self, epochs: int) -> None:
        """See `Peer.train`; a second fit goes on with the vectors and draws of the first."""
        self._model.iterations = epochs
        self._model.fit(self._pairs, show_progress=False)

    def factors(self) -> Factors:
        """See `Peer.factors`; the item bias is a column of implicit's own."""
        return Factors(self._model.user_factors.copy(), self._model.item_factors.copy())


class Cornac:
    """Cornac's BPR, which draws negatives uniformly; a `Peer`."""

    def __init__(self, train: Interactions, setting: Setting, seed: Seed) -> None:
        from cornac.data import Dataset

        self._setting = setting
        triples = (train.users(), train.items, np.ones(len(train), np.float32))
        user_ids, item_ids = (
            OrderedDict(zip(range(n), range(n), strict=True))
            for n in (train.n_users, train.n_items)
        )
        self._pairs: Any = Dataset(train.n_users, train.n_items, user_ids, item_ids, triples)
        rng = seed.numpy()
        # as Cornac starts them; given a seed of its own it would use one thread
        self._params: dict[str, Any] = {
            name: (rng.random((n, DIM), dtype=np.float32) - np.float32(0.5)) / np.float32(DIM)
            for name, n in (("U", train.n_users), ("V", train.n_items))
        } | {"Bi": np.zeros(train.n_items, np.float32)}

    def train(self, epochs: int) -> None:
        """See `Peer.train`; each fit is a new model on the same arrays."""
        from cornac.models import BPR

        model: Any = BPR(
            k=DIM, max_iter=epochs, learning_rate=self._setting.learning_rate,
            lambda_reg=self._setting.regularization, num_threads=N_THREADS,
            init_params=self._params,
        )  # fmt: skip
        model.fit(self._pairs)

    def factors(self) -> Factors:
        """See `Peer.factors`."""
        ones = np.ones((len(self._params["U"]), 1), np.float32)
        biases = self._params["Bi"][:, np.newaxis]
        return Factors(np.hstack([self._params["U"], ones]), np.hstack([self._params["V"], biases]))


PEERS: Mapping[str, Callable[[Interactions, Setting, Seed], Peer]] = {
    "implicit": Implicit,
    "cornac": Cornac,
}


def install_peers() -> None:
    """The exact versions in peers.txt, into the environment that runs this."""
    lines = PEERS_FILE.read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    if all(_installed(name) == wanted for name, wanted in pins):
        return
    print(f"installing {PEERS_FILE.name}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "-r", str(PEERS_FILE)]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        sys.exit(f"pip could not install {PEERS_FILE}; its messages above say why")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# 3. Speed


def speed(label: str, part: Split, plan: Plan) -> dict[str, list[float]]:
    """Samples a second of each library, training only, one number per run; taken in turn."""
    n_pairs = len(part.train)
    epochs = max(3, round(plan.samples / n_pairs))
    print(f"\n{label}: {n_pairs:,} training pairs, {part.train.n_users:,} users, "
          f"{part.train.n_items:,} items, {epochs} epochs a run")  # fmt: skip
    names = (OURS, ALONE, *PEERS)
    print(f"  {'million samples/s':<18}" + "".join(f"{name:>14}" for name in names))
    rates: dict[str, list[float]] = {name: [] for name in names}
    for run in range(plan.runs):
        seed = Seed(run, ("speed",))
        rates[OURS].append(epochs * n_pairs / our_seconds(part, epochs, seed))
        rates[ALONE].append(epochs * n_pairs / our_seconds(part, epochs, seed, n_threads=1))
        for name in PEERS:
            seconds = peer_seconds(name, part.train, epochs, seed)
            rates[name].append(epochs * n_pairs / seconds)
        print(_rates_line(f"run {run + 1}", {name: found[-1] for name, found in rates.items()}))
    print(_rates_line("median", {name: median(found) for name, found in rates.items()}))
    return rates


def our_seconds(part: Split, epochs: int, seed: Seed, *, n_threads: int = N_THREADS) -> float:
    """Training time of `epochs` passes after a first one, without the validations between."""
    # a look at each epoch, so that each is timed by itself
    config = PretrainConfig(tries=1, max_epochs=epochs + 1, patience=epochs + 1, validate_every=1)
    looked_at = Validation.of(part, seed.child("validation"), n_threads=n_threads)
    made = pretrain(part, looked_at, config, seed, Unwatched(), dim=DIM)
    return sum(epoch.seconds for epoch in made.history[0].epochs if epoch.number > 1)


def peer_seconds(name: str, train: Interactions, epochs: int, seed: Seed) -> float:
    """Training time of `epochs` passes after a first one, without the preparation of a fit."""
    model = PEERS[name](train, SPEED_SETTING, seed)
    model.train(1)
    return timed(model, epochs) - timed(model, 0)


def timed(model: Peer, epochs: int) -> float:
    """Wall time of `epochs` more."""
    start = time.perf_counter()
    model.train(epochs)
    return time.perf_counter() - start


def _rates_line(what: str, rates: Mapping[str, float]) -> str:
    return f"  {what:<18}" + "".join(f"{rate / 1e6:14.2f}" for rate in rates.values())


# 4. Quality


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The model of one library that validation chose."""

    valid: float
    factors: Factors
    chosen: str
    seconds: float
    """Training time of everything tried; 0 until known."""


def our_best(part: Split, looked_at: Validation, seed: Seed, plan: Plan) -> Tuned:
    """Ours with the plan's settings, which try strengths of regularisation by themselves."""
    made = pretrain(part, looked_at, plan.ours, seed, Unwatched(), dim=DIM)
    best = max((history.best for history in made.history), key=lambda epoch: epoch.valid)
    seconds = sum(epoch.seconds for history in made.history for epoch in history.epochs)
    chosen = f"reg {made.regularization:.3g} epochs {best.number}"
    return Tuned(best.valid, made.factors, chosen, seconds)


def peer_best(
    name: str, part: Split, looked_at: Validation, seed: Seed, grid: tuple[Setting, ...],
    ladder: tuple[int, ...],
) -> Tuned:  # fmt: skip
    """The best of all settings of the grid at all rungs of the ladder of epochs."""
    found = [climb(name, part, looked_at, seed, setting, ladder) for setting in grid]
    best = max(found, key=lambda tuned: tuned.valid)
    return replace(best, seconds=sum(tuned.seconds for tuned in found))


def climb(
    name: str, part: Split, looked_at: Validation, seed: Seed, setting: Setting,
    ladder: tuple[int, ...],
) -> Tuned:  # fmt: skip
    """One setting at its best rung; it stops where it diverges or no longer improves."""
    model = PEERS[name](part.train, setting, seed)
    model.train(0)
    best = Tuned(-math.inf, model.factors(), f"{setting} epochs 0", 0)
    seconds, done, worse = 0.0, 0, 0
    for rung in ladder:
        seconds += timed(model, rung - done)
        done, made = rung, model.factors()
        if not np.isfinite(made.users).all() or not np.isfinite(made.items).all():
            break
        valid = looked_at.ndcg(made)
        worse = 0 if valid > best.valid else worse + 1
        if valid > best.valid:
            best = Tuned(valid, made, f"{setting} epochs {rung}", 0)
        if worse == PATIENCE:
            break
    return replace(best, seconds=seconds)


def quality(data: DataSet, plan: Plan, *, n_seeds: int) -> dict[str, Any]:
    """Test NDCG@10 of every library in every domain, and how each peer compares."""
    print(f"\n{data.name}: NDCG@10 on test")
    own = data.name == "synthetic"
    grid = plan.synthetic_grid if own else GRID
    ladder = plan.synthetic_ladder if own else LADDER
    tested: dict[str, dict[str, list[PerUser]]] = {name: {} for name in (OURS, *PEERS)}
    for number in range(n_seeds):
        seed, splits = Seed(number), data.splits(number)
        looked_at = validations(splits, seed, n_threads=N_THREADS)
        for domain, part in splits.items():
            own_seed = seed.child("pretrain", domain)
            found = {OURS: our_best(part, looked_at[domain], own_seed, plan)} | {
                name: peer_best(name, part, looked_at[domain], own_seed, grid, ladder)
                for name in PEERS
            }
            for name, tuned in found.items():
                users = ndcg_by_user(tuned.factors, part)
                tested[name].setdefault(domain, []).append(users)
                print(f"  {domain:<12} seed {number} {name:<11} {users.means()['ndcg@10']:.4f}   "
                      f"{tuned.seconds:7.1f} s of training, chosen {tuned.chosen}")  # fmt: skip
    return summary(data.name, tested)


def ndcg_by_user(factors: Factors, part: Split) -> PerUser:
    """NDCG@10 over the whole catalogue, train and valid skipped."""
    found = evaluate(factors, part.test, part.seen(), ks=(10,), n_threads=N_THREADS)
    return PerUser(found.users, {"ndcg@10": found.values["ndcg@10"]})


def summary(data: str, tested: Mapping[str, Mapping[str, list[PerUser]]]) -> dict[str, Any]:
    """Means over seeds; ours minus each peer by a paired test over users, corrected (Holm)."""
    pooled = {
        name: {domain: pool(users) for domain, users in by_domain.items()}
        for name, by_domain in tested.items()
    }
    results: dict[str, Any] = {}
    for domain in tested[OURS]:
        means = {
            name: round(mean(users.means()["ndcg@10"] for users in by_domain[domain]), 5)
            for name, by_domain in tested.items()
        }
        results[f"{data}/{domain}"] = {"ndcg@10": means, "ours_minus": {}}
    for name in PEERS:
        for (domain, _), cell in compare(pooled[OURS], pooled[name]).items():
            results[f"{data}/{domain}"]["ours_minus"][name] = {
                "low": round(cell.low, 5), "high": round(cell.high, 5),
                "significant": cell.significant,
            }  # fmt: skip
            print(f"  {domain:<12} ours - {name:<10} {cell.difference:+.4f} {cell.mark}")
    return results


# 5. Stage 3 against stage 1


def stages(data: DataSet, plan: Plan) -> dict[str, Any]:
    """Median seconds of an epoch of stage 1 and of stage 3 in each domain, and their ratio."""
    last = plan.stage_epochs
    config = RunConfig(
        dim=DIM,
        data=data.config.data,
        pretrain=PretrainConfig(tries=1, max_epochs=last, patience=last, validate_every=1),
        cat=CatConfig(max_epochs=1, patience=1),
        art=ArtConfig(max_epochs=last, patience=last),
    )
    models = cat_art(data.splits(0), config, unwatched, n_threads=N_THREADS)
    print(f"\n{data.name}: seconds an epoch")
    print(f"  {'domain':<14}{'stage 1':>10}{'stage 3':>10}{'3 / 1':>8}")
    results: dict[str, Any] = {}
    for domain, made in models.alone.items():
        first = epoch_seconds(made.history[0])
        third = epoch_seconds(models.transferred[domain].history)
        print(f"  {domain:<14}{first:10.4f}{third:10.4f}{third / first:8.1f}")
        results[f"{data.name}/{domain}"] = {
            "stage1": round(first, 5), "stage3": round(third, 5), "ratio": round(third / first, 2),
        }  # fmt: skip
    return results


def epoch_seconds(history: History) -> float:
    """The median over all epochs but the first, which warms up."""
    return median(epoch.seconds for epoch in history.epochs if epoch.number > 1)


# 6. All together


def main() -> None:
    """Measure what the command line asks for; the last line printed is one JSON object."""
    arguments = parsed()
    install_peers()
    # as the product does; its threads share out the products that it leaves to them
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        print(json.dumps(measured(arguments)))


def parsed() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, under a minute")
    parser.add_argument("--data", type=Path, help="folder with the real data sets (README.md)")
    parser.add_argument("--seeds", type=int, default=1, help="splits and starts for quality")
    parser.add_argument("--speed-only", action="store_true", help="neither quality nor stage 3")
    parser.add_argument(
        "--items", type=int, help="of the synthetic data, in place of 50,000 (quick: 5,000)"
    )
    parser.add_argument("--sets", nargs="+", help="data sets of quality and stage 3; default all")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; ask for at least 1")
    if arguments.items is not None and arguments.items < 1000:
        parser.error(f"--items is {arguments.items}; ask for at least 1000")
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data {arguments.data} is no folder; name the one with the data sets")
    return arguments


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, as the JSON object says them."""
    plan = QUICK if arguments.quick else FULL
    if arguments.items:
        plan = replace(plan, n_items=arguments.items)
    made = synthetic(plan)
    real = list(presets(arguments.data))
    warm_up(replace(plan, n_users=200, n_items=100, n_pairs=2000))
    rates = {"synthetic": speed("synthetic", made.splits(0)["all"], plan)}
    if arguments.data is not None:
        label, part = largest(real)
        rates[label] = speed(label, part, plan)
    medians = {name: median(found) for name, found in rates["synthetic"].items()}
    ours, alone = medians.pop(OURS), medians.pop(ALONE)
    result: dict[str, Any] = {
        "name": "pretrain",
        "ratio": round(ours / max(medians.values()), 3),
        "ours": round(ours),
        "peers": {name: round(rate) for name, rate in medians.items()},
        "runs": plan.runs,
        "unit": "samples/s",
        "quick": arguments.quick,
        "threads": N_THREADS,
        "scaling": round(ours / alone, 3),
        "dim": DIM,
        "versions": {name: version(name) for name in (OURS, *PEERS)},
        "speed": {
            label: {name: [round(rate) for rate in found] for name, found in by_library.items()}
            for label, by_library in rates.items()
        },
    }
    if not arguments.speed_only:
        compared = [made] if arguments.quick else asked(arguments.sets, [made, *real])
        staged = real[-1:] if arguments.quick else asked(arguments.sets, real)
        result["quality"] = merged(quality(d, plan, n_seeds=arguments.seeds) for d in compared)
        result["stages"] = merged(stages(data, plan) for data in staged)
    return result


def asked(names: list[str] | None, sets: list[DataSet]) -> list[DataSet]:
    """The data sets of these names; all without names."""
    return [data for data in sets if names is None or data.name in names]


def warm_up(plan: Plan) -> None:
    """Compile every loop and start every pool before anything is timed."""
    part = synthetic(plan).splits(0)["all"]
    our_seconds(part, 1, Seed(0))
    for name in PEERS:
        peer_seconds(name, part.train, 1, Seed(0))


def largest(real: list[DataSet]) -> tuple[str, Split]:
    """The real domain with the most training pairs."""
    parts = {
        f"{data.name}/{domain}": part for data in real for domain, part in data.splits(0).items()
    }
    if not parts:
        raise DataError("--data has none of the data sets; README.md says how it must look")
    return max(parts.items(), key=lambda item: len(item[1].train))


def merged(results: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """One mapping of them all."""
    return {key: value for found in results for key, value in found.items()}


if __name__ == "__main__":
    try:
        main()
    except MusketeersError as error:
        sys.exit(f"error: {error}")
