"""Our server while its model is replaced, damaged, and while it is killed itself.

Run it as ``python benchmarks/serve_swaps.py [--quick]``; README.md beside it says what is measured
and how to read it.  The last line is one JSON object.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from load import HOST, Answers, load, percentiles, post
from serve import BATCH, PATH, user
from served_model import DOMAIN, Size, made
from servers import ask, end, free_port, ours, running

from musketeers.errors import MusketeersError

SIZE = Size(2_000, 5_000)
READERS = 50
"""Users whose lists are asked for; the others write."""
RATE = 100
"""Lists a second."""
VISIBLE = 2.0
"""Seconds within which a new version is to be served."""
MOST = 100
"""Items of a user that the server shows, the newest, by default; nobody is given more."""
INTERVAL = 2.2
"""Seconds between two versions."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is done."""

    versions: int
    damaged: int
    kills: int
    ends: int


WHOLE = Extent(versions=200, damaged=50, kills=20, ends=5)
BRIEF = Extent(versions=6, damaged=2, kills=2, ends=1)


# 1. Versions


@dataclass(frozen=True, slots=True)
class Versions:
    """Models beside each other, and what each would answer."""

    folder: Path
    damaged: frozenset[int]
    known: Mapping[tuple[int, tuple[int, ...]], int]
    """Of a user and a list of items: whose list it is."""
    scores: Mapping[tuple[int, int], tuple[float, ...]]
    """Of a version and a user: the scores of the list."""

    @property
    def current(self) -> Path:
        """The link that the server is given."""
        return self.folder / "current"

    def show(self, number: int) -> float:
        """Point the link to a version, at one moment, which is given back."""
        draft = self.folder / "next"
        draft.symlink_to(f"v{number}")
        draft.replace(self.current)
        return time.monotonic()


def versions(folder: Path, extent: Extent) -> Versions:
    """All versions, written; some of them damaged, but the first."""
    dice = random.Random(0)
    damaged = frozenset(dice.sample(range(1, extent.versions), extent.damaged))
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    scores: dict[tuple[int, int], tuple[float, ...]] = {}
    for number in range(extent.versions):
        recommender = made(SIZE, seed=number)
        lists = recommender.recommend(DOMAIN, [user(row) for row in range(READERS)])
        for (reader,), part in lists.group_by("user_id"):
            key = int(str(reader)), tuple(part["item_id"])
            assert key not in known, "two versions have the same list for somebody"
            known[key] = number
            scores[number, key[0]] = tuple(part["score"])
        recommender.save(folder / f"v{number}")
        if number in damaged:
            damage(folder / f"v{number}", dice)
    return Versions(folder, damaged, known, scores)


def damage(folder: Path, dice: random.Random) -> None:
    """Do to a file of the model what disks and copies do."""
    file = dice.choice(sorted(folder.iterdir()))
    data = bytearray(file.read_bytes())
    # what a changed bit in the manifest says may be as true as what it said
    way = dice.choice(("cut", "gone") if file.name == "manifest.json" else ("bit", "cut", "gone"))
    if way == "gone":
        file.unlink()
    elif way == "cut":
        file.write_bytes(data[: dice.randrange(len(data))])
    else:
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)
        file.write_bytes(data)


# 2. What was answered


def asks() -> list[bytes]:
    """A request for each reader's list."""
    return [post(PATH, {"user_id": user(row)}) for row in range(READERS)]


@dataclass(slots=True)
class Found:
    """What the answers are, counted."""

    outcomes: dict[str, int]
    wrong: int = 0
    """No version's list, another user's, or with other scores."""
    misnamed: int = 0
    """Lists under a model_version that was another's."""
    untimely: int = 0
    """Of a version that was not shown since `VISIBLE` before the request was sent."""
    damaged: int = 0
    """Of a version that was damaged."""
    back: int = 0
    """Of an older showing than an answer that was there before the request was sent."""
    seconds: list[float] = field(default_factory=list)
    """From showing a sound version to its first answer."""


def judged(answers: Answers, of: Versions, shown: Sequence[tuple[float, int]]) -> Found:
    """Every answer against all lists that there can be; `shown` is when which version was."""
    found = Found(answers.outcomes())
    names: dict[str, int] = {}
    first: dict[int, float] = {}
    newest = (0.0, 0)  # when an answer of the newest showing was there, and which one that is
    records = answers.records[answers.status > 0]
    for record, (number, status, body) in zip(records, answers.each(), strict=True):
        if status != 200:
            continue
        sent, done = float(record["sent"]) / 1e9, float(record["done"]) / 1e9
        answer = json.loads(body)
        version = of.known.get((user(number), tuple(one["id"] for one in answer["items"])))
        if version is None or not _as_scored(answer, of.scores[version, user(number)]):
            found.wrong += 1
            continue
        found.misnamed += names.setdefault(answer["model_version"], version) != version
        found.damaged += version in of.damaged
        at = [place for place in _possible(shown, sent, done) if shown[place][1] == version]
        if not at:
            found.untimely += 1
            continue
        first[at[0]] = min(first.get(at[0], done), done)
        found.back += newest[0] < sent and at[-1] < newest[1]
        if at[-1] > newest[1]:
            newest = done, at[-1]
    found.seconds = [first[place] - shown[place][0] for place in sorted(first) if place]
    return found


def _as_scored(answer: Mapping[str, Any], scores: Sequence[float]) -> bool:
    told = [one["score"] for one in answer["items"]]
    ranks = [one["rank"] for one in answer["items"]]
    return np.allclose(told, scores, rtol=1e-6, atol=1e-9) and ranks == [*range(1, len(told) + 1)]


def _possible(shown: Sequence[tuple[float, int]], sent: float, done: float) -> range:
    """The showings during which, or not long after which, an answer was made."""
    times = [at for at, _ in shown]
    # a damaged version in between leaves the one before it in place for as long as it is shown
    early = bisect_right(times, sent - VISIBLE) - 1
    return range(max(early, 0), bisect_right(times, done))


# 3. Swaps


def swapped(of: Versions, extent: Extent, options: Sequence[str]) -> dict[str, Any]:
    """Every version shown in turn under load."""
    shown = [(of.show(0), 0)]
    memory: list[int] = []
    with (
        running(ours(of.current, options), free_port()) as server,
        load(server.port, asks(), 3600, rate=RATE, connections=8, keep=True) as readers,
    ):
        time.sleep(INTERVAL)
        for number in range(1, extent.versions):
            at = of.show(number)
            if number not in of.damaged:
                shown.append((at, number))
            time.sleep(INTERVAL)
            memory.append(server.resident())
        answers = readers.answers(stop=True)
    found = judged(answers, of, shown)
    few = max(1, min(10, len(memory) // 3))
    settled, last = median(memory[few : 2 * few]), median(memory[-few:])
    return {
        "versions": extent.versions, "damaged": extent.damaged, "answers": found.outcomes,
        "wrong": found.wrong, "misnamed": found.misnamed, "of_damaged": found.damaged,
        "untimely": found.untimely, "went_back": found.back,
        "sound_and_never_served": len(shown) - 1 - len(found.seconds),
        "visible_s": round(max(found.seconds, default=float("inf")), 2),
        "visible_median_s": round(median(found.seconds or [float("inf")]), 2),
        "resident_mb": [round(one / 1e6, 1) for one in (settled, last)],
        "growth": round(last / settled - 1, 4), **percentiles(answers.milliseconds()),
    }  # fmt: skip


# 4. Kills


@dataclass(slots=True)
class Writer:
    """Tells the server of interactions, one after the other, until it is stopped."""

    port: int
    dice: random.Random
    told: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """By user, the items of every write that was sent."""
    kept: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Those that the server said it stored."""
    statuses: Counter[int] = field(default_factory=Counter)
    stopped: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        """Write; who does not answer is tried again with something else, a little later."""
        connection = HTTPConnection(HOST, self.port, timeout=10)
        while not self.stopped.is_set():
            who = user(self.dice.randrange(READERS, SIZE.users))
            if len(self.told[who]) > MOST - 2:
                continue
            items = [3 * self.dice.randrange(SIZE.items) + 1000 for _ in range(2)]
            body = json.dumps({"domain": DOMAIN, "item_ids": items})
            self.told[who].update(items)
            try:
                connection.request(
                    "POST", f"/v1/users/{who}/interactions", body,
                    {"Content-Type": "application/json"},
                )  # fmt: skip
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException):
                connection.close()
                time.sleep(0.02)
                continue
            self.statuses[answer.status] += 1
            if answer.status == 201:
                self.kept[who].update(items)


def killed(of: Versions, extent: Extent, store: str, options: Sequence[str]) -> dict[str, Any]:
    """SIGKILL at random moments while lists are read, interactions written and versions shown."""
    dice = random.Random(1)
    sound = [number for number in range(extent.versions) if number not in of.damaged]
    shown = [(of.show(sound[0]), sound[0])]
    words = ours(of.current, [*options, "--fresh", store])
    port = free_port()
    writer = Writer(port, dice)
    thread = threading.Thread(target=writer.work)
    starts: list[float] = []
    with ExitStack() as servers:
        server = servers.enter_context(running(words, port))
        servers.callback(writer.stopped.set)
        thread.start()
        with load(port, asks(), 3600, rate=RATE, connections=8, keep=True) as readers:
            for number in range(extent.kills):
                time.sleep(dice.uniform(0.3, 2.5))
                version = sound[(number + 1) % len(sound)]
                shown.append((of.show(version), version))
                time.sleep(dice.uniform(0, 1.0))
                server.process.kill()
                server.process.wait()
                server = servers.enter_context(running(words, port))
                starts.append(server.seconds)
            time.sleep(1)
            writer.stopped.set()
            thread.join()
            answers = readers.answers(stop=True)
        lost, strange = compared(port, writer)
    found = judged(answers, of, shown)
    return {
        "kills": extent.kills, "starts_s": [round(median(starts), 2), round(max(starts), 2)],
        "answers": found.outcomes, "wrong": found.wrong, "misnamed": found.misnamed,
        "untimely": found.untimely, "writes": dict(writer.statuses),
        "acknowledged_items": sum(map(len, writer.kept.values())),
        "acknowledged_and_lost": lost, "stored_and_never_sent": strange,
    }  # fmt: skip


def compared(port: int, writer: Writer) -> tuple[int, int]:
    """Acknowledged items that the server does not have, and items it has that nobody sent."""
    lost = strange = 0
    for who in writer.told:
        status, body = ask(port, "GET", f"/v1/users/{who}/interactions")
        has = _items(json.loads(body)) if status == 200 else set[int]()
        lost += len(writer.kept[who] - has)
        strange += len(has - writer.told[who])
    return lost, strange


def _items(answer: Mapping[str, Any]) -> set[int]:
    return set(map(int, answer["domains"].get(DOMAIN, [])))


# 5. Ends


def ended(of: Versions, extent: Extent, options: Sequence[str]) -> dict[str, Any]:
    """SIGTERM while every connection waits for a large batch."""
    of.show(0)
    everyone = [user(row) for row in range(BATCH)]
    batch = [post(f"{PATH}:batch", {"user_ids": everyone, "k": 200})]
    took: list[float] = []
    codes: Counter[int] = Counter()
    later: Counter[str] = Counter()
    dropped = admitted = 0
    for _ in range(extent.ends):
        with (
            running(ours(of.current, options), free_port()) as server,
            load(server.port, batch, 60, connections=16, timeout=30) as readers,
        ):
            time.sleep(2)
            told = time.monotonic()
            took.append(end(server.process))
            codes[server.process.returncode] += 1
            time.sleep(0.2)
            answers = readers.answers(stop=True)
        before = answers.records["sent"] / 1e9 < told
        under_way = before & (answers.records["done"] / 1e9 >= told)
        admitted += int(under_way.sum())
        dropped += int((before & (answers.status == 0)).sum())
        later.update(replace(answers, records=answers.records[~before]).outcomes())
    return {
        "ends": extent.ends, "under_way": admitted, "dropped": dropped,
        "sent_later": dict(later), "exit_s": round(max(took), 2),
        "exit_codes": dict(codes),
    }  # fmt: skip


# 6. The whole


def main() -> None:
    """Do everything, print the counts, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few of everything, about a minute")
    parser.add_argument("--store", help="what --fresh is given; default a file beside the models")
    parser.add_argument(
        "--options", default="", help="further options of musketeers serve, separated by spaces"
    )
    wanted = parser.parse_args()
    extent, options = BRIEF if wanted.quick else WHOLE, wanted.options.split()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch) / "runs"
        runs.mkdir()
        of = versions(runs, extent)
        store = wanted.store or os.fspath(Path(scratch) / "fresh.db")
        found["swaps"] = swapped(of, extent, options)
        told("swaps", found["swaps"])
        found["kills"] = killed(of, extent, store, options)
        told("kills", found["kills"])
        found["ends"] = ended(of, extent, options)
        told("ends", found["ends"])
    goals = judgement(found)
    for name, met in goals.items():
        print(f"{name:<58}{'met' if met else 'MISSED'}")
    about = {"rate": RATE, "options": wanted.options, "quick": wanted.quick}
    print(json.dumps({"name": "serve_swaps", **found, "goals": goals, **about}))


def told(name: str, counts: Mapping[str, Any]) -> None:
    """Print the counts."""
    print(f"\n{name}")
    for key, value in counts.items():
        print(f"  {key:<24}{value}", flush=True)


def judgement(found: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Each goal, and whether it was met."""
    swaps, kills, ends = found["swaps"], found["kills"], found["ends"]
    return {
        "every answer under swaps is a 200": set(swaps["answers"]) == {"200"},
        "each is exactly one sound version's": not any(
            swaps[key] for key in ("wrong", "misnamed", "of_damaged", "untimely", "went_back")
        ),
        "every sound version is served, within 2 s": swaps["visible_s"] <= VISIBLE
        and not swaps["sound_and_never_served"],
        "memory grows by less than 5 %": swaps["growth"] < 0.05,
        "after kills no acknowledged write is lost": not kills["acknowledged_and_lost"]
        and not kills["stored_and_never_sent"]
        and kills["acknowledged_items"] > 0,
        "and no answer is wrong": not any(kills[k] for k in ("wrong", "misnamed", "untimely")),
        "SIGTERM drops nothing, exit in 20 s": not ends["dropped"]
        and ends["under_way"] > 0
        and ends["exit_s"] <= 20,
    }


if __name__ == "__main__":
    try:
        main()
    except MusketeersError as error:
        sys.exit(f"error: {error}")
