"""In the workers of nodes for tests: what a test ordered happens at that very moment.

To look for the moment from outside is too late at times: a small stage is over before anybody has
seen that it began.  An order is a file in the folder that ORDERS names (see `clusters.Orders`).  It
is called after a stage and says what is to happen, and at which state of its progress, when a
worker is about to save that one or a later one:

* ``die 2``: the node does, with all its processes at once, as if its power were cut
* ``wait 2``: the worker waits as long as the order is there

Who obeys renames the order, to ``STAGE.obeyed``, so that nobody else does.
"""

import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

STATE = re.compile(r"/checkpoints/(?:.+/)?(pretrain|cat|art)/.+/(\d+)(-\w+)?$")
ON_THE_WAY = 0.3
"""Seconds in which what was told before arrives."""


def obey(event: str, arguments: tuple) -> None:
    if event != "os.rename" or not (found := STATE.search(os.fsdecode(arguments[1]))):
        return
    order = Path(os.environ["ORDERS"], found[1])
    obeyed = order.with_suffix(".obeyed")
    try:
        what, state = order.read_text().split()
        if int(found[2]) < int(state):
            return
        order.rename(obeyed)
    except FileNotFoundError:
        return
    while what == "wait" and obeyed.exists():
        time.sleep(0.05)
    if what == "die":
        time.sleep(ON_THE_WAY)
        cut_power()


def cut_power() -> None:
    me, raylet = os.getpid(), os.getppid()
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    others = [process for process in every if process != me and seen(process)[1] == str(raylet)]
    for process in (raylet, *others, me):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        while seen(process)[0] not in "ZX":
            time.sleep(0.01)


def seen(process: int) -> list[str]:
    """Its state and its parent, from what the system tells; as dead if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return ["X", ""]


if Path(f"/proc/{os.getppid()}/comm").read_text() == "raylet\n":
    sys.addaudithook(obey)
