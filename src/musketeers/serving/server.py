"""What answers: a socket, the service behind it, and its end."""

import asyncio
import gc
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager

import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from musketeers.errors import ConfigError
from musketeers.parallel import available_threads
from musketeers.serving.app import app_of
from musketeers.serving.batches import Batches
from musketeers.serving.fresh import open_store
from musketeers.serving.gate import Gate
from musketeers.serving.keys import Keys, check_bind
from musketeers.serving.limits import Limits
from musketeers.serving.logs import Log
from musketeers.serving.metrics import Metrics
from musketeers.serving.options import Options
from musketeers.serving.protocol import protocol
from musketeers.serving.service import Service
from musketeers.serving.versions import Versions

_SWITCH_SECONDS = 0.0005
"""How long one thread keeps others from the interpreter: with Python's own 5 ms a finished ranking
would wait so long for the loop to notice it."""
_OTHER_THREADS = 16
"""For stores, explanations and reloads: writes that wait together are written together."""


def run(
    loading: "Future[Versions]",
    options: Options,
    limits: Limits,
    log: Log,
    on_ready: Callable[[Versions, str], object],
) -> None:
    """Serve the versions, once the first is loaded, until a signal; `on_ready` is told the address.

    Raises what `command.serve` does.
    """
    keys = Keys.collect(options.keys, os.environ)
    check_bind(options.host, keys)
    metrics = Metrics()
    with ExitStack() as ends:
        door = ends.enter_context(closing(_bound(options.host, options.port)))
        ends.enter_context(threadpool_limits(1))
        fresh = ends.enter_context(closing(open_store(options.fresh))) if options.fresh else None
        threads = ends.enter_context(ThreadPoolExecutor(_OTHER_THREADS))
        n_ranking = options.threads or max(available_threads() - 1, 1)
        ranking = ends.enter_context(ThreadPoolExecutor(n_ranking, thread_name_prefix="ranking"))
        gate = Gate(keys, limits, metrics, log)
        versions = loading.result()
        _count(versions, metrics)
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
        _serve(service, door, limits, lambda: on_ready(versions, _url(door)))


def _count(versions: Versions, metrics: Metrics) -> None:
    """Let the metrics hear of swaps, too."""
    say = versions.tell

    def tell(event: str, **facts: object) -> None:
        say(event, **facts)
        metrics.reloaded("refused" if event == "refused" else "ok")
        metrics.serves(versions.current.name, versions.current.loaded_at.timestamp())

    versions.tell = tell
    metrics.serves(versions.current.name, versions.current.loaded_at.timestamp())


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


def _serve(
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
