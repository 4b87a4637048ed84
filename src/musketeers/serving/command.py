"""`musketeers serve`: a server around a run, from its start to its end."""

import asyncio
import gc
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from musketeers.data.pseudonyms import Secret
from musketeers.errors import ConfigError, MusketeersError
from musketeers.parallel import available_threads
from musketeers.recommender import Recommender
from musketeers.serving.app import app_of
from musketeers.serving.batches import Batches
from musketeers.serving.fresh import open_store
from musketeers.serving.gate import Gate
from musketeers.serving.keys import Keys, check_bind
from musketeers.serving.limits import Limits
from musketeers.serving.logs import Form, Log
from musketeers.serving.metrics import Metrics
from musketeers.serving.probe import probe
from musketeers.serving.protocol import protocol
from musketeers.serving.service import Service
from musketeers.serving.version import Version
from musketeers.serving.versions import Versions

if TYPE_CHECKING:
    from musketeers.serving.stages import Stages

_SWITCH_SECONDS = 0.0005
"""How long one thread keeps others from the interpreter: with Python's own 5 ms a finished ranking
would wait so long for the loop to notice it."""
_OTHER_THREADS = 16
"""For stores, explanations and reloads: writes that wait together are written together."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve, but for the limits."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: one that is free."""
    keys: Path | None = None
    secret: Path | None = None
    fresh: str | None = None
    """Where fresh interactions are kept; None: nowhere."""
    explains: bool = False
    stages: bool = True
    """Whether to read what the run's stages made, beside its model."""
    threads: int | None = None
    """That rank; by default all processors but one, which the rest needs."""
    watch: float = 0.5
    """Seconds between two looks at whether there is another version; 0: none."""
    log: Form | None = None
    """By default text on a terminal, else JSON."""


def serve(place: Path, options: Options, limits: Limits) -> None:
    """Serve what `place` names (see `versions`) until a signal ends it.

    Returns when all that was begun is finished.  Raises `ConfigError` for settings that do not fit
    each other or an address that cannot be had, `RunError` or `ArtifactError` for a run that cannot
    be served, and `ArtifactError` for a store that cannot be had.
    """
    begun = time.perf_counter()
    keys = Keys.collect(options.keys, os.environ)
    check_bind(options.host, keys)
    log = Log(options.log or ("text" if sys.stderr.isatty() else "json"))
    log.adopt()
    metrics = Metrics()
    with ExitStack() as ends:
        # before anything is read, since reading takes time
        door = ends.enter_context(closing(_bound(options.host, options.port)))
        ends.enter_context(threadpool_limits(1))
        fresh = ends.enter_context(closing(open_store(options.fresh))) if options.fresh else None
        threads = ends.enter_context(ThreadPoolExecutor(_OTHER_THREADS))
        log.event("loading", run=str(place))
        versions = _versions(place, options, ends, log, metrics)
        n_ranking = options.threads or max(available_threads() - 1, 1)
        ranking = ends.enter_context(ThreadPoolExecutor(n_ranking, thread_name_prefix="ranking"))
        gate = Gate(keys, limits, metrics, log)
        batches = Batches(
            lambda: versions.current, fresh, ranking, n_ranking, lambda: gate.inside, metrics.batch
        )
        service = Service(versions, batches, threads, fresh, options.explains, gate, metrics)
        for risk in fresh.risks if fresh else ():
            log.event("risk", level="warning", store=risk)
        if keys.open:
            log.event("open", note="no key is set: for this machine alone, without administration")
        ends.enter_context(_watching(versions, options.watch))
        # what was loaded stays, and need not be looked through again and again
        gc.freeze()
        gc.enable()
        sys.setswitchinterval(_SWITCH_SECONDS)
        _run(service, door, limits, lambda: log.event(
            "ready", url=_url(door), model_version=versions.current.name,
            seconds=round(time.perf_counter() - begun, 3),
        ))  # fmt: skip
    log.event("ended")


def _versions(
    place: Path, options: Options, ends: ExitStack, log: Log, metrics: Metrics
) -> Versions:
    """With the first version loaded."""
    secret = Secret.read(options.secret) if options.secret else None
    # one at a time, and beside the requests
    reader = ends.enter_context(ThreadPoolExecutor(1, thread_name_prefix="stages"))
    ends.callback(reader.shutdown, wait=False, cancel_futures=True)

    def later(run: Path, recommender: Recommender) -> "Future[Stages] | None":
        if not options.stages or not (run / "pretrain").is_dir():
            return None
        reading = reader.submit(_stages, run, recommender)
        reading.add_done_callback(lambda found: _tell_stages(found, run, log))
        return reading

    def tell(event: str, **facts: object) -> None:
        log.event(event, level="error" if event == "refused" else "info", **facts)
        metrics.reloaded("refused" if event == "refused" else "ok")
        metrics.serves(found.current.name, found.current.loaded_at.timestamp())

    def load(folder: Path) -> Version:
        version = Version.load(folder, secret, later)
        probe(version)
        return version

    found = Versions.begin(place, load, tell)
    metrics.serves(found.current.name, found.current.loaded_at.timestamp())
    return found


def _stages(run: Path, recommender: Recommender) -> "Stages":
    # torch takes seconds to load, and a server can answer before
    from musketeers.serving.stages import Stages

    return Stages.read(run, recommender)


def _tell_stages(found: "Future[Stages]", run: Path, log: Log) -> None:
    if found.cancelled():
        return
    if error := found.exception():
        # lists go on; what was done in other domains is not folded in
        fault = str(error) if isinstance(error, MusketeersError) else type(error).__name__
        log.event("stages_refused", level="error", run=run.name, fault=fault)
    else:
        log.event("stages", run=run.name)


@contextmanager
def _watching(versions: Versions, seconds: float) -> Generator[None]:
    """Look for another version every so many seconds, on a thread of its own."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(seconds):
            versions.look()

    thread = threading.Thread(target=look, name="watch", daemon=True)
    if seconds:
        thread.start()
    try:
        yield
    finally:
        ended.set()


def _run(
    service: Service, door: socket.socket, limits: Limits, on_ready: Callable[[], object]
) -> None:
    """Until a signal, and then until all that was let in is answered."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        loop, endings = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: endings.add(loop.create_task(end())))
        on_ready()
        yield

    async def end() -> None:
        if service.gate.draining:
            server.force_exit = True  # somebody is in a hurry
        await service.gate.drain()
        server.should_exit = True

    config = uvicorn.Config(
        app_of(service, life), http=protocol(service.gate), ws="none", log_config=None,
        access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(limits.drain),
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.run([door])


def _url(door: socket.socket) -> str:
    host, port = door.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Python repeats the address in brackets
        why = (error.strerror or "").partition(" (")[0]
        raise ConfigError(
            f"cannot serve on {host} port {port}: {why}; give another --host or --port"
        ) from None
