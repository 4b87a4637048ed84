"""Our server beside the one that an afternoon gives, and against the goals it was built to.

Run it as ``python benchmarks/serve.py [--quick]``; README.md beside it says what is measured and
how to read it.  The last line is one JSON object.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from load import Answers, load, percentiles, post, sent
from served_model import DOMAIN, STRANGER, Size, made, write_naive
from servers import Server, free_port, naive, ours, running

from musketeers.errors import MusketeersError
from musketeers.recommender import Recommender

PATH = f"/v1/domains/{DOMAIN}/recommend"
BATCH = 256
ASKS = 20_000
"""Different requests of a load, before they repeat."""
OVERLOAD_CONNECTIONS = 512
RECOVERY = 5.0
"""Seconds after an overload within which a server is to be as before."""
TOGETHER = 16
"""Connections at which a server's saturation is taken."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    size: Size
    loads: tuple[tuple[Size, float, float | None], ...]
    """Further models, requests a second, and the goal for the p99 in milliseconds, if any."""
    connections: tuple[int, ...]
    rounds: int
    starts: int
    naive: tuple[tuple[str, int], ...]
    """Handlers and numbers of workers of the naive service."""
    seconds: float
    """Of a load in a closed loop; those at a rate take `steady`."""
    steady: float


WHOLE = Extent(
    Size(50_000, 1_200_000),
    ((Size(10_000, 100_000), 200, 5), (Size(10_000, 100_000), 400, None),
     (Size(100_000, 100_000), 50, 20)),
    connections=(4, TOGETHER, 64), rounds=3, starts=3,
    naive=(("plain", 1), ("awaited", 1), ("plain", 2), ("awaited", 2)), seconds=5, steady=30,
)  # fmt: skip
BRIEF = Extent(
    Size(5_000, 20_000), ((Size(2_000, 5_000), 200, 5),),
    connections=(TOGETHER,), rounds=1, starts=1, naive=(("plain", 1), ("awaited", 2)),
    seconds=1.5, steady=3,
)  # fmt: skip

Start = Callable[[], AbstractContextManager[Server]]
"""Starts a server, and ends it when its block ends."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What was found, and what was asked for."""

    name: str
    found: float
    """Infinite for what did not come about."""
    limit: float
    at_least: bool = False

    def met(self) -> bool:
        """Whether it was."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        found = self.found if math.isfinite(self.found) else None
        return {"found": found, "goal": self.limit, "met": self.met()}


# 1. Requests


def asks(size: Size, seed: int, count: int = ASKS) -> list[bytes]:
    """Requests for the 10 best of as many users, at random; other users for each seed."""
    rng = np.random.default_rng(seed)
    return [post(PATH, {"user_id": user(row)}) for row in rng.integers(size.users, size=count)]


def batches(size: Size, seed: int) -> list[bytes]:
    """Requests for the 10 best of `BATCH` users each."""
    rows = np.random.default_rng(seed).integers(size.users, size=(200, BATCH))
    return [post(f"{PATH}:batch", {"user_ids": list(map(user, some))}) for some in rows]


def user(row: int) -> int:
    """The id of that row, as `served_model` gives it out."""
    return int(row) * 2 + 1000


def differing(left: Server, right: Server, size: Size) -> int:
    """How many of 200 lists, a stranger's among them, differ by more than ties within rounding."""
    users = [*map(user, np.random.default_rng(7).integers(size.users, size=199)), STRANGER]
    bodies = [json.dumps({"user_id": one}).encode() for one in users]
    return sum(_differ(listed(left, body), listed(right, body)) for body in bodies)


def listed(server: Server, body: bytes) -> list[dict[str, Any]]:
    """The items of an answer that must be a 200."""
    status, found = server.ask("POST", PATH, body)
    if status != 200:
        sys.exit(f"error: {body!r} is answered by {status}: {found[:300]!r}")
    return json.loads(found)["items"]


def _differ(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    if len(left) != len(right):
        return True
    return any(
        a["id"] != b["id"] and abs(a["score"] - b["score"]) > 1e-4 * max(1, abs(a["score"]))
        for a, b in zip(left, right, strict=True)
    )


def all_well(answers: Answers, what: str) -> Answers:
    """The answers; says so where there is another than 200, and ends where there is no 200."""
    outcomes = answers.outcomes()
    if "200" not in outcomes:
        sys.exit(f"error: {what}: nothing was answered by 200: {outcomes}")
    if len(outcomes) > 1:
        print(f"  {what}: not all were answered by 200: {outcomes}")
    return answers


# 2. Measurements


def latency(start: Start, size: Size, rate: float, seconds: float) -> dict[str, Any]:
    """Single users at a rate, in an open loop."""
    with start() as server:
        warm(server, size)
        what = f"{rate:g} requests/s, {size.items:,} items"
        answers = all_well(sent(server.port, asks(size, 1), seconds, rate=rate), what)
        found = {"items": size.items, "asked": rate, **answers.summary()}
        found["resident_mb"] = round(server.resident() / 1e6, 1)
    print(f"  {what}: p50 {found['p50']:.2f}, p99 {found['p99']:.2f} ms; {found['outcomes']}")
    return found


def warm(server: Server, size: Size) -> None:
    """A second of load, which compiles and fills what is to be compiled and filled."""
    sent(server.port, asks(size, 0, 2000), 1, connections=TOGETHER)


def throughput(servers: dict[str, Start], extent: Extent) -> dict[str, Any]:
    """As fast as each server goes, all in turn in every round; medians over rounds.

    ``processor_ms`` is what the server computed for a request, on all processors together.
    """
    rates: dict[str, dict[int, list[float]]] = {name: {} for name in servers}
    slow: dict[str, dict[int, list[float]]] = {name: {} for name in servers}
    costs: dict[str, dict[int, list[float]]] = {name: {} for name in servers}
    for number in range(extent.rounds):
        for name, start in servers.items():
            with start() as server:
                warm(server, extent.size)
                for connections in extent.connections:
                    requests = asks(extent.size, 100 + number)
                    before = server.processor()
                    answers = sent(
                        server.port, requests, extent.seconds, connections=connections, timeout=30
                    )
                    all_well(answers, f"{name}, {connections} connections")
                    cost = (server.processor() - before) / len(answers.records)
                    costs[name].setdefault(connections, []).append(1000 * cost)
                    rates[name].setdefault(connections, []).append(answers.rate())
                    p99 = percentiles(answers.milliseconds())["p99"]
                    slow[name].setdefault(connections, []).append(p99)
    found = {
        name: {
            str(connections): {
                "rate": round(median(every), 1), "p99": round(median(slow[name][connections]), 2),
                "processor_ms": round(median(costs[name][connections]), 3),
                "rounds": [round(one, 1) for one in every],
            }
            for connections, every in of.items()
        }
        for name, of in rates.items()
    }  # fmt: skip
    for name, of in found.items():
        line = "".join(
            f"{c:>5}: {one['rate']:7.1f}/s {one['processor_ms']:6.3f} ms" for c, one in of.items()
        )
        print(f"  {name:<22}{line}")
    return found


def in_batches(start: Start, size: Size, seconds: float) -> dict[str, Any]:
    """Users a second when `BATCH` are asked for at once, over two connections."""
    with start() as server:
        requests = batches(size, 5)
        sent(server.port, requests, 1, connections=2)
        answers = all_well(sent(server.port, requests, seconds, connections=2), "batches")
        users = answers.rate() * BATCH
    found = {"users": round(users, 1), **percentiles(answers.milliseconds())}
    print(f"  batches of {BATCH}: {users:,.0f} users/s, p99 {found['p99']:.1f} ms")
    return found


def overload(start: Start, size: Size, saturation: float, seconds: float) -> dict[str, Any]:
    """Five times what the server can do, while somebody else keeps asking 50 times a second.

    ``normal_p99`` is that at half of saturation, ``busy_p99`` that at four fifths.
    """
    with start() as server:
        warm(server, size)
        requests = asks(size, 3)
        calm = [
            percentiles(sent(server.port, requests, seconds, rate=part * saturation).milliseconds())
            for part in (0.5, 0.8)
        ]
        with load(server.port, asks(size, 4), 3600, rate=50, even=True) as other:
            time.sleep(3)
            before = server.processor()
            flood = sent(
                server.port, requests, seconds, rate=5 * saturation,
                connections=OVERLOAD_CONNECTIONS, timeout=2,
            )  # fmt: skip
            computed = server.processor() - before
            time.sleep(RECOVERY + 2)
            probe = other.answers(stop=True)
    refused = np.isin(flood.status, (429, 503))
    records = flood.records[refused]
    found = {
        "asked": round(5 * saturation, 1), "normal_p99": calm[0]["p99"],
        "busy_p99": calm[1]["p99"], "outcomes": flood.outcomes(),
        "admitted": percentiles(flood.milliseconds()),
        "refused": percentiles(flood.milliseconds(refused)),
        # without what a request waited in the generator for one of its connections
        "refused_from_sent": percentiles((records["done"] - records["sent"]) / 1e6),
        "admitted_rate": round(flood.rate(), 1), "generator": round(flood.processor, 3),
        "processor_ms": round(1000 * computed / max((flood.status > 0).sum(), 1), 3),
        "recovery": recovery(probe, flood),
    }  # fmt: skip
    for key, value in found.items():
        print(f"  {key:<20}{value}")
    return found


def recovery(probe: Answers, flood: Answers) -> float | None:
    """Seconds from the flood's end to the first second in which at most one answer was not well.

    Not well is a refusal, or more than 10 ms and twice the p99 of before the flood.  None if no
    such second came.
    """
    due = probe.records["due"] / 1e9
    took = (probe.records["done"] - probe.records["due"]) / 1e6
    limit = max(10, 2 * percentiles(took[due < flood.started])["p99"])
    bad = ((probe.status != 200) | (took > limit))[due >= flood.ended]
    due = due[due >= flood.ended]
    for at in due[due <= due[-1] - 1]:
        if bad[(due >= at) & (due < at + 1)].sum() <= 1:
            return round(float(at) - flood.ended, 2)
    return None


# 3. The whole


def model(folder: Path, size: Size) -> Path:
    """A saved model of that size; made only once, and for the naive server, too."""
    place = folder / f"{size.items}-{size.users}"
    if not place.exists():
        recommender: Recommender = made(size)
        place.mkdir()
        recommender.save(place / "ours")
        write_naive(recommender, place / "naive")
    return place


def our_server(place: Path, options: Sequence[str]) -> Start:
    """Ours, of the model in `place`."""
    return lambda: running(ours(place / "ours", options), free_port())


def naive_server(place: Path, app: str, workers: int) -> Start:
    """The naive one, of the same."""
    environment = {"NAIVE_MODEL": str(place / "naive"), "OPENBLAS_NUM_THREADS": "1"}
    return lambda: running(naive(app, workers), free_port(), environment)


def ratios_of(rates: dict[str, Any]) -> dict[str, float]:
    """Ours over the fastest of the others, for each number of connections."""
    others = [of for name, of in rates.items() if name != "ours"]
    return {
        connections: round(one["rate"] / max(of[connections]["rate"] for of in others), 3)
        for connections, one in rates["ours"].items()
    }


def measured(extent: Extent, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Everything, for the JSON line."""
    place = model(folder, extent.size)
    first = our_server(place, options)
    servers = {"ours": first} | {
        f"naive, {app} x{workers}": naive_server(place, app, workers)
        for app, workers in extent.naive
    }
    print(f"{extent.size.items:,} items, {extent.size.users:,} users")
    ready: list[float] = []
    for _ in range(1 + extent.starts):
        with first() as server:
            ready.append(server.seconds)
    # after an installation the first one compiles
    very_first = ready.pop(0)
    with first() as left, naive_server(place, "plain", 1)() as right:
        different = differing(left, right, extent.size)
        print(
            f"  ready after {median(ready):.2f} s; {different} of 200 lists differ from the naive"
        )
    steady = latency(first, extent.size, 300, extent.steady)
    rates = throughput(servers, extent)
    peers = {name: of[str(TOGETHER)]["rate"] for name, of in rates.items() if name != "ours"}
    saturation = rates["ours"][str(TOGETHER)]["rate"]
    batched = in_batches(first, extent.size, extent.seconds)
    flooded = overload(first, extent.size, saturation, 2 * extent.seconds)
    loads: list[dict[str, Any]] = []
    for size, rate, _ in extent.loads:
        start = our_server(model(folder, size), options)
        loads.append(latency(start, size, rate, extent.steady))
    ratios = ratios_of(rates)
    recovered = math.inf if flooded["recovery"] is None else flooded["recovery"]
    goals = [
        Goal("lists that differ", different, 0),
        Goal("start, s", round(median(ready), 2), 2),
        Goal("p99 at 300/s, ms", steady["p99"], 10),
        Goal("throughput over the best naive", min(ratios.values()), 3, at_least=True),
        Goal("users/s in batches", batched["users"], 2000, at_least=True),
        Goal(
            "overload: p99 of the admitted over normal",
            round(flooded["admitted"].get("p99", math.inf) / flooded["normal_p99"], 2), 2,
        ),
        Goal("overload: p99 of the refused, ms", flooded["refused"].get("p99", math.inf), 10),
        Goal("overload: recovery, s", recovered, RECOVERY),
        *(
            Goal(f"p99 at {rate:g}/s, {size.items:,} items, ms", one["p99"], limit)
            for (size, rate, limit), one in zip(extent.loads, loads, strict=True)
            if limit
        ),
    ]  # fmt: skip
    print()
    for goal in goals:
        sign = ">=" if goal.at_least else "<="
        state = "met" if goal.met() else "MISSED"
        print(f"{goal.name:<44}{goal.found:>10} {sign} {goal.limit:<8}{state}")
    return {
        "name": "serve", "ratio": min(ratios.values()), "ratios": ratios, "ours": saturation,
        "peers": peers, "unit": "requests/s", "starts": [round(one, 2) for one in ready],
        "very_first_start": round(very_first, 2), "steady": steady,
        "throughput": rates, "batches": batched, "overload": flooded, "loads": loads,
        "goals": {goal.name: goal.plain() for goal in goals},
    }  # fmt: skip


def main() -> None:
    """Measure what the command line asks for; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models, under a minute")
    parser.add_argument("--out", type=Path, help="new or kept folder for the models")
    parser.add_argument(
        "--options", default="", help="further options of musketeers serve, separated by spaces"
    )
    wanted = parser.parse_args()
    extent = BRIEF if wanted.quick else WHOLE
    with tempfile.TemporaryDirectory() as scratch:
        folder = wanted.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = measured(extent, folder, wanted.options.split())
    found |= {"options": wanted.options, "quick": wanted.quick}
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    try:
        main()
    except MusketeersError as error:
        sys.exit(f"error: {error}")
