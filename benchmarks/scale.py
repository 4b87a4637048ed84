"""What a run spread over members costs, and what it would cost at a thousand times the size.

Run it as ``python benchmarks/scale.py [--quick] [--keep]``; README.md beside it says what is
measured and how to read it.  The last line is one JSON object.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scale_page
from pretrain import OURS
from scale_model import (
    FLOAT,
    TRAIN,
    Domain,
    Machine,
    Rates,
    Workload,
    all_gather,
    all_reduce,
    art_flops,
    cat_flops,
    costs,
    lanes_held,
    memory,
)
from scipy.optimize import nnls
from shaped import CannotShapeError, Place, shaped

import musketeers
from musketeers import config as configuration
from musketeers.config import PretrainConfig
from musketeers.data import readers
from musketeers.data.shards import write_shards
from musketeers.data.splits import split
from musketeers.evaluation.validation import MOST_USERS, Validation
from musketeers.parallel import available_threads
from musketeers.pretrain import tables
from musketeers.pretrain.mf import pretrain
from musketeers.seeding import Seed
from musketeers.training import Unwatched

MEMBER = Path(__file__).with_name("scale_members.py")
DIM = 64
EPOCHS = {"pretrain": 12, "cat": 3, "art": 12}
LIMIT = 600.0
"""Seconds that members may take."""
HERE = (Place((), "127.0.0.1", "lo"),)
SIZES = (8, 1024, 65_536, 1 << 20, 1 << 23, 1 << 25)
"""Bytes of the arrays that are sent."""
NETWORKS = {"1 Gbit/s, 1 ms": (1e9, 1e-3), "100 Mbit/s, 1 ms": (1e8, 1e-3)}
"""Bits a second, and seconds one way."""
LANES = (1, 4, 16, 64, 256)
RHYTHMS = ((4, 4), (16, 16), (64, 64), (64, 4), (0, 0))
"""Merges of the first epoch of stage 1, and of each later one; 0 as the program has it."""


@dataclass(frozen=True, slots=True)
class Size:
    """One run."""

    users: int = 20_000
    items: int = 5_000
    per_user: int = 30
    """Pairs of each domain."""
    domains: int = 3
    cat_batch: int = 1024
    art_batch: int = 2048
    threads: int = 1

    def load(self) -> Workload:
        """An epoch of each stage, no validation."""
        domain = Domain(self.users, self.items, self.users * self.per_user)
        return Workload(
            self.users, (domain,) * self.domains, DIM, (1, 1, 1), (0, 0, 0),
            self.cat_batch, self.art_batch,
        )  # fmt: skip


BASE = Size()
FITTED = (
    BASE,
    replace(BASE, users=60_000),
    replace(BASE, items=50_000),
    replace(BASE, items=200_000),
    replace(BASE, per_user=120),
    replace(BASE, domains=5),
    replace(BASE, cat_batch=256, art_batch=512),
    replace(BASE, cat_batch=4096, art_batch=8192),
    replace(BASE, threads=2),
)
"""What the rates are fitted on."""
HELD_OUT = (
    replace(BASE, users=40_000, items=100_000, per_user=60, cat_batch=2048),
    replace(BASE, users=80_000, per_user=15, domains=4, art_batch=1024),
)
"""Between and beyond those: whether the form of the law holds."""
QUICK = Size(users=2_000, items=500, per_user=12, cat_batch=256, art_batch=512)


class Workshop:
    """Where runs happen: planted data by size, made once, and a folder for each run."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs = folder, 0
        self.rows, self.read_seconds = 0, 0.0

    def prepared(self, size: Size, n: int) -> Path:
        """A run's folder with the data of `n` shards in it, nothing trained."""
        self._runs += 1
        out = self._folder / f"run-{self._runs}"
        planted = self.planted(size)
        shards = planted / f"shards-{n}"
        settings = configuration.changed(
            configuration.load(planted / "settings.toml"),
            {
                "dim": DIM, "pretrain.method": "bpr", "pretrain.tries": 1,
                "pretrain.validate_every": 1, "pretrain.regularization": 0.035,
                "cat.batch_size": size.cat_batch, "art.batch_size": size.art_batch,
                **{f"{stage}.max_epochs": n for stage, n in EPOCHS.items()},
                **{f"{stage}.patience": n for stage, n in EPOCHS.items()},
            },
        )  # fmt: skip
        if not shards.exists():
            start = time.perf_counter()
            reading = readers.read(settings.data, base=planted)
            splits = split(reading.domains, settings.split, Seed(settings.seed))
            write_shards(reading.domains, splits, reading.sources, shards, n)
            self.read_seconds += time.perf_counter() - start
            self.rows += sum(source.rows for source in reading.sources.values())
        out.mkdir()
        shutil.copytree(shards, out / "data")
        (out / "settings.toml").write_text(configuration.dump(settings))
        return out

    def planted(self, size: Size) -> Path:
        """The folder of the data."""
        name = "-".join(map(str, (size.users, size.items, size.per_user, size.domains)))
        folder = self._folder / f"data-{name}"
        if not folder.exists():
            musketeers.synth(
                folder, users=size.users, items=size.items, domains=size.domains,
                pairs=size.users * size.per_user,
            )  # fmt: skip
        return folder


def together(
    task: Mapping[str, Any], n: int, *, places: Sequence[Place] = HERE, copies: int = 1
) -> dict[str, Any]:
    """What member 0 of `n` found; of several copies at once the least of each number.

    A task of copies has as many folders in ``out``.
    """
    # what they read ends when this process does, however it ends, and so do they
    alive, held = os.pipe()
    every: list[subprocess.Popen[str]] = []
    try:
        groups: list[list[subprocess.Popen[str]]] = []
        for copy in range(copies):
            own = {**task, "out": task["out"][copy]} if "out" in task else task
            groups.append(_group(own, n, places, alive))
            every += groups[-1]
        found = [_ended(group) for group in groups]
    finally:
        for file in (alive, held):
            os.close(file)
        for one in every:
            if one.poll() is None:
                one.kill()
            one.wait()
            for pipe in (one.stdout, one.stderr):
                if pipe:
                    pipe.close()
    return _least(found)


def _group(
    task: Mapping[str, Any], n: int, places: Sequence[Place], alive: int
) -> list[subprocess.Popen[str]]:
    port = _free_port()
    children: list[subprocess.Popen[str]] = []
    for place in range(n):
        at = places[place % len(places)]
        own = {**task, "members": n, "place": place, "host": places[0].host, "port": port}
        children.append(
            subprocess.Popen(
                [*at.prefix, sys.executable, str(MEMBER), json.dumps(own)],
                stdin=alive, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": at.device, "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
    return children


def _ended(group: Sequence[subprocess.Popen[str]]) -> dict[str, Any]:
    """What the first one printed; ends everything if any failed."""
    until = time.monotonic() + LIMIT
    texts: list[str] = []
    for child in group:
        text, errors = child.communicate(timeout=max(1.0, until - time.monotonic()))
        if child.returncode:
            sys.exit(f"a member failed: {errors.strip().splitlines()[-1:]}")
        texts.append(text)
    return json.loads(texts[0].splitlines()[-1])


def _least(found: Sequence[Any]) -> Any:
    """The least of each number: of mappings and lists of numbers that have one form."""
    first = found[0]
    if isinstance(first, dict):
        return {name: _least([one[name] for one in found]) for name in first}
    if isinstance(first, list):
        return [_least(list(parts)) for parts in zip(*found, strict=True)]
    return min(found)


def _free_port() -> int:
    """Below those that the system gives to whoever asks, so that nobody gets it in between."""
    while True:
        port = secrets.randbelow(12_000) + 20_000
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


# --- the rates


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[list[float], float]:
    """What each column costs, none below 0, by least relative squares; the largest relative error.

    Columns are scaled first, since some count bytes and some steps.
    """
    table, wanted = np.array(rows, float), np.array(seconds, float)
    table = table / wanted[:, None]
    scales = np.maximum(table.max(axis=0), 1e-300)
    weights, _ = nnls(table / scales, np.ones(len(wanted)))
    found = weights / scales
    return found.tolist(), float(np.abs(table @ found - 1).max())


def measured_rates(
    shop: Workshop, sizes: Sequence[Size], rounds: int, sent: Sequence[int]
) -> tuple[dict[str, float], dict[str, float], list[dict[str, Any]]]:
    """The rates, how far each law is off the runs it was fitted on, and the runs."""
    found: dict[str, float] = {}
    off: dict[str, float] = {}
    runs = [one_member(shop, size, rounds) for size in sizes]

    def law(step: str, names: Sequence[str], rows: list[list[float]], by: list[float]) -> None:
        each, off[step] = fit(rows, by)
        found.update(zip(names, each, strict=True))

    catalogues = (2_000, 20_000, 100_000)
    merging = together(
        {"task": "merges", "items": catalogues, "lanes": [1, 2], "dim": DIM}, 1
    )["merges"]  # fmt: skip
    law("merge", ("merge_byte", "merge_lane_byte"),
        [[size, size * lanes] for size, lanes, _ in merging],
        [seconds for *_, seconds in merging])  # fmt: skip
    each = [(Size(**run["size"]), run) for run in runs]
    law("stage 1", ("pair", "pair_growth", "user"),
        [_stage_1(size) for size, _ in each],
        [_unmerged("stage 1", size, run, found) for size, run in each])  # fmt: skip
    law("stage 2", ("cat_step", "cat_step_thread", "cat_flop", "cat_other"),
        [_stage_2(size) for size, _ in each],
        [run["epochs"]["stage 2"] for _, run in each])  # fmt: skip
    law("stage 3", ("art_step", "art_step_thread", "art_flop", "art_pair"),
        [_stage_3(size) for size, _ in each],
        [_unmerged("stage 3", size, run, found) for size, run in each])  # fmt: skip
    law("evaluate", ("evaluate_start", "list_user", "list_item"),
        [_lists(size) for size, _ in each], [run["evaluate"] for _, run in each])  # fmt: skip
    law("save", ("save_start", "save_user"),
        [[1, size.users * size.domains] for size, _ in each],
        [run["save"] for _, run in each])  # fmt: skip
    law("memory", ("base", "user_tables", "item_tables", "pair_bytes"),
        [_held(size) for size, _ in each],
        [run["peak"] - lanes_held(size.load(), size.threads, 1) for size, run in each])  # fmt: skip
    law("collectives", ("hop", "sent_byte"), *_sending(2, sent))
    found["read_row"] = shop.read_seconds * available_threads() / shop.rows
    stages = ("pretrain", "cat", "art", "evaluate", "save")
    found["start"] = found["evaluate_start"] + found["save_start"] + median(
        run["whole"] - sum(s for name, s in run["seconds"].items() if name.split("/")[0] in stages)
        for run in runs
    )  # fmt: skip
    return found, off, runs


def one_member(shop: Workshop, size: Size, rounds: int) -> dict[str, Any]:
    """Alone, as many at once as there are processors for."""
    copies = max(1, available_threads() // size.threads)
    found: list[dict[str, Any]] = []
    for _ in range(rounds):
        outs = [str(shop.prepared(size, 1)) for _ in range(copies)]
        task = {"task": "fitted", "out": outs, "threads": size.threads}
        found.append(together(task, 1, copies=copies))
    run = {"size": asdict(size), **_least(found)}
    told = "  ".join(f"{stage} {seconds:.3f} s" for stage, seconds in run["epochs"].items())
    print(f"{_named(size):<58}{told}  {run['peak'] / 1e9:.2f} GB", flush=True)
    return run


def _named(size: Size) -> str:
    """Such as ``40,000 users, 100,000 items``, as far as it differs from the first."""
    names = {name: name.replace("_", " ") for name in asdict(size)}
    usual, here = asdict(BASE), asdict(size)
    differs = [f"{names[name]} {here[name]:,}" for name in here if here[name] != usual[name]]
    return ", ".join(differs) or "base"


def _unmerged(stage: str, size: Size, run: Mapping[str, Any], found: Mapping[str, float]) -> float:
    """Seconds of an epoch without its merges, of which alone there are rates yet."""
    merging = {name: found[name] for name in ("merge_byte", "merge_lane_byte")}
    rates = Rates.of({field.name: merging.get(field.name, 0.0) for field in fields(Rates)})
    machine = replace(HERE_MACHINE, threads=size.threads)
    return run["epochs"][stage] - costs(size.load(), machine, 1, rates)[stage].seconds


def _stage_1(size: Size) -> list[float]:
    pairs = size.domains * TRAIN * size.users * size.per_user / size.threads
    doublings = np.log2(size.items * DIM * FLOAT / 1e6)
    return [pairs, pairs * doublings, size.domains * size.users / size.threads]


def _stage_2(size: Size) -> list[float]:
    # a step's seconds are known for one that is full, and counted as often as there are any
    steps = -(-0.9 * size.users // size.cat_batch)
    each = steps * size.cat_batch / size.threads
    work = each * cat_flops(size.domains, DIM)
    return [steps, steps * size.threads, work, each * size.cat_batch]


def _stage_3(size: Size) -> list[float]:
    steps = size.domains * -(-size.users // size.art_batch)
    each = size.domains * size.users / size.threads
    work = each * art_flops(size.domains, DIM)
    return [steps, steps * size.threads, work, each * TRAIN * size.per_user]


def _lists(size: Size) -> list[float]:
    hidden = min(size.users, MOST_USERS) * (size.domains - 1)
    lists = size.domains * (size.users + hidden) / size.threads
    return [1, lists, lists * size.items]


def _held(size: Size) -> list[float]:
    users, items = size.domains * size.users, size.domains * size.items
    return [1, users * DIM * FLOAT, items * DIM * FLOAT, users * size.per_user]


def _sending(n: int, sizes: Sequence[int]) -> tuple[list[list[float]], list[float]]:
    found = together({"task": "collectives", "sizes": list(sizes)}, n)
    rows = [[2 * (n - 1), 2 * (n - 1) / n * size] for size, _ in found["add"]]
    rows += [[2 * (n - 1), (n - 1) * (size + 8)] for size, _ in found["gathered"]]
    return rows, [seconds for kind in found.values() for _, seconds in kind]


# --- the checks

Check = dict[str, Any]


def check(network: str, n: int, step: str, predicted: float, found: float) -> Check:
    """One number that was predicted, and what it turned out to be."""
    print(f"{network:<20}{n} members  {step:<34}{predicted:>12.5g}{found:>12.5g}"
          f"{predicted / found:>8.2f}", flush=True)  # fmt: skip
    return {
        "network": network, "members": n, "step": step, "predicted": predicted, "measured": found,
    }  # fmt: skip


def run_checks(
    size: Size, run: Mapping[str, Any], machine: Machine, n: int, rates: Rates, network: str
) -> list[Check]:
    """Seconds of an epoch of each stage, and the memory."""
    machine = replace(machine, threads=size.threads)
    expected = costs(size.load(), machine, n, rates)
    found = [
        check(network, n, f"{stage}, s an epoch", expected[stage].seconds, seconds)
        for stage, seconds in run["epochs"].items()
    ]
    held = memory(size.load(), size.threads, n, rates)
    return [*found, check(network, n, "memory, GB", held / 1e9, run["peak"] / 1e9)]


def sending_checks(
    n: int,
    rates: Rates,
    sent: Sequence[int],
    machine: Machine,
    network: str,
    places: Sequence[Place],
) -> list[Check]:
    """Single sums and gatherings, in ms."""
    found = together({"task": "collectives", "sizes": list(sent)}, n, places=places)
    kinds: dict[str, Callable[..., Any]] = {"add": all_reduce, "gathered": all_gather}
    return [
        check(network, n, f"{kind} {array:,} bytes, ms",
              1e3 * kinds[kind](array, machine, n, rates).seconds, 1e3 * seconds)
        for kind, each in found.items() for array, seconds in each
    ]  # fmt: skip


def member_checks(
    shop: Workshop, size: Size, n: int, rates: Rates, *, rounds: int,
    machine: Machine, network: str, places: Sequence[Place] = HERE,
) -> list[Check]:  # fmt: skip
    """A sharded run, on some network."""
    runs: list[Any] = []
    for _ in range(rounds):
        task = {"task": "fitted", "out": [str(shop.prepared(size, n))], "threads": size.threads}
        runs.append(together(task, n, places=places))
    return run_checks(size, _least(runs), machine, n, rates, network)


def shaped_checks(
    members: Callable[..., list[Check]], rates: Rates, sent: Sequence[int]
) -> list[Check]:
    """Each member behind a link of its own; nothing where that may not be done."""
    found: list[Check] = []
    for network, (rate, delay) in NETWORKS.items():
        machine = replace(HERE_MACHINE, link=rate / 8, latency=delay)
        try:
            with shaped(4, rate=rate, delay=delay) as places:
                for n in (2, 4):
                    found += sending_checks(n, rates, sent, machine, network, places)
                found += members(2, rates, machine=machine, network=network, places=places)
        except CannotShapeError as reason:
            print(f"{network}: left out, {reason}", flush=True)
    return found


HERE_MACHINE = Machine("here", 1, 0.0, 1e12, 0.0, 1e12, 0.0)
"""One thread, and a network that is never the limit."""


def lanes_quality(shop: Workshop, size: Size) -> list[dict[str, float]]:
    """NDCG@10 on validation of stage 1 by lanes, and by merges of the first epoch and the others.

    To learning, a member's lanes are like any.
    """
    planted = shop.planted(size)
    settings = configuration.load(planted / "settings.toml")
    reading = readers.read(settings.data, base=planted)
    name, *_ = reading.domains.domains
    part = split(reading.domains, settings.split, Seed(0))[name]
    how = PretrainConfig(tries=1, max_epochs=12, validate_every=12, regularization=0.035)
    found: list[dict[str, float]] = []
    for first, later in RHYTHMS:
        for lanes in LANES:
            looked_at = Validation.of(part, Seed(1), n_threads=lanes)
            with merging_often(first, later) if first else nullcontext():
                made = pretrain(part, looked_at, how, Seed(0), Unwatched(), dim=DIM)
            best = made.history[0].best.valid
            found.append({"lanes": lanes, "first": first, "later": later, "ndcg@10": best})
            print(f"{lanes} lanes, {first} merges, then {later}: NDCG@10 {best:.4f}", flush=True)
    return found


@contextmanager
def merging_often(first: int, later: int) -> Generator[None]:
    """So many merges in the first epoch and in each later one, where pairs are few."""
    turns, least, most = tables.Tables.turns, tables.MERGES, tables.FIRST_MERGES

    def of_epoch(self: tables.Tables, number: int) -> list[tables.Turn]:
        tables.MERGES = first if number == 1 else later
        return turns(self, number)

    tables.Tables.turns, tables.FIRST_MERGES = of_epoch, 0
    try:
        yield
    finally:
        tables.Tables.turns, tables.MERGES, tables.FIRST_MERGES = turns, least, most


def main() -> None:
    """Measure, fit, check, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, shows that it works")
    parser.add_argument(
        "--rounds", type=int, default=2, help="repeats, of which the fastest counts"
    )
    parser.add_argument("--keep", action="store_true", help="into docs, with tables and picture")
    wanted = parser.parse_args()
    sizes, held_out, sent, rounds, base, many = FITTED, HELD_OUT, SIZES, wanted.rounds, BASE, (2, 4)
    if wanted.quick:
        sizes = (QUICK, replace(QUICK, users=4_000), replace(QUICK, threads=2))
        held_out, sent, rounds, base, many = (
            (replace(QUICK, per_user=24),),
            SIZES[:4],
            1,
            QUICK,
            (2,),
        )
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        one_member(shop, QUICK, 1)  # compiles what is not yet compiled
        one_member(shop, replace(QUICK, threads=2), 1)
        found, off, runs = measured_rates(shop, sizes, rounds, sent)
        rates = Rates.of(found)
        checks: list[Check] = []
        for size in held_out:
            run = one_member(shop, size, rounds)
            checks += run_checks(size, run, HERE_MACHINE, 1, rates, _named(size))
        members = partial(member_checks, shop, base, rounds=rounds)
        for n in many:
            machine = replace(HERE_MACHINE, share=min(1.0, available_threads() / n))
            checks += sending_checks(n, rates, sent, machine, "this machine", HERE)
            checks += members(n, rates, machine=machine, network="this machine")
        checks += shaped_checks(members, rates, sent)
        quality = lanes_quality(
            shop, QUICK if wanted.quick else replace(BASE, items=500, domains=1)
        )
    content = {
        "name": "scale", "runs": rounds, "commit": _commit(), "rates": found, "off": off,
        "fitted_on": runs, "checks": checks, "lanes": quality, "processors": available_threads(),
        "versions": {name: version(name) for name in (OURS, "numba", "torch", "numpy")},
    }  # fmt: skip
    if wanted.keep:
        scale_page.keep(content)
    print(json.dumps(content))


def _commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
