"""One member of a group of processes: what scale.py starts, several at a time.

``python benchmarks/scale_members.py TASK`` with the task as JSON; the member at place 0 prints what
it found as JSON, on its last line.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch.distributed as dist

from musketeers import config as configuration
from musketeers.cat.lanes import Lanes
from musketeers.cluster.collective import Collective
from musketeers.cluster.members import Errand, folder_of, work
from musketeers.data.shards import read_shard
from musketeers.parallel import libraries_on_one_thread
from musketeers.pretrain.lanes import ItemLanes
from musketeers.run_files import open_run
from musketeers.runs import Quiet
from musketeers.training import History

Found = Mapping[str, Any]
_PATIENCE = timedelta(minutes=5)


def fitted(task: Found) -> Found:
    """A member's fit of `musketeers fit --on ray --shards N`; seconds and bytes of its parts."""
    out, place = Path(task["out"]), int(task["place"])
    start = time.perf_counter()
    read_shard(out / "data", place)
    read = time.perf_counter() - start
    settings = configuration.load(out / "settings.toml")
    errand = Errand(settings, out, ("cat_art",), task["members"], task["threads"])
    store = _store(task) if place == 0 else None
    steps = _timed_steps()
    start = time.perf_counter()
    work(errand, place, task["host"], task["port"], Quiet())
    whole = time.perf_counter() - start
    del store
    if place:
        return {}
    run = open_run(folder_of(out, place))
    seconds, peaks = run.manifest["seconds"], run.manifest["peak_bytes"]
    stages = run.stages
    histories = {
        "stage 1": [one.history[0] for one in stages.alone.values()],
        "stage 3": [one.history for one in stages.transferred.values()],
    }
    n_steps = len(steps) // settings.cat.max_epochs
    return {
        "read_shard": read,
        "whole": whole,
        "epochs": {
            "stage 1": sum(map(_epoch, histories["stage 1"])),
            # all steps are alike, so a tenth of them that nothing disturbed tells of all
            "stage 2": n_steps * float(np.quantile(steps, 0.1)),
            "stage 3": sum(map(_epoch, histories["stage 3"])),
        },
        "looks": {stage: sum(map(_look, found)) for stage, found in histories.items()},
        "evaluate": seconds["evaluate"],
        "save": seconds["save"],
        "seconds": seconds,
        "peak": max(peaks.values()),
    }


def _timed_steps() -> list[float]:
    """Seconds of each step of stage 2 from now on, as they are taken."""
    seconds: list[float] = []
    learn = Lanes.learn

    def timed(self: Lanes, rows: np.ndarray, visible: np.ndarray) -> Iterator[float]:
        start = time.perf_counter()
        for loss in learn(self, rows, visible):
            yield loss
            now = time.perf_counter()
            seconds.append(now - start)
            start = now

    Lanes.learn = timed
    return seconds


def _epoch(history: History) -> float:
    """The fastest but the first, in which compiled loops are brought from the disk.

    What else runs on a machine only ever adds to it.
    """
    return min(e.seconds / e.passes for e in history.epochs[2:])


def _look(history: History) -> float:
    return min(e.valid_seconds for e in history.epochs[2:])


def collectives(task: Found) -> Found:
    """Seconds of sums and gatherings of arrays of some sizes, the median of repeats."""
    store = _store(task) if task["place"] == 0 else None
    meeting = dist.TCPStore(task["host"], task["port"], timeout=_PATIENCE)
    dist.init_process_group(
        "gloo", store=meeting, rank=task["place"], world_size=task["members"], timeout=_PATIENCE
    )
    group = Collective()
    found: dict[str, list[tuple[int, float]]] = {"add": [], "gathered": []}
    for size in task["sizes"]:
        array = np.zeros(max(1, size // 4), np.float32)
        repeats = max(5, min(200, int(3e7 / max(size, 1))))
        found["add"].append((array.nbytes, _timed(lambda a=array: group.add(a), repeats)))
        # a member's part, so that as much comes together as is added up above
        part = np.zeros(max(1, len(array) // group.size), np.float32)
        found["gathered"].append((part.nbytes, _timed(lambda a=part: group.gathered(a), repeats)))
    dist.barrier()
    dist.destroy_process_group()
    del store
    return found if task["place"] == 0 else {}


def merges(task: Found) -> Found:
    """Seconds of bringing lanes and members together, but for the sending, of some tables."""
    found: list[tuple[int, int, float]] = []
    with libraries_on_one_thread():
        for n_items in task["items"]:
            for n_lanes in task["lanes"]:
                rng = np.random.default_rng(0)
                items = rng.standard_normal((n_items, task["dim"]), dtype=np.float32)
                lanes = ItemLanes(items, np.ones(n_items, np.float32), n_lanes=n_lanes)
                # as in a group, which has a copy of what was merged last
                lanes._merged = (items.copy(), np.ones(n_items, np.float32))
                lanes.merge()

                def one(lanes: ItemLanes = lanes) -> None:
                    lanes._touched[:] = True
                    lanes.merge()

                size = n_items * (task["dim"] + 1) * 4
                found.append((size, n_lanes, _timed(one, 9)))
    return {"merges": found}


def _timed(job: Callable[[], object], repeats: int) -> float:
    job()
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _store(task: Found) -> dist.TCPStore:
    return dist.TCPStore(task["host"], task["port"], is_master=True, wait_for_workers=False)


TASKS = {"fitted": fitted, "collectives": collectives, "merges": merges}


def _end_with_parent() -> None:
    """Whoever started this holds its standard input open."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    wanted = json.loads(sys.argv[1])
    print(json.dumps(TASKS[wanted["task"]](wanted)), flush=True)
    # torch's store may wait for its clients when an interpreter ends, and they for theirs
    os._exit(0)
