"""Stage 2: users a second against the same step by torch, and against the matrix product alone.

Run it as ``python benchmarks/align.py [--quick]``; README.md beside it says what is measured and
how to read it.  The last line is one JSON object.
"""

import argparse
import json
import time
from collections import Counter
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from pretrain import DIM, N_THREADS, OURS

from musketeers.cat import network
from musketeers.cat.lanes import Lanes
from musketeers.cat.model import ContrastiveAutoencoder
from musketeers.cat.on_gpu import OnGpu
from musketeers.cat.train import mask_one
from musketeers.config import CatConfig
from musketeers.exchange import UserEmbeddings
from musketeers.parallel import each, libraries_on_one_thread
from musketeers.seeding import Seed

N_DOMAINS, WIDE = 5, 5 * DIM
NETWORK = ("encode", "rebuild", "back")
"""The compiled functions that are the encoder and the decoder, there and back."""
PRODUCTS = 2 * (WIDE * WIDE + WIDE * 3 * DIM + 3 * DIM * DIM)
"""Multiplications of a user's view, there; back twice as many, but for the inputs' slopes."""
FLOPS = 2 * 2 * (3 * PRODUCTS - WIDE * WIDE)
"""Of a user: two views, and a multiplication is two operations."""


def users(n: int) -> UserEmbeddings:
    """As exchanged: five vectors for everybody."""
    values = Seed(0).numpy().standard_normal((n, N_DOMAINS, DIM), dtype=np.float32)
    values /= np.float32(np.sqrt(DIM))
    known = np.ones((n, N_DOMAINS), np.bool_)
    return UserEmbeddings(tuple("abcde"), values, known, np.ones(N_DOMAINS, np.float32))


def product(n_rows: int, n_threads: int) -> float:
    """Gflop/s of one product of the network's widest map, on all threads at once."""
    rng = Seed(1).numpy()
    shapes = ((n_rows, WIDE), (WIDE, WIDE))
    parts = [[rng.standard_normal(s, dtype=np.float32) for s in shapes] for _ in range(n_threads)]
    repeats = max(3, int(3e9 / (2 * n_rows * WIDE * WIDE)))
    out = [np.empty((n_rows, WIDE), np.float32) for _ in range(n_threads)]

    def multiply(lane: int) -> None:
        for _ in range(repeats):
            np.dot(*parts[lane], out=out[lane])

    start = time.perf_counter()
    each(multiply, n_threads, n_threads=n_threads)
    flops = 2 * n_rows * WIDE * WIDE * repeats * n_threads
    return flops / (time.perf_counter() - start) / 1e9


class Stopwatch:
    """Seconds in the network's functions, all lanes together."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        for name in NETWORK:
            setattr(network, name, self._timed(name, getattr(network, name)))

    def _timed(self, name: str, function: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            found = function(*arguments)
            self.seconds[name] += time.perf_counter() - start
            return found

        return timed


def measured(batch_size: int, n_threads: int, n: int, runs: int) -> dict[str, float]:
    """Medians: users a second, ours and by torch, and the network's share of the product's rate."""
    shared, config = users(n), CatConfig(batch_size=batch_size)
    model = ContrastiveAutoencoder(N_DOMAINS, DIM, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    lanes = Lanes(model, shared, config, n_threads=n_threads)
    by_torch = OnGpu(model, shared, config, torch.device("cpu"))
    rows, rng = np.arange(n), Seed(2).numpy()
    watch, visible = Stopwatch(), mask_one(shared.known, rng.random(shared.known.shape))
    rates: dict[str, list[float]] = {"ours": [], "torch": [], "network": [], "product": []}
    for number in range(-1, runs):  # the first one compiles
        watch.seconds.clear()
        times: dict[str, float] = {}
        for name, computer in (("ours", lanes), ("torch", by_torch)):
            torch.set_num_threads(n_threads if name == "torch" else 1)
            start = time.perf_counter()
            for _ in computer.learn(rows, visible):
                optimizer.step()
            times[name] = time.perf_counter() - start
        torch.set_num_threads(1)
        network_rate = FLOPS * n / sum(watch.seconds.values()) * n_threads / 1e9
        if number >= 0:
            rates["ours"].append(n / times["ours"])
            rates["torch"].append(n / times["torch"])
            rates["network"].append(network_rate)
            rates["product"].append(product(2 * batch_size // n_threads, n_threads))
    found = {name: median(values) for name, values in rates.items()}
    pairs = zip(rates["network"], rates["product"], strict=True)
    found["share"] = median(network_rate / rate for network_rate, rate in pairs)
    found["ratio"] = median(a / b for a, b in zip(rates["ours"], rates["torch"], strict=True))
    print(
        f"batch {batch_size:>5} threads {n_threads}: {found['ours']:>8,.0f} users/s, torch "
        f"{found['torch']:>8,.0f}; encoder and decoder {found['network']:.0f} Gflop/s, "
        f"{found['share']:.2f} of the product's {found['product']:.0f}"
    )
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="the default batch, fewer users")
    wanted = parser.parse_args()
    batches, n, runs = ((256,), 8_192, 3) if wanted.quick else ((256, 1024, 8192), 32_768, 5)
    with libraries_on_one_thread():
        cases = {
            f"{batch_size}, {n_threads}": measured(batch_size, n_threads, n, runs)
            for batch_size in batches
            for n_threads in sorted({1, N_THREADS})
        }
    first = cases[f"256, {N_THREADS}"]
    content = {
        "name": "align", "ratio": first["ratio"], "ours": first["ours"],
        "peers": {"torch": first["torch"]}, "runs": runs, "unit": "users/s", "cases": cases,
        "versions": {name: version(name) for name in (OURS, "torch", "numpy", "numba")},
    }  # fmt: skip
    print(json.dumps(content))


if __name__ == "__main__":
    main()
