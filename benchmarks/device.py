"""A GPU beside the processors: lists, stage 2, and a whole fit.

    python benchmarks/device.py [--data FOLDER --sets anime4] [--quick]

Ranks planted vectors and linear models for many users and compares the lists bit by bit, also when
the GPU has room for few of them; trains stage 2 on planted embeddings; and fits real data, if
FOLDER has them (see data_sets.py).  Everything runs on both in turn, after a first run that counts
for nothing.  Prints a line for each part, and one JSON object last.  Without a GPU it says so.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from data_sets import SETS, settings
from scipy.sparse import csr_array
from whole import TRAINING

from musketeers import config as configuration
from musketeers.baselines.linear import Linear
from musketeers.cat.train import align
from musketeers.config import CatConfig
from musketeers.data.interactions import Interactions
from musketeers.device import computing_on
from musketeers.exchange import UserEmbeddings
from musketeers.parallel import available_threads
from musketeers.ranking import Factors, top_k
from musketeers.runs import fit_run
from musketeers.scorers import Trained
from musketeers.seeding import Seed
from musketeers.synthesis import synth
from musketeers.training import Unwatched

PLACES = ("cpu", "cuda")


def timed(job: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """What the job gives, and its median seconds after a first run."""
    job()
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        found = job()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return found, median(seconds)


def both(job: Callable[[], Any], runs: int) -> tuple[dict[str, Any], dict[str, float]]:
    """What the job gives on each device, and seconds."""
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for place in PLACES:
        with computing_on(place):
            found[place], seconds[place] = timed(job, runs)
    return found, seconds


def seen_by(n_users: int, n_items: int, each: int) -> Interactions:
    """So many items of each user, some drawn twice."""
    items = Seed(1).numpy().integers(n_items, size=n_users * each).astype(np.int32)
    users = np.repeat(np.arange(n_users), each)
    return Interactions.from_pairs(users, items, n_users=n_users, n_items=n_items)


def ranked(name: str, scorer: Trained, seen: Interactions, runs: int) -> dict[str, Any]:
    """Twenty items for every user of `seen`."""
    users, threads = np.arange(seen.n_users), available_threads()
    lists, seconds = both(lambda: top_k(scorer, users, k=20, seen=seen, n_threads=threads), runs)
    # what is kept for the next allocation does not count against the limit
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    with computing_on("cuda"):
        scarce = top_k(scorer, users, k=20, seen=seen, n_threads=threads)
    torch.cuda.set_per_process_memory_fraction(1.0)
    same = all(
        lists["cpu"].items.tobytes() == other.items.tobytes()
        and lists["cpu"].scores.tobytes() == other.scores.tobytes()
        for other in (lists["cuda"], scarce)
    )
    return told(name, seconds, users=len(users), items=scorer.n_items, same=same)


def told(name: str, seconds: Mapping[str, float], **about: Any) -> dict[str, Any]:
    """One part's result, which is printed too."""
    ratio = seconds["cpu"] / seconds["cuda"]
    found = {"part": name, **about, **{f"{p}_s": s for p, s in seconds.items()}, "ratio": ratio}
    print(found, flush=True)
    return found


def vectors(n_users: int, n_items: int) -> Factors:
    """Of 64 dimensions."""
    make = Seed(0).numpy()
    users, items = (make.standard_normal((n, 64), np.float32) for n in (n_users, n_items))
    return Factors(users, items)


def linear(n_users: int, n_items: int) -> tuple[Linear, Interactions]:
    """Dense weights, and who did what."""
    seen = seen_by(n_users, n_items, 50)
    ones = np.ones(len(seen.items), np.float32)
    inputs = csr_array((ones, seen.items, seen.indptr), shape=(n_users, n_items))
    return Linear.of(inputs, Seed(2).numpy().standard_normal((n_items, n_items), np.float32)), seen


def aligned(n_users: int, batch_size: int, epochs: int) -> dict[str, Any]:
    """Stage 2 of five domains; seconds of one epoch."""
    make = Seed(3).numpy()
    taste = make.standard_normal((n_users, 1, 64), np.float32)
    values = taste + make.standard_normal((n_users, 5, 64), np.float32)
    known = make.random((n_users, 5)) < 0.7
    names = [str(n) for n in range(5)]
    shared = UserEmbeddings.collect(
        {name: values[:, n] for n, name in enumerate(names)},
        {name: known[:, n] for n, name in enumerate(names)},
    )
    config = CatConfig(max_epochs=epochs, batch_size=batch_size)
    found, _ = both(lambda: align(shared, config, Seed(0), Unwatched(), n_threads=2), 1)
    seconds = {
        place: median([epoch.seconds for epoch in one.history.epochs[1:]])
        for place, one in found.items()
    }
    loss = {f"{place}_loss": -one.history.best.valid for place, one in found.items()}
    return told("stage 2", seconds, users=n_users, batch_size=batch_size, **loss)


def planted(scale: float) -> dict[str, Any]:
    """The whole experiment at that share of the paper's size: seconds of the stages, NDCG@10."""
    seconds: dict[str, float] = {}
    stages: dict[str, dict[str, float]] = {}
    ndcg: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        synth(folder / "data", scale=scale)
        config = configuration.changed(
            configuration.load(folder / "data" / "settings.toml"),
            {f"{s}.{k}": v for s, part in TRAINING.items() for k, v in part.items()},
        )
        # the first fit of each compiles
        for number, place in enumerate((*PLACES, *PLACES)):
            start = time.perf_counter()
            with computing_on(place):
                run = fit_run(config, folder / "data", folder / str(number), only="cat_art")
            seconds[place] = time.perf_counter() - start
            by_stage: dict[str, float] = {}
            for stage, took in run.manifest["seconds"].items():
                key = stage.split("/")[0]
                by_stage[key] = round(by_stage.get(key, 0) + took, 1)
            stages[place] = by_stage
            ndcg[place] = {
                domain: round(found.means()["ndcg@10"], 5)
                for domain, found in run.metrics["cat_art"].items()
            }
            print(place, by_stage, ndcg[place], flush=True)
    return told("planted", seconds, scale=scale, stages=stages, ndcg=ndcg)


def fitted(name: str, folder: Path, seed: int) -> dict[str, Any]:
    """The default fit of real data; NDCG@10 of what is served."""
    seconds: dict[str, float] = {}
    ndcg: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as scratch:
        found = settings(name, folder, Path(scratch))
        if found is None:
            raise SystemExit(f"--data {folder} lacks {name}")
        config, base = found
        config = config.model_copy(update={"seed": seed})
        for place in PLACES:
            start = time.perf_counter()
            with computing_on(place):
                run = fit_run(config, base, Path(scratch) / f"{place}-{seed}")
            seconds[place] = time.perf_counter() - start
            served = run.recommender.about["model"]
            ndcg[place] = {
                domain: round(run.metrics[kind][domain].means()["ndcg@10"], 4)
                for domain, kind in served.items()
            }
            stages = run.manifest["seconds"]
            print(place, {one: stages[one] for one in stages if one.startswith(("cat", "choice"))})
    return told(f"fit {name}", seconds, seed=seed, ndcg=ndcg)


def main() -> None:
    """Everything, or smaller and once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the real data sets")
    parser.add_argument("--sets", nargs="+", default=["anime4"], choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="smaller, and each part once")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU here; nothing is measured")
    runs, scale = (1, 10) if asked.quick else (3, 1)
    sizes = [(100_000 // scale, 10_000 // scale), (50_000 // scale, 100_000 // scale)]
    parts = [ranked("vectors", vectors(*size), seen_by(*size, 50), runs) for size in sizes]
    parts.append(ranked("linear", *linear(20_000 // scale, 10_000 // scale), runs))
    parts += [aligned(20_000 // scale, batch_size, 3) for batch_size in (256, 4096)]
    parts.append(planted(0.05 / scale))
    if asked.data:
        parts += [fitted(n, asked.data, seed) for n in asked.sets for seed in range(asked.seeds)]
    about = {"gpu": torch.cuda.get_device_name(), "processors": available_threads()}
    print(json.dumps({"name": "device", **about, "runs": runs, "parts": parts}))


if __name__ == "__main__":
    main()
