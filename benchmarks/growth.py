"""How the time and the memory of a fit grow with what it is given.

Run it as ``python benchmarks/growth.py [--quick] [--out FOLDER]``; README.md beside it says what is
measured and how to read it.  The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pretrain import N_THREADS, OURS, install_peers
from whole import command

from musketeers import config as configuration

STAGES = ("read", "split", "pretrain", "cat", "art", "evaluate")
ROUNDS: Mapping[str, Any] = {
    "pretrain": {"method": "bpr", "tries": 1, "max_epochs": 6, "patience": 6},
    "cat": {"batch_size": 1024, "max_epochs": 2, "patience": 2},
    "art": {"batch_size": 2048, "max_epochs": 3, "patience": 3},
}
"""The same number of passes whatever the data."""


@dataclass(frozen=True, slots=True)
class Point:
    """One fit."""

    users: int = 20_000
    items: int = 5_000
    per_user: int = 30
    """Mean pairs of a user in each domain."""
    domains: int = 3
    dim: int = 32
    threads: int = N_THREADS


AXES: Mapping[str, tuple[Any, ...]] = {
    "interactions": tuple(replace(Point(), per_user=n) for n in (6, 20, 60, 200, 600)),
    "users": tuple(replace(Point(), users=n) for n in (2_000, 6_300, 20_000, 63_000, 200_000)),
    "items": tuple(replace(Point(), items=n) for n in (1_000, 3_000, 10_000, 30_000, 100_000)),
    "domains": tuple(replace(Point(), domains=n) for n in (2, 4, 8, 16, 32)),
    "dims": tuple(replace(Point(), dim=n) for n in (4, 12, 40, 128, 400)),
    "threads": tuple(replace(Point(), threads=n) for n in (1, 2)),
}
QUICK = replace(Point(), users=1_000, items=500, per_user=12)


def size_of(axis: str, point: Point) -> int:
    """What is on the axis."""
    pairs = point.users * point.per_user
    of = {"interactions": pairs * point.domains, "dims": point.dim}
    return of[axis] if axis in of else getattr(point, axis)


def measure(point: Point, folder: Path) -> dict[str, float]:
    """Seconds of each stage, and peak memory in GB over all."""
    name = "-".join(map(str, (point.users, point.items, point.per_user, point.domains)))
    data, run = folder / f"data-{name}", folder / f"run-{name}-{point.dim}-{point.threads}"
    if not data.exists():
        command(
            "synth", "--out", data, "--users", str(point.users), "--items", str(point.items),
            "--pairs", str(point.users * point.per_user), "--domains", str(point.domains),
        )  # fmt: skip
    wanted = {f"{s}.{k}": v for s, part in ROUNDS.items() for k, v in part.items()}
    settings = configuration.changed(
        configuration.load(data / "settings.toml"), {**wanted, "dim": point.dim}
    )
    file = data / f"growth-{point.dim}.toml"
    file.write_text(configuration.dump(settings))
    if not (run / "report.html").exists():
        command("fit", file, "--only", "cat_art", "--threads", str(point.threads), "--out", run)
    manifest = json.loads((run / "manifest.json").read_text())
    seconds = {
        stage: sum(t for name, t in manifest["seconds"].items() if name.split("/")[0] == stage)
        for stage in STAGES
    }
    return {**seconds, "peak_gb": manifest["peak_memory_bytes"] / 1e9}


def slope(sizes: list[int], values: list[float]) -> float:
    """The power with which values grow, over the upper half of the points."""
    half = (len(sizes) - 1) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(np.maximum(values[half:], 1e-9)), 1)[0])


def plot(found: Mapping[str, Any], file: Path) -> None:
    """A panel for each axis: seconds of the stages, and memory, on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter

    mpl.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    figure, panels = plt.subplots(2, 3, figsize=(11, 6.4), constrained_layout=True)
    for panel, (axis, one) in zip(panels.flat, found.items(), strict=True):
        for stage in STAGES:
            panel.plot(one["sizes"], one[stage], marker="o", markersize=3, label=stage)
        panel.plot(one["sizes"], one["peak_gb"], "k--", linewidth=1, label="peak memory, GB")
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds")
        panel.set_xticks(one["sizes"], list(map(EngFormatter(sep=""), one["sizes"])))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="two small points of one axis")
    parser.add_argument("--out", type=Path, help="folder for data, runs, growth.svg and .json")
    wanted = parser.parse_args()
    install_peers()
    axes = {"users": (QUICK, replace(QUICK, users=4_000))} if wanted.quick else AXES
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        measure(QUICK, folder)  # compiles what is not yet compiled, for one number of threads
        measure(replace(QUICK, threads=1), folder)
        for axis, points in axes.items():
            sizes = [size_of(axis, point) for point in points]
            costs = [measure(point, folder) for point in points]
            one: dict[str, Any] = {"sizes": sizes}
            one |= {what: [round(cost[what], 3) for cost in costs] for what in costs[0]}
            one["powers"] = {what: round(slope(sizes, one[what]), 2) for what in costs[0]}
            found[axis] = one
            print(f"{axis:<13}" + "  ".join(f"{w} {p:+.2f}" for w, p in one["powers"].items()))
        if not wanted.quick:
            plot(found, folder / "growth.svg")
        steepest = max(one["powers"]["pretrain"] for one in found.values())
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        content = {
            "name": "growth", "ratio": round(1 / max(steepest, 1e-9), 3), "ours": steepest,
            "peers": {"straight line": 1.0}, "runs": 1, "commit": commit, "axes": found,
            "versions": {name: version(name) for name in (OURS, "numba", "torch", "numpy")},
        }  # fmt: skip
        (folder / "growth.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content))


if __name__ == "__main__":
    sys.exit(main())
