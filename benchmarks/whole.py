"""The whole experiment at the paper's size, and a domain alone against other libraries' parts.

Run it as ``python benchmarks/whole.py [--quick] [--scale S] [--out FOLDER]``; README.md beside it
says what is measured and how to read it.  The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from evaluate import Case, by_full_sort
from pretrain import DIM, N_THREADS, OURS, SPEED_SETTING, Implicit, install_peers
from rank import libraries_on

from musketeers import config as configuration
from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.runs import fit_run
from musketeers.seeding import Seed

TRAINING: Mapping[str, Any] = {
    "pretrain": {
        "method": "bpr",
        "tries": 1,
        "max_epochs": 12,
        "patience": 6,
        "regularization": 0.035,
    },
    "cat": {"batch_size": 1024, "max_epochs": 4, "patience": 2},
    "art": {"batch_size": 2048, "max_epochs": 6, "patience": 3},
}
"""One training of each stage, long enough that validation has stopped rising by much, where the
search of the defaults ends; it begins at four times the strength."""
DOMAIN = "articles"
"""Of which a domain alone is measured."""


def command(*words: str | Path) -> tuple[float, float]:
    """Wall seconds of a `musketeers` command, and its peak memory in GB."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "musketeers", *map(str, words)])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"musketeers {words[0]} failed; its messages above say why")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def whole(
    scale: float, folder: Path, device: str = "cpu", threads: int = N_THREADS
) -> dict[str, Any]:
    """Planted data read, split, learned from in three stages, and every user measured."""
    data, run = folder / f"data-{scale:g}", folder / f"run-{scale:g}-{device}"
    planted: tuple[float, float] | None = None
    if not data.exists():
        planted = command("synth", "--preset", "paper", "--scale", f"{scale:g}", "--out", data)
    settings = configuration.load(data / "settings.toml")
    settings = configuration.changed(
        settings, {f"{s}.{k}": v for s, part in TRAINING.items() for k, v in part.items()}
    )
    (data / "whole.toml").write_text(configuration.dump(settings))
    seconds, memory = command(
        "fit", data / "whole.toml", "--only", "cat_art", "--threads", str(threads), "--out", run,
        "--device", device,
    )  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())["models"]["cat_art"]
    stages: dict[str, float] = {}
    for stage, took in manifest["seconds"].items():
        stages[stage.split("/")[0]] = round(stages.get(stage.split("/")[0], 0) + took, 1)
    peaks = {stage: round(held / 1e9, 2) for stage, held in manifest["peak_bytes"].items()}
    print(f"\nscale {scale:g}: {seconds:.0f} s in all, {memory:.2f} GB at most")
    for stage, took in stages.items():
        held = max(peak for name, peak in peaks.items() if name.split("/")[0] == stage)
        print(f"  {stage:<12}{took:>9.1f} s   up to {held:.2f} GB")
    return {
        "scale": scale, "device": device, "seconds": round(seconds, 1), "peak_gb": round(memory, 2),
        "stages": stages, "peaks": peaks, "planted": planted,
        "ndcg@10": {name: round(found["ndcg@10"], 5) for name, found in metrics.items()},
    }  # fmt: skip


def by_parts(file: Path, seed: int) -> float:
    """NDCG@10 of a domain by polars, implicit's BPR and full sorting with torch."""
    frame = pl.read_parquet(file).unique()
    codes = [frame[name].rank("dense").cast(pl.Int64).to_numpy() - 1 for name in frame.columns]
    users, items = codes
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(users)), users))
    users, items = users[order], items[order]
    counts = np.bincount(users)
    place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = place < np.ceil(0.2 * counts)[users]
    valid = ~held & (place < np.ceil(0.2 * counts)[users] + np.ceil(0.16 * counts)[users])

    def table(keep: np.ndarray) -> Interactions:
        return Interactions.from_pairs(
            users[keep], items[keep], n_users=len(counts), n_items=int(items.max()) + 1
        )

    part = Split(table(~held & ~valid), table(valid), table(held))
    model = Implicit(part.train, SPEED_SETTING, Seed(seed))
    model.train(TRAINING["pretrain"]["max_epochs"])
    return by_full_sort(Case(model.factors(), part))["ndcg@10"]


def alone(scale: float, folder: Path, runs: int) -> dict[str, Any]:
    """One domain read, split, factorised and measured: ours and the peer's parts in turn."""
    data = folder / f"data-{scale:g}"
    if not data.exists():
        command("synth", "--preset", "paper", "--scale", f"{scale:g}", "--out", data)
    settings = configuration.parse(
        {
            "dim": DIM, "pretrain": {**TRAINING["pretrain"], "patience": 99},
            "data": {"domains": {DOMAIN: f"{DOMAIN}.parquet"}, "min_user": 1, "min_item": 1},
        }, "whole.py",
    )  # fmt: skip
    times: dict[str, list[float]] = {OURS: [], "polars, implicit, torch": []}
    found: dict[str, float] = {}
    for number in range(-1, runs):  # the first one compiles
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            result = fit_run(settings, data, Path(scratch) / "run", threads=N_THREADS, only="smf")
            took = time.perf_counter() - start
        found[OURS] = float(result.metrics["smf"][DOMAIN].means()["ndcg@10"])
        with libraries_on(N_THREADS):
            start = time.perf_counter()
            found["polars, implicit, torch"] = by_parts(data / f"{DOMAIN}.parquet", number + 1)
            peer = time.perf_counter() - start
        if number >= 0:
            times[OURS].append(took)
            times["polars, implicit, torch"].append(peer)
    ours, peer = (times[name] for name in times)
    print(f"\n{DOMAIN} alone at scale {scale:g}, read to measured:")
    for name, took in times.items():
        print(f"  {name:<26}{median(took):8.1f} s   NDCG@10 {found[name]:.4f}")
    return {
        "ratio": round(median(b / a for a, b in zip(ours, peer, strict=True)), 3),
        "ours": round(median(ours), 2),
        "peers": {"polars, implicit, torch": round(median(peer), 2)},
        "runs": runs, "unit": "s", "alone_scale": scale, "alone_ndcg@10": found,
    }  # fmt: skip


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="both parts on a thousandth")
    parser.add_argument("--scale", type=float, default=1.0, help="of the whole experiment")
    parser.add_argument("--out", type=Path, help="new or kept folder for data and run")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the first part alone")
    parser.add_argument("--threads", type=int, default=N_THREADS, help="of the first part")
    wanted = parser.parse_args()
    if wanted.device == "cpu":
        install_peers()
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        scale, alone_scale, runs = (0.001, 0.001, 1) if wanted.quick else (wanted.scale, 0.02, 3)
        # the peer has no part that computes on a GPU
        found = alone(alone_scale, folder, runs) if wanted.device == "cpu" else {}
        found |= {"whole": whole(scale, folder, wanted.device, wanted.threads)}
    names = (OURS, "polars", "torch", "numba", *(["implicit"] if wanted.device == "cpu" else []))
    versions = {name: version(name) for name in names}
    print(json.dumps({"name": "whole", **found, "threads": wanted.threads, "versions": versions}))


if __name__ == "__main__":
    main()
