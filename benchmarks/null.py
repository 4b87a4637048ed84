"""Where there is nothing to learn from others: does the choice ever make a domain worse?

    python benchmarks/null.py --out OUT --seeds 20
    python benchmarks/null.py --data FOLDER --out OUT --sets anime4 --seeds 20

Nobody is the same person in two domains: without `--sets` the domains are planted with private
taste alone, with them each domain's users of a real set are permuted before anything is trained.
Then what `musketeers fit` would serve is measured on test against what it serves the same domain
without others, its own best model.  A seed that is done is in OUT and is not done again.  Prints
for each set and domain how often the choice took a told model, the mean difference of NDCG@10 with
its 95 % interval over seeds, and the worst seed; the last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_sets import SETS, settings
from scipy import stats

from musketeers.config import DataConfig, RunConfig, changed
from musketeers.data import readers
from musketeers.data.domains import Split
from musketeers.data.splits import split
from musketeers.data.synthetic import planted
from musketeers.evaluation.evaluate import evaluate
from musketeers.memory import available
from musketeers.models.registry import as_a_fit_learns
from musketeers.parallel import available_threads
from musketeers.pipeline import Models, cat_art, choices, smf, validations
from musketeers.runs import libraries_on_one_thread
from musketeers.scorers import Trained
from musketeers.seeding import Seed
from musketeers.task import Task, unwatched

METRIC = "ndcg@10"
PLANTED = ("a", "b", "c", "d")


def mixed(whole: Split, seed: Seed) -> Split:
    """The same domain, of other people."""
    train = whole.train
    order = seed.numpy().permutation(train.n_users)
    return whole.moved(
        order, np.arange(train.n_items), n_users=train.n_users, n_items=train.n_items
    )


def strangers(
    name: str, seed: int, asked: argparse.Namespace
) -> tuple[RunConfig, dict[str, Split]]:
    """Settings, and domains that share nobody."""
    if name == "planted":
        config = RunConfig(seed=seed, data=DataConfig(domains=dict.fromkeys(PLANTED, "-")))
        made = planted(
            PLANTED, Seed(seed), n_users=2000, n_items=300, common=0.0, known=0.8, popularity=0.7
        )
        return config, dict(made.splits)
    found = settings(name, asked.data, asked.out / "data")
    if found is None:
        raise SystemExit(f"--data {asked.data} lacks {name}")
    config, base = found
    config = changed(config, {"seed": seed})
    domains = readers.read(config.data, base=base).domains
    splits = split(domains, config.split, Seed(seed))
    root = Seed(seed).child("mixed")
    return config, {domain: mixed(one, root.child(domain)) for domain, one in splits.items()}


def ndcg(scorer: Trained, whole: Split, n_threads: int) -> np.ndarray:
    """Of every test user."""
    found = evaluate(scorer, whole.test, whole.seen(), ks=(10,), n_threads=n_threads)
    return found.values[METRIC]


def measured(name: str, seed: int, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By domain, what one seed gives."""
    place: Path = asked.out / f"{name}-{seed}.json"
    if place.exists():
        return json.loads(place.read_text(encoding="utf-8"))
    config, splits = strangers(name, seed, asked)
    n_threads = asked.threads or available_threads()
    options = {"n_threads": n_threads, "max_bytes": available() * 9 // 10}
    found: dict[str, dict[str, Any]] = {}
    with libraries_on_one_thread():
        looked_at = validations(splits, Seed(config.seed), n_threads=n_threads)
        alone = smf(splits, config, unwatched, n_threads=n_threads)
        task = as_a_fit_learns(Task(splits, looked_at, config, alone, **options))
        config, alone = task.config, task.alone
        made = cat_art(splits, config, unwatched, n_threads=n_threads, done=Models(alone))
        told = choices(splits, made, config, unwatched, **options)
        own = choices(splits, Models(made.alone), config, unwatched, **options)
        for domain, whole in splits.items():
            with_others, alone = (ndcg(one[domain].scorer, whole, n_threads) for one in (told, own))
            found[domain] = {
                "took": told[domain].verdict.chosen.name,
                "told": told[domain].verdict.transfers,
                "method": config.pretrain.method,
                "relative": float(with_others.mean() / alone.mean() - 1),
                "p": float(stats.ttest_rel(with_others, alone).pvalue)
                if (with_others != alone).any()
                else 1.0,
            }
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One domain over its seeds; relative differences in %."""
    gains = 100 * np.array([one["relative"] for one in seeds])
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return {
        "told": sum(one["told"] for one in seeds),
        "mean": float(gains.mean()),
        "low": float(gains.mean() - half),
        "high": float(gains.mean() + half),
        "worst": float(gains.min()),
        "lost": sum(one["p"] < 0.05 and one["relative"] < 0 for one in seeds),
        "won": sum(one["p"] < 0.05 and one["relative"] > 0 for one in seeds),
    }


def main() -> None:
    """Measure what is missing, then print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the real data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["planted"], choices=["planted", *SETS])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error("--seeds must be at least 2 for an interval")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in asked.sets:
        seeds = [measured(name, seed, asked) for seed in range(asked.seeds)]
        found[name] = {domain: summary([one[domain] for one in seeds]) for domain in seeds[0]}
        print(f"### {name}: {asked.seeds} seeds, nobody the same in two domains\n")
        print(
            "| domain | told model taken | NDCG@10 against its own best, mean (95 %) | worst seed "
            "| seeds worse, better (p < .05 each) |"
        )
        print("|---|--:|--:|--:|--:|")
        for domain, one in found[name].items():
            print(
                f"| {domain} | {one['told']} | {one['mean']:+.2f} % ({one['low']:+.2f}.."
                f"{one['high']:+.2f}) | {one['worst']:+.2f} % | {one['lost']}, {one['won']} |"
            )
        print(flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{platform.machine()}, {multiprocessing.cpu_count()} processors"
    print(json.dumps({"name": "null", "commit": commit, "machine": machine, "sets": found}))


if __name__ == "__main__":
    main()
