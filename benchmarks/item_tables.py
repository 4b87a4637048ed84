"""What a member of a sharded run holds, sends and waits for, by where the vectors of items are.

Run it as ``python benchmarks/item_tables.py [--quick]``; README.md beside it says what is measured
and how to read it.  The last line is one JSON object.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch.distributed as dist

from musketeers.cluster.collective import Collective
from musketeers.config import PretrainConfig
from musketeers.data.interactions import Interactions
from musketeers.group import member_of
from musketeers.parallel import libraries_on_one_thread
from musketeers.pretrain.mf import Factorization
from musketeers.pretrain.tables import Catalogue, Tables
from musketeers.ranking import Factors, top_k
from musketeers.seeding import Seed

MEMBERS, DIM, PAIRS_PER_USER, LOOKED_AT = 4, 64, 20, 500
SIZES = [(250_000, 200_000), (1_000_000, 200_000), (2_000_000, 200_000)]
"""Items and users."""
EPOCHS = 3
"""The first also compiles; the fastest of the others counts."""
_PATIENCE = timedelta(minutes=10)


@dataclass
class Counted:
    """A group that counts the bytes that this member sends."""

    members: Collective = field(default_factory=Collective)
    sent: int = 0

    @property
    def place(self) -> int:
        """See `Group.place`."""
        return self.members.place

    @property
    def size(self) -> int:
        """See `Group.size`."""
        return self.members.size

    def add(self, *arrays: np.ndarray) -> None:
        """See `Group.add`."""
        # around a ring each part of the sum goes to all others but one, twice
        self.sent += sum(array.nbytes for array in arrays) * 2 * (self.size - 1) // self.size
        self.members.add(*arrays)

    def gathered(self, array: np.ndarray) -> list[np.ndarray]:
        """See `Group.gathered`."""
        self.sent += array.nbytes * (self.size - 1)
        return self.members.gathered(array)

    def exchanged(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Group.exchanged`."""
        self.sent += sum(one.nbytes for place, one in enumerate(arrays) if place != self.place)
        return self.members.exchanged(arrays)


def member(task: dict[str, Any]) -> dict[str, float]:
    """A stage 1 on users of its own, with a look at some of them after it."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{task['port']}", rank=task["place"],
        world_size=MEMBERS, timeout=_PATIENCE,
    )  # fmt: skip
    n_users, n_items = task["users"] // MEMBERS, task["items"]
    make = np.random.default_rng(task["place"])
    n_pairs = n_users * PAIRS_PER_USER
    # popular items take most of the pairs, and all numbers are as likely to be popular
    liked = (make.permutation(n_items))[(n_items * make.random(n_pairs) ** 3).astype(np.int64)]
    train = Interactions.from_pairs(
        np.repeat(np.arange(n_users), PAIRS_PER_USER), liked, n_users=n_users, n_items=n_items
    )
    config = PretrainConfig(item_tables=task["how"])
    group, seconds = Counted(), list[float]()
    with member_of(group), libraries_on_one_thread(), held() as most:
        tables = Tables([Catalogue(train, Seed(0))], Seed(0), config, dim=DIM, n_lanes=1)
        model = Factorization(tables, lambda _: 0.0, config)
        for number in range(1, EPOCHS + 1):
            group.sent, start = 0, time.perf_counter()
            model.epoch(number)
            seconds.append(time.perf_counter() - start)
        sent, group.sent, start = group.sent, 0, time.perf_counter()
        users = np.arange(min(LOOKED_AT, n_users))
        top_k(Factors(tables.users, tables.lanes[0].table()), users, k=10, seen=train, n_threads=1)
        look = time.perf_counter() - start
    return {
        "epoch": min(seconds[1:]), "look": look, "memory": most[0],
        "sent_epoch": sent, "sent_look": group.sent,
    }  # fmt: skip


@contextmanager
def held() -> Generator[list[int]]:
    """The most memory of its own that the process had in the block, without what files back."""
    before, most, over = _own(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            most[0] = max(most[0], _own() - before)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


def _own() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return 1024 * found


def together(n_items: int, n_users: int, how: str) -> dict[str, float]:
    """The largest number of any member."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tasks = [
        {"place": place, "port": port, "items": n_items, "users": n_users, "how": how}
        for place in range(MEMBERS)
    ]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--member", json.dumps(task)], stdout=subprocess.PIPE
        )
        for task in tasks
    ]
    found = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    return {name: max(one[name] for one in found) for name in found[0]}


def measured(n_items: int, n_users: int, runs: int) -> dict[str, Any]:
    """Both ways in turn; medians."""
    found: dict[str, list[dict[str, float]]] = {"replicated": [], "sharded": []}
    for _ in range(runs):
        for how, each in found.items():
            each.append(together(n_items, n_users, how))
    by = {
        how: {name: median(one[name] for one in each) for name in each[0]}
        for how, each in found.items()
    }
    gb = {how: one["memory"] / 1e9 for how, one in by.items()}
    print(
        f"{n_items:,} items ({n_items * DIM * 4e-9:.2f} GB), {n_users * PAIRS_PER_USER:,} pairs: "
        f"a member holds {gb['replicated']:.2f} GB or {gb['sharded']:.2f} GB; "
        f"epoch {by['replicated']['epoch']:.1f} s or {by['sharded']['epoch']:.1f} s, "
        f"sends {by['replicated']['sent_epoch'] / 1e9:.2f} GB or "
        f"{by['sharded']['sent_epoch'] / 1e9:.2f} GB; "
        f"look {by['replicated']['look']:.1f} s or {by['sharded']['look']:.1f} s",
        flush=True,
    )
    return {"items": n_items, "pairs": n_users * PAIRS_PER_USER, **by}


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small table (under 50 s)")
    parser.add_argument("--runs", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--member", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        print(json.dumps(member(options.member)), flush=True)
        # torch's store does not always let a process end
        os._exit(0)
    sizes = [(50_000, 40_000)] if options.quick else SIZES
    runs = 1 if options.quick else options.runs
    each = [measured(*size, runs) for size in sizes]
    last = each[-1]
    memory = {how: last[how]["memory"] for how in ("replicated", "sharded")}
    found = {
        "name": "item_tables",
        "ratio": memory["replicated"] / memory["sharded"],
        "ours": memory["sharded"],
        "peers": {"replicated": memory["replicated"]},
        "runs": runs,
        "members": MEMBERS,
        "dim": DIM,
        "sizes": each,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
