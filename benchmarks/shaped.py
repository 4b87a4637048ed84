"""Network namespaces joined by links of a set rate and delay, for processes that are to be apart.

Each namespace has one device, `tc` holds down its rate (tbf), and this program, the switch between
them, passes each packet on after the delay.  It owns all of it: when its standard input ends, for
whatever reason, everything is taken away.  Needs root, `ip`, `tc` and /dev/net/tun.
"""

import argparse
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TUN = Path("/dev/net/tun")
_SET_NAME, _PLAIN_PACKETS = 0x400454CA, 0x1001
"""Linux's TUNSETIFF, and IFF_TUN | IFF_NO_PI."""
_MTU = 9000
"""As networks of data centres have; with 1,500 this program would be what limits the rate."""
_AT_ONCE = 64
"""Packets taken from one device before the others are looked at."""


class CannotShapeError(Exception):
    """Why there can be no such network here."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one process can be put."""

    prefix: tuple[str, ...]
    """Words before its command."""
    host: str
    """Its address."""
    device: str
    """What it sends through."""


@contextmanager
def shaped(n: int, *, rate: float, delay: float) -> Generator[list[Place]]:
    """So many places, each behind a link of `rate` bits a second; `delay` seconds one way.

    Raises `CannotShapeError` where this may not be done.
    """
    if os.geteuid() or not _TUN.exists() or not (shutil.which("ip") and shutil.which("tc")):
        raise CannotShapeError("it takes root, ip, tc and /dev/net/tun")
    words = [sys.executable, __file__, str(n), f"{rate:.0f}", f"{delay:.6f}"]
    # in a session of its own, so that an interrupt leaves it to take everything away
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as switch:
        try:
            line = switch.stdout.readline() if switch.stdout else ""
            if not line.startswith("["):
                raise CannotShapeError(line.strip() or "the switch ended")
            yield [
                Place(("ip", "netns", "exec", name), host, name) for name, host in json.loads(line)
            ]
        finally:
            if switch.stdin:
                switch.stdin.close()
            switch.wait(30)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotShapeError(f"{' '.join(words)}: {done.stderr.strip()}")


def _device(name: str) -> int:
    """A new device of this process; it goes when the file is closed."""
    file = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _SET_NAME, struct.pack("16sH14x", name.encode(), _PLAIN_PACKETS))
    return file


def _joined(name: str, host: str, rate: float) -> int:
    """A namespace with a device, both of this name; the device's file."""
    _run("ip", "netns", "add", name)
    file = _device(name)
    _run("ip", "link", "set", name, "netns", name)
    inside = ("ip", "netns", "exec", name)
    _run(*inside, "ip", "link", "set", "lo", "up")
    _run(*inside, "ip", "addr", "add", f"{host}/24", "dev", name)
    _run(*inside, "ip", "link", "set", name, "mtu", str(_MTU), "up")
    held = str(max(65536, int(rate / 8 / 200)))
    _run(*inside, "tc", "qdisc", "add", "dev", name, "root", "tbf",
         "rate", f"{rate:.0f}bit", "burst", held, "limit", str(8 << 20))  # fmt: skip
    return file


def _switch(devices: dict[int, int], delay: float) -> None:
    """Pass packets on until standard input ends; `devices` by the last byte of their address."""
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, file, packet = waiting.popleft()
            os.write(file, packet)
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([0, *devices.values()], [], [], pause)
        if 0 in ready:
            return
        for file in ready:
            _take(file, devices, time.monotonic() + delay, waiting)


def _take(
    file: int, devices: dict[int, int], due: float, waiting: deque[tuple[float, int, bytes]]
) -> None:
    for _ in range(_AT_ONCE):
        try:
            packet = os.read(file, _MTU + 64)
        except BlockingIOError:
            return
        # IPv4 alone; others, such as a router being looked for, have nowhere to go
        if packet[0] >> 4 == 4 and packet[19] in devices:
            waiting.append((due, devices[packet[19]], packet))


def main() -> None:
    """Make it, say so, be the switch, and take it away."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    for name, kind in (("n", int), ("rate", float), ("delay", float)):
        parser.add_argument(name, type=kind)
    wanted = parser.parse_args()
    places = [(f"mk{os.getpid()}n{i}", f"10.211.77.{i + 1}") for i in range(wanted.n)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        devices = {i + 1: _joined(name, host, wanted.rate) for i, (name, host) in enumerate(places)}
        print(json.dumps(places), flush=True)
        _switch(devices, wanted.delay)
    except (CannotShapeError, OSError) as error:
        print(error, flush=True)
    finally:
        for name, _ in places:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


if __name__ == "__main__":
    main()
