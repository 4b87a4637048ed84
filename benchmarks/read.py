"""From Parquet files to rows of item numbers, beside polars that does the same the plain way.

    python benchmarks/read.py [--quick] [--data FOLDER]

Makes one domain of planted interactions in a random order, once with integers and once with text
as ids, and reads it in fresh processes, ours and the peer's in turn.  With FOLDER also reads all
its Parquet files as domains that share users, ours alone.  The last line is one JSON object.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from musketeers.config import DataConfig
from musketeers.data.readers import read

OURS, PEER = "musketeers", "polars"
COLUMNS = ["user_id", "item_id"]


def made(folder: Path, n_rows: int) -> dict[str, Path]:
    """Kind of ids -> a file of so many rows; some repeat a pair."""
    make, files = np.random.default_rng(0), {}
    n_users, n_items = n_rows // 40, 50_000
    users = (n_users * make.random(n_rows) ** 1.5).astype(np.int64)
    items = (n_items * make.random(n_rows) ** 3).astype(np.int64)
    numbers = pl.DataFrame({"user_id": users, "item_id": items})
    for kind, frame in (
        ("integers", numbers),
        ("text", numbers.select(pl.format(f"{c[:4]}-{{}}", c).alias(c) for c in COLUMNS)),
    ):
        files[kind] = folder / f"{kind}.parquet"
        frame.write_parquet(files[kind])
    return files


def ours(files: list[Path]) -> int:
    """How many pairs `readers.read` finds."""
    domains = {file.stem: str(file.resolve()) for file in files}
    found = read(DataConfig(domains=domains, min_user=1, min_item=1), base=Path()).domains.domains
    return sum(len(domain.pairs) for domain in found.values())


def peer(files: list[Path]) -> int:
    """How many pairs one file has by unique, two joins and a sort."""
    pairs = pl.read_parquet(files[0], columns=COLUMNS).unique()
    for column in COLUMNS:
        ids = pairs.select(pl.col(column).unique().sort()).with_row_index(f"{column[:4]}")
        pairs = pairs.join(ids, on=column).drop(column)
    pairs = pairs.sort("user", "item")
    counts = np.bincount(pairs["user"].to_numpy())
    indptr = np.append(0, np.cumsum(counts))
    items = pairs["item"].cast(pl.Int32).to_numpy()
    assert indptr[-1] == len(items)
    return len(items)


def measured(who: str, files: list[Path]) -> dict[str, float]:
    """Seconds, gigabytes and pairs of one reading in a process of its own."""
    command = [sys.executable, __file__, "--once", who, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def once(who: str, files: list[Path]) -> None:
    """What `measured` asks another process for."""
    start = time.perf_counter()
    n_pairs = {OURS: ours, PEER: peer}[who](files)
    seconds = time.perf_counter() - start
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held *= 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"seconds": seconds, "peak_gb": held / 1e9, "pairs": n_pairs}))


def beside(kind: str, file: Path, n_rows: int, runs: int) -> dict[str, Any]:
    """Both on one file, in turn; medians of million rows a second and of gigabytes."""
    found = {who: [measured(who, [file])] for who in (OURS, PEER)}  # the first may compile
    assert found[OURS][0]["pairs"] == found[PEER][0]["pairs"]
    for _ in range(runs):
        for who, all_runs in found.items():
            all_runs.append(measured(who, [file]))
    rates = {
        who: [n_rows / 1e6 / run["seconds"] for run in all_runs[1:]]
        for who, all_runs in found.items()
    }
    peaks = {who: max(run["peak_gb"] for run in all_runs[1:]) for who, all_runs in found.items()}
    ratio = median(rates[OURS]) / median(rates[PEER])
    for who in found:
        rate = median(rates[who])
        print(f"{kind:<9} {who:<11} {rate:6.2f} M rows/s  peak {peaks[who]:.2f} GB", flush=True)
    return {"rates": rates, "peaks_gb": peaks, "ratio": ratio}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a million rows, two runs")
    parser.add_argument("--data", type=Path, help="folder of Parquet files, one for each domain")
    parser.add_argument("--rows", type=int, default=20_000_000, help="of the planted domain")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--once", nargs="+", metavar=("WHO", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        once(asked.once[0], [Path(file) for file in asked.once[1:]])
        return
    n_rows, runs = (1_000_000, 2) if asked.quick else (asked.rows, asked.runs)
    with TemporaryDirectory() as folder:
        # a process is said to have had at least what its parent held when it began
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            files = pool.submit(made, Path(folder), n_rows).result()
        kinds = {kind: beside(kind, file, n_rows, runs) for kind, file in files.items()}
    result: dict[str, Any] = {
        "name": "read",
        "ratio": kinds["integers"]["ratio"],
        "ours": median(kinds["integers"]["rates"][OURS]),
        "peers": {PEER: median(kinds["integers"]["rates"][PEER])},
        "runs": runs,
        "rows": n_rows,
        "kinds": kinds,
    }
    if asked.data:
        result["data"] = whole = measured(OURS, sorted(asked.data.glob("*.parquet")))
        print(
            f"{asked.data}: {whole['pairs'] / 1e6:.1f} M pairs, {whole['seconds']:.1f} s, "
            f"peak {whole['peak_gb']:.2f} GB"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
