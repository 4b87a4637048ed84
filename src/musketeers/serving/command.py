"""`musketeers serve`: a server around a run, from its start to its end."""

import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from musketeers.data.pseudonyms import Secret
from musketeers.errors import MusketeersError
from musketeers.recommender import Recommender
from musketeers.serving.limits import Limits
from musketeers.serving.logs import Log
from musketeers.serving.options import Options
from musketeers.serving.probe import probe
from musketeers.serving.version import Version
from musketeers.serving.versions import Versions

if TYPE_CHECKING:
    from musketeers.serving.stages import Stages


def serve(place: Path, options: Options, limits: Limits) -> None:
    """Serve what `place` names (see `versions`) until a signal ends it.

    Returns when all that was begun is finished.  Raises `ConfigError` for settings that do not fit
    each other or an address that cannot be had, `RunError` or `ArtifactError` for a run that cannot
    be served, and `ArtifactError` for a store that cannot be had.
    """
    begun, is_ready = time.perf_counter(), threading.Event()
    log = Log(options.log or ("text" if sys.stderr.isatty() else "json"))
    log.adopt()

    def on_ready(versions: Versions, url: str) -> None:
        seconds = round(time.perf_counter() - begun, 3)
        log.event("ready", url=url, model_version=versions.current.name, seconds=seconds)
        is_ready.set()

    with ExitStack() as ends:
        log.event("loading", run=str(place))
        # one thread for the first version, and then for the stages of each
        beside = ThreadPoolExecutor(1, thread_name_prefix="beside")
        ends.callback(beside.shutdown, wait=False, cancel_futures=True)
        ends.callback(is_ready.set)
        loading = beside.submit(_versions, place, options, beside, is_ready, log)
        # half a second of imports, while it is read
        from musketeers.serving import server

        server.run(loading, options, limits, log, on_ready)
    log.event("ended")


def _versions(
    place: Path,
    options: Options,
    beside: ThreadPoolExecutor,
    is_ready: threading.Event,
    log: Log,
) -> Versions:
    """With the first version loaded."""
    secret = Secret.read(options.secret) if options.secret else None

    def later(run: Path, recommender: Recommender) -> "Future[Stages] | None":
        if not options.stages or not (run / "pretrain").is_dir():
            return None
        reading = beside.submit(_stages, run, recommender, is_ready)
        reading.add_done_callback(lambda found: _tell_stages(found, run, log))
        return reading

    def load(folder: Path) -> Version:
        version = Version.load(folder, secret, later)
        probe(version)
        return version

    def tell(event: str, **facts: object) -> None:
        log.event(event, level="error" if event == "refused" else "info", **facts)

    return Versions.begin(place, load, tell)


def _stages(run: Path, recommender: Recommender, is_ready: threading.Event) -> "Stages":
    # torch takes seconds to load, and a server can answer before
    is_ready.wait()
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
