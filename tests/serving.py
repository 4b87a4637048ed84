"""What tests of the whole service need: runs, models made by hand, and the real command."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

import httpx
import numpy as np
import polars as pl
import uvicorn
import uvloop
from fastapi import FastAPI

from musketeers import config as configuration
from musketeers import runs
from musketeers.baselines.popularity import popularity
from musketeers.data.interactions import Interactions
from musketeers.data.synthetic import frames, planted
from musketeers.data.vocabulary import Vocabulary
from musketeers.ranking import Factors
from musketeers.recommender import DomainModel, Recommender
from musketeers.seeding import Seed
from musketeers.serving.app import app_of
from musketeers.serving.batches import Batches
from musketeers.serving.gate import Gate
from musketeers.serving.keys import Keys
from musketeers.serving.limits import Limits
from musketeers.serving.logs import Log
from musketeers.serving.metrics import Metrics
from musketeers.serving.protocol import protocol
from musketeers.serving.service import Service
from musketeers.serving.stages import Stages
from musketeers.serving.version import Version
from musketeers.serving.versions import Versions

NAMES = ("tv", "movie", "music")
"""Those of the examples in the OpenAPI document, as the ids that are made here are."""
_SECONDS = 60
"""For what takes one or two, on a machine that does other things."""


def fitted(folder):
    """A small finished run of three domains in ``folder/run``, whose users are partly the same."""
    data = planted(NAMES, Seed(0), n_users=120, n_items=40, known=0.7, common=0.9)
    for name, frame in frames(data.domains).items():
        frame.write_parquet(folder / f"{name}.parquet")
    settings = {
        "seed": 3,
        "dim": 6,
        "pretrain": {"max_epochs": 6, "patience": 3, "tries": 1, "regularization": 0.07},
        "cat": {"max_epochs": 4, "batch_size": 64},
        "art": {"max_epochs": 4, "batch_size": 64},
        "data": {
            "min_user": 2, "min_item": 2, "domains": {n: f"{n}.parquet" for n in NAMES},
        },
    }  # fmt: skip
    config = configuration.parse(settings, "tests/serving.py")
    return runs.fit_run(config, folder, folder / "run", threads=1)


def made(seed, *, names=NAMES, users=None, items=None, n_users=30, n_items=25, dim=4, ties=False):
    """A model of random vectors; with `ties`, of few values, so that many scores are equal.

    A third of the users has a history in no domain, each of the others in some.
    """
    stream = np.random.default_rng(seed)
    users = Vocabulary.of(
        pl.Series([f"user-{n:03}" for n in range(n_users)]) if users is None else users
    )
    domains = {}
    for name in names:
        ids = [f"{name}-{n:02}" for n in range(n_items)] if items is None else items
        domains[name] = _domain(stream, Vocabulary.of(pl.Series(ids)), len(users), dim, ties)
    return Recommender.of(users, domains, {"model": dict.fromkeys(names, "made by hand")})


def _domain(stream, items, n_users, dim, ties):
    seen = stream.random((n_users, len(items))) < 0.2
    seen[stream.random(n_users) < 0.5] = False
    seen[: n_users // 3] = False
    rows, columns = np.nonzero(seen)
    pairs = Interactions.from_pairs(rows, columns, n_users=n_users, n_items=len(items))

    def vectors(n):
        drawn = stream.standard_normal((n, dim))
        return (np.round(drawn) if ties else drawn).astype(np.float32)

    return DomainModel(
        items, Factors(vectors(n_users), vectors(len(items))), pairs, popularity(pairs),
        pairs.known_users(), transfers=True,
    )  # fmt: skip


def version(place, secret=None, *, stages=False):
    """The version in a folder; with its stages read at once, or without any."""
    with ThreadPoolExecutor(1) as reader:
        return Version.load(
            place, secret, lambda *found: reader.submit(Stages.read, *found) if stages else None
        )


@dataclass
class Server:
    """Where it answers; the service itself, if it is in this process; what it said so far."""

    url: str
    said: io.StringIO
    service: Service | None = None
    app: FastAPI | None = None
    process: subprocess.Popen | None = None

    def client(self, key=None, **options):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=_SECONDS, **options)

    def events(self):
        """Of its log, in their order."""
        return [json.loads(line) for line in self.said.getvalue().splitlines() if line[:1] == "{"]

    def heard(self, event, **fields):
        """The first event of that name with these fields, once it is there."""

        def there():
            return [
                one
                for one in self.events()
                if one["event"] == event and fields.items() <= one.items()
            ]

        until(there)
        return there()[0]

    def stop(self, number=signal.SIGTERM):
        """Send the signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(_SECONDS)


def until(there):
    """Wait until it is."""
    deadline = time.monotonic() + _SECONDS
    while not there():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextmanager
def in_thread(place, *, load=version, keys=None, fresh=None, explains=True, **limits):
    """All of the service but for the command, in a thread of this process."""
    said, metrics, bounds = io.StringIO(), Metrics(), Limits(**{"deadline": 20.0, **limits})
    log = Log("json", said)
    log.adopt()
    versions = Versions.begin(place, load, log.event)
    with (
        ThreadPoolExecutor(2) as ranking,
        ThreadPoolExecutor(4) as threads,
        socket.create_server(("127.0.0.1", 0), backlog=2048) as door,
    ):
        gate = Gate(keys or Keys(), bounds, metrics, log)
        batches = Batches(
            lambda: versions.current, fresh, ranking, 2, lambda: gate.inside, metrics.batch
        )
        service = Service(versions, batches, threads, fresh, explains, gate, metrics)
        app = app_of(service)
        config = uvicorn.Config(
            app, http=protocol(gate), ws="none", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: uvloop.run(server.serve([door])))
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            yield Server(f"http://127.0.0.1:{door.getsockname()[1]}", said, service, app)
        finally:
            server.should_exit = True
            thread.join(_SECONDS)
            assert not thread.is_alive()


@contextmanager
def by_command(place, *options, **environment):
    """`musketeers serve` in a process of its own, once it is ready."""
    process = begun(place, *options, **environment)
    server = Server("", io.StringIO(), process=process)

    def read():
        for line in process.stderr:
            server.said.write(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        server.url = server.heard("ready")["url"]
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def begun(place, *options, **environment):
    """The process; `environment` is beside that of this one, without keys of its own."""
    rest = {n: v for n, v in os.environ.items() if not n.startswith("MUSKETEERS_")}
    own = ("--port", 0, "--log", "json", "--deadline", 20)
    return subprocess.Popen(
        [sys.executable, "-m", "musketeers", "serve", str(place), *map(str, (*own, *options))],
        stderr=subprocess.PIPE, text=True, env={**rest, **environment},
    )  # fmt: skip


def path_of(pattern, *parts):
    """An address with ids in it."""
    return pattern.format(*(quote(str(part), safe="") for part in parts))


def pairs(answer):
    """Ids and scores of a list, whose ranks must count from 1."""
    found = answer["items"]
    assert [one["rank"] for one in found] == list(range(1, len(found) + 1))
    return [(one["id"], one["score"]) for one in found]


def problem(answer, status, code):
    """The document of an answer that must be this problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert (found["status"], found["code"]) == (status, code), answer.text
    assert found["request_id"] == answer.headers["x-request-id"]
    return found
